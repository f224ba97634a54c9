"""Every linear op as a regression: rows times matrix plus bias is what onnxruntime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers.folding import network, producer
from helpers.networks import Map, Net
from helpers.oracle import ONE_THREAD, Traced, feed, parse, traced
from helpers.readers import ON_MAPS, ON_VECTORS, WIDTH
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st

from onnxprune.calibration.walk import Walk
from onnxprune.compensation.regression.linear_layers import (
    LinearLayer,
    linear_layer,
    replaceable_layers,
)
from onnxprune.coupling.labels import AxisLabel

SIZES = {1: (7,), 2: (5, 6), 3: (5, 5, 6)}


def the_layer(proto: onnx.ModelProto) -> tuple[Traced, LinearLayer]:
    """The last layer of a model."""
    subject = traced(proto)
    layers = [linear_layer(node, subject.coupling, 17) for node in subject.model.graph]
    return subject, [one for one in layers if one is not None][-1]


def check_regression(subject: Traced, layer: LinearLayer, batch: int = 5) -> None:
    """rows @ matrix + bias is the output, on a batch the tracer has never seen."""
    walk = Walk(subject.model, [feed(subject.proto, batch)], ONE_THREAD)
    output = layer.node.outputs[0].name or ""
    walk.advance(layer.node, keep=[layer.data])
    x = walk[layer.data][0]
    walk.advance(layer.node, keep=[output], past=True)
    y = walk[output][0]
    assert layer.rows_of(x.shape) == layer.row_count(y.shape)
    ids = np.arange(layer.row_count(y.shape))
    weight = subject.model.graph.initializers.get(layer.weight)
    array = weight.const_value.numpy() if weight else np.asarray(constant(subject, layer))
    matrix = layer.matrix(array)
    np.testing.assert_allclose(layer.tensor(matrix), array, rtol=1e-6)
    made = np.einsum("rgd,god->rgo", layer.rows(x, ids).astype(np.float64), matrix)
    outputs = layer.outputs(y, ids)
    rest = outputs - made
    tolerance = 1e-5 * max(np.abs(y).max(), 1)
    assert np.ptp(rest, axis=0).max() < tolerance, "the same bias in every row"
    if len(layer.node.inputs) < 3:
        assert np.abs(rest).max() < tolerance
    bias = np.random.default_rng(0).standard_normal(rest.shape[1:])
    along = np.broadcast_to(layer.bias_along_output(bias), y.shape)
    np.testing.assert_allclose(layer.outputs(along, ids), np.float32(outputs * 0 + bias))
    some = np.array([len(ids) // 2, 0])
    np.testing.assert_array_equal(layer.rows(x, some), layer.rows(x, ids)[some])
    np.testing.assert_array_equal(layer.outputs(y, some), outputs[some])


def constant(subject: Traced, layer: LinearLayer) -> Any:
    return subject.coupling.facts.constants[layer.weight].numpy()


CONVS = {
    "pads": ("[2, 4, 6, 7]", "Conv<pads = [1, 2, 0, 1]>", (3, 4, 3, 2)),
    "strides": ("[2, 4, 7, 7]", "Conv<strides = [2, 3]>", (3, 4, 3, 3)),
    "dilations": ("[2, 4, 9, 7]", "Conv<dilations = [2, 1], pads = [1, 1, 1, 1]>", (3, 4, 3, 3)),
    "groups": ("[2, 6, 5, 5]", "Conv<group = 2, pads = [1, 1, 1, 1]>", (4, 3, 3, 3)),
    "depthwise": ("[2, 6, 5, 5]", "Conv<group = 6, pads = [1, 1, 1, 1]>", (12, 1, 3, 3)),
    "same lower": ("[2, 4, 5, 6]", 'Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>', (3, 4, 2, 3)),
    "1-D": ("[2, 4, 9]", "Conv<pads = [2, 0], strides = [2]>", (3, 4, 3)),
    "3-D": ("[2, 2, 4, 5, 3]", "Conv<pads = [1, 0, 1, 0, 1, 1]>", (3, 2, 3, 2, 3)),
    "transposed": ("[2, 4, 3, 4]", "ConvTranspose", (4, 3, 2, 3)),
    "transposed with output padding": (
        "[2, 4, 3, 4]",
        "ConvTranspose<strides = [2, 3], output_padding = [1, 2], pads = [1, 0, 1, 1]>",
        (4, 3, 3, 3),
    ),
    "transposed groups": (
        "[2, 6, 4, 4]",
        "ConvTranspose<group = 3, strides = [2, 2]>",
        (6, 2, 3, 3),
    ),
    "transposed, dilated, 1-D": ("[2, 4, 6]", "ConvTranspose<dilations = [2]>", (4, 3, 3)),
    "transposed to a shape": (
        "[2, 4, 3, 3]",
        "ConvTranspose<strides = [2, 2], output_shape = [6, 6]>",
        (4, 3, 3, 3),
    ),
}
PRODUCTS = {
    "Gemm": ("[5, 6]", "Gemm(x, w)", (6, 4)),
    "Gemm transB alpha": ("[5, 6]", "Gemm<transB = 1, alpha = 0.25>(x, w)", (4, 6)),
    "Gemm transA": ("[6, 5]", "Gemm<transA = 1>(x, w)", (6, 4)),
    "Gemm, weight on the left": ("[6, 5]", "Gemm(w, x)", (4, 6)),
    "Gemm, all turned": ("[5, 6]", "Gemm<transA = 1, transB = 1>(w, x)", (6, 4)),
    "MatMul": ("[5, 6]", "MatMul(x, w)", (6, 4)),
    "MatMul batched": ("[2, 3, 5, 6]", "MatMul(x, w)", (6, 4)),
    "MatMul, weight on the left": ("[2, 6, 5]", "MatMul(w, x)", (4, 6)),
    "MatMul, one activation times many matrices": ("[5, 6]", "MatMul(x, w)", (3, 6, 4)),
    "Einsum": ("[2, 6, 5]", 'Einsum<equation = "ncp,oc->nop">(x, w)', (4, 6)),
    "Einsum, implied": ("[2, 6, 5]", 'Einsum<equation = "ncp, oc">(x, w)', (4, 6)),
    "Einsum, weight first": ("[2, 6, 5]", 'Einsum<equation = "oc,ncp->onp">(w, x)', (4, 6)),
    "Einsum, two summed": ("[2, 5, 3, 4]", 'Einsum<equation = "bqhd,ehd->bqe">(x, w)', (7, 3, 4)),
    "Einsum, two made": ("[2, 5, 6]", 'Einsum<equation = "bte,dhe->hbtd">(x, w)', (3, 4, 6)),
}


@pytest.mark.parametrize("name", CONVS)
def test_convolutions(name: str) -> None:
    shape, op, size = CONVS[name]
    rng = np.random.default_rng(0)
    width = size[1] * 3 if "groups" in name and "transposed" in name else size[0]
    width = size[1] if "transposed" in name and "groups" not in name else width
    weights = {"w": rng.standard_normal(size), "b": rng.standard_normal(width)}
    inputs = "(x, w, b)" if name in ("pads", "transposed") else "(x, w)"
    check(shape, op + inputs, {key: value.astype(np.float32) for key, value in weights.items()})


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str) -> None:
    shape, op, size = PRODUCTS[name]
    weight = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    check(shape, op, {"w": weight})


def check(shape: str, op: str, weights: dict[str, Any]) -> None:
    head = '<ir_version: 8, opset_import: ["": 17]>'
    proto = parse(f"{head} g (float{shape} x) => (float[] y) {{ y = {op} }}", weights)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    check_regression(*the_layer(proto))


def no_regression(op: str, *shape: int) -> None:
    head = '<ir_version: 8, opset_import: ["": 17]>'
    weight = np.ones(shape, np.float32)
    proto = parse(f"{head} g (float[2, 3, 4] x) => (float[] y) {{ y = {op} }}", {"w": weight})
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    subject = traced(proto)
    assert linear_layer(subject.model.graph[0], subject.coupling, 17) is None
    assert replaceable_layers(subject.model, subject.coupling) == []


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        ("MatMul(x, w)", (2, 4, 5)),
        ("MatMul(x, w)", (4,)),
        ('Einsum<equation = "nab,nbc->nac">(x, w)', (2, 4, 5)),
        ('Einsum<equation = "nab,b->nab">(x, w)', (4,)),
        ('Einsum<equation = "nab,bc->nc">(x, w)', (4, 5)),
        ('Einsum<equation = "nab,bc,c->nac">(x, w, w)', (4, 4)),
        ('Einsum<equation = "...b,bc->...c">(x, w)', (4, 5)),
        ("MatMul(x, x)", (1,)),
        ("Mul(x, w)", (4,)),
    ],
)
def test_what_is_no_regression(op: str, shape: tuple[int, ...]) -> None:
    """Stacks of matrices, products with vectors, sums over rows, three factors, two activations."""
    if ",c->" in op:
        op = op.replace("(x, w, w)", "(x, w, v)")
        head = '<ir_version: 8, opset_import: ["": 17]>'
        weights = {"w": np.ones((4, 5), np.float32), "v": np.ones(5, np.float32)}
        proto = parse(f"{head} g (float[2, 3, 4] x) => (float[2, 3, 5] y) {{ y = {op} }}", weights)
        subject = traced(proto)
        assert linear_layer(subject.model.graph[0], subject.coupling, 17) is None
        return
    if "x, x" in op:
        op = "MatMul(x, t)"
        head = '<ir_version: 8, opset_import: ["": 17]>'
        body = f"{{ t = Transpose<perm = [0, 2, 1]>(x) y = {op} }}"
        subject = traced(parse(f"{head} g (float[2, 3, 4] x) => (float[2, 3, 3] y) {body}"))
        assert linear_layer(subject.model.graph[1], subject.coupling, 17) is None
        return
    no_regression(op, *shape)


@settings(max_examples=150)
@given(data=st.data())
def test_random_readers_of_a_cut_map(data: st.DataObject) -> None:
    """Regression, kept unknowns and kept outputs, whatever the attributes of the reader."""
    rank = data.draw(st.sampled_from((1, 2, 3)), "rank")
    reader = data.draw(st.sampled_from((*ON_MAPS, *ON_VECTORS)), "reader")
    net = Net(lambda options: data.draw(st.sampled_from(options)), 3, 17)
    hidden, weight = producer(net, WIDTH, (), rank)
    result = reader(net, Map(hidden, (WIDTH, *SIZES[rank])))
    back = net.op("Relu", result)
    proto = network(net, [3, *SIZES[rank]], [back])
    note(onnx.printer.to_text(proto))
    assume("ncp,co->on" not in onnx.printer.to_text(proto))
    subject, layer = the_layer(proto)
    check_regression(subject, layer)
    classes = subject.units(weight, 0)
    cut = subject.cut(subject.closed([int(classes[1]), int(classes[4])]))
    kept = layer.kept_unknowns(cut)
    assert kept is not None
    assert not kept.all()
    np.testing.assert_array_equal(kept, seen_by_rows(layer, cut))
    np.testing.assert_array_equal(layer.kept_outputs(cut), True)


def seen_by_rows(layer: LinearLayer, cut: Any) -> Any:
    """Unknowns that are anywhere not zero when what is removed is zero and all the rest one."""
    ones = np.ones(layer.data_shape, np.float32)
    for label in cut.coupling.tensors[layer.data].axis_labels:
        alive = cut.alive(label).transpose(np.argsort(label.axes))
        ones *= alive.reshape([n if a in label.axes else 1 for a, n in enumerate(ones.shape)])
    return layer.rows(ones, np.arange(layer.rows_of(ones.shape))).max(axis=0) > 0


@pytest.mark.parametrize("turned", [False, True])
def test_kept_outputs_of_what_makes_the_units(turned: bool) -> None:
    """Heads: the units of a three-dimensional weight are cut along two axes at once."""
    equation = "bte,hde->bthd" if turned else "bte,ehd->bhtd"
    body = f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 5, 6] x) => (float[N, 5, 7] y)
        {{ q = Einsum<equation = "{equation}">(x, w)
           h = Relu(q)
           y = Einsum<equation = "{equation[-4:]},hdo->bto">(h, v) }}"""
    rng = np.random.default_rng(0)
    sizes = {"w": (3, 4, 6) if turned else (6, 3, 4), "v": (3, 4, 7)}
    proto = parse(body, {k: rng.standard_normal(s).astype(np.float32) for k, s in sizes.items()})
    subject = traced(proto)
    first, last = replaceable_layers(subject.model, subject.coupling)
    assert sorted(group.size for group in subject.groups) == [3, 4]
    cut = subject.cut(subject.closed([int(group.units[1]) for group in subject.groups]))
    kept = last.kept_unknowns(cut)
    assert kept is not None
    np.testing.assert_array_equal(kept, seen_by_rows(last, cut))
    made = first.kept_outputs(cut)
    assert made.sum() == kept.sum() == 2 * 3
    assert last.kept_outputs(cut).all()
    assert first.kept_unknowns(cut).all()


def test_rows_that_differ_have_no_common_unknowns() -> None:
    """A label over rows and unknowns at once, or over rows alone, is none of a regression."""
    proto = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 5, 6] x) => (float[N, 5, 7] y) { y = MatMul(x, w) }""",
        {"w": np.ones((6, 7), np.float32)},
    )
    _, layer = the_layer(proto)
    for axes in ((1,), (1, 2), (0,)):
        shape = [layer.data_shape[axis] for axis in axes]
        atoms = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
        assert layer.unknowns(AxisLabel(axes, atoms), atoms) is None
    atoms = np.arange(6, dtype=np.int32)
    np.testing.assert_array_equal(layer.unknowns(AxisLabel((2,), atoms), atoms), atoms[None])


def test_layers_whose_weight_is_not_theirs_alone_are_not_replaceable() -> None:
    """Read twice, a graph output, dequantised, whole numbers; behind a Transpose it is."""
    body = """<ir_version: 10, opset_import: ["": 17]>
        g (float[N, 6] x) => (float[N, 6] y, float[6, 6] kept)
        { a = MatMul(x, shared)
          b = MatMul(a, shared)
          turned = Transpose<perm = [1, 0]>(own)
          c = MatMul(b, turned)
          kept = Identity(given)
          d = MatMul(c, given)
          whole = DequantizeLinear(quantised, scale)
          e = MatMul(d, whole)
          n = Cast<to = 6>(e)
          m = MatMul(n, counts)
          f = Cast<to = 1>(m)
          y = Gemm(f, plain) }"""
    eye = np.eye(6, dtype=np.float32)
    weights: dict[str, Any] = dict.fromkeys(("shared", "own", "given", "plain"), eye)
    weights |= {"quantised": eye.astype(np.int8), "scale": np.array(0.1, np.float32)}
    weights["counts"] = np.eye(6, dtype=np.int32)
    subject = traced(parse(body, weights))
    found = [layer.weight for layer in replaceable_layers(subject.model, subject.coupling)]
    assert found == ["turned", "plain"]
