"""Adding a vector to what a linear node computes: exactly that and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.oracle import Traced, difference, feed, outputs, parse, traced
from numpy.typing import NDArray

from onnxprune.coupling.cut import Cut
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.surgery.slicing import slice_removed, zero_removed

Arrays = dict[str, NDArray[Any]]


def arrays(**shapes: tuple[int, ...]) -> Arrays:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def model(body: str, weights: Arrays, shape: str, result: str) -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[{shape}] x) => ({result}) {{ {body} }}"""
    return parse(text, weights)


def added(subject: Traced, name: str, delta: NDArray[np.float64]) -> EditableModel:
    full = EditableModel(subject.model.clone(), subject.coupling)
    full.add_to_output(full.nodes[name], delta, np.dtype(np.float32))
    return full


def check(proto: onnx.ModelProto, name: str, delta: NDArray[np.float64]) -> onnx.ModelProto:
    """Output `y` is `name` as the original has it, plus delta; other outputs stay."""
    result = ir.to_proto(added(traced(proto), name, delta).model)
    onnx.checker.check_model(result, full_check=True)
    assert list(result.graph.output) == list(proto.graph.output)
    fed = feed(proto, 3)
    before, after = outputs(proto, fed), outputs(result, fed)
    wanted = before | {"y": (before["y"] + delta).astype(np.float32)}
    assert difference(wanted, after) < 1e-6
    return result


def kinds(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


VECTOR = np.array([1.0, -2.0, 3.0, 4.0])
BY_CHANNEL = VECTOR.reshape(1, 4, 1, 1)
ROW = VECTOR.reshape(1, 4)
MAP, MAP_OUT = "N, 3, 5, 5", "float[N, 4, a, b] y"
FLAT, FLAT_OUT = "N, 3", "float[N, 4] y"


@pytest.mark.parametrize("node", ["Conv(x, w", "ConvTranspose(x, w"])
@pytest.mark.parametrize("bias", ["", ", b"])
def test_convolutions_take_it_into_their_bias(node: str, bias: str) -> None:
    weights = arrays(w=(4, 3, 2, 2) if node.startswith("Conv(") else (3, 4, 2, 2), b=(4,))
    proto = model(f"y = {node}{bias})", weights, MAP, MAP_OUT)
    assert len(check(proto, "y", BY_CHANNEL).graph.node) == 1


@pytest.mark.parametrize(
    ("node", "shapes", "nodes"),
    [
        ("Gemm(x, w)", {}, 1),
        ("Gemm<beta = 2.0>(x, w)", {}, 1),
        ("Gemm<beta = 0.0>(x, w)", {}, 1),
        ("Gemm<alpha = 3.0>(x, w, c)", {"c": (4,)}, 1),
        ("Gemm<beta = 0.5>(x, w, c)", {"c": (4,)}, 1),
        ("Gemm<beta = -2.0>(x, w, c)", {"c": (1, 4)}, 1),
        ("Gemm<beta = 0.0>(x, w, c)", {"c": (4,)}, 2),
        ("Gemm(x, w, c)", {"c": (1,)}, 2),
        ("Gemm(x, w, c)", {"c": ()}, 2),
        ("Gemm(x, w, c)", {"c": (1, 1)}, 2),
    ],
)
def test_gemm_takes_it_where_its_addend_is_a_row(
    node: str, shapes: dict[str, tuple[int, ...]], nodes: int
) -> None:
    proto = model(f"y = {node}", arrays(w=(3, 4), **shapes), FLAT, FLAT_OUT)
    assert len(check(proto, "y", ROW).graph.node) == nodes


def test_a_computed_bias_is_left_alone() -> None:
    proto = model("b = ReduceMean<axes = [0, 2, 3], keepdims = 0>(e) y = Conv(x, w, b)",
                  arrays(w=(4, 3, 2, 2), e=(2, 4, 1, 1)), MAP, MAP_OUT)  # fmt: skip
    assert kinds(check(proto, "y", BY_CHANNEL)) == ["ReduceMean", "Conv", "Add"]


@pytest.mark.parametrize(
    ("body", "shapes", "nodes"),
    [
        ("m = MatMul(x, w) y = Add(m, b)", {"b": (4,)}, ["MatMul", "Add"]),
        ("m = MatMul(x, w) y = Add(b, m)", {"b": (4,)}, ["MatMul", "Add"]),
        ("m = MatMul(x, w) y = Add(m, b)", {"b": (1, 4)}, ["MatMul", "Add"]),
        ("m = MatMul(x, w) y = Add(m, b)", {"b": ()}, ["MatMul", "Add", "Add"]),
        ("m = MatMul(x, w) y = Identity(m)", {}, ["MatMul", "Add", "Identity"]),
        ("m = MatMul(x, w) t = Exp(b) y = Add(m, t)", {"b": (4,)}, ["MatMul", "Add", "Exp", "Add"]),
        ('m = Einsum<equation = "nk,kl->nl">(x, w) y = Add(m, b)', {"b": (4,)}, ["Einsum", "Add"]),
    ],
)
def test_the_add_behind_a_product_takes_it(
    body: str, shapes: dict[str, tuple[int, ...]], nodes: list[str]
) -> None:
    proto = model(body, arrays(w=(3, 4), **shapes), FLAT, FLAT_OUT)
    assert sorted(kinds(check(proto, "m", ROW))) == sorted(nodes)


def test_an_add_that_others_bypass_does_not() -> None:
    """The product has a second reader, which has to see the sum as well."""
    body = "m = MatMul(x, w) a = Add(m, b) y = Sub(a, m)"
    proto = model(body, arrays(w=(3, 4), b=(4,)), FLAT, FLAT_OUT)
    result = ir.to_proto(added(traced(proto), "m", ROW).model)
    fed = feed(proto, 3)
    assert kinds(result) == ["MatMul", "Add", "Add", "Sub"]
    assert difference(outputs(proto, fed), outputs(result, fed)) < 1e-5


def test_a_product_that_is_an_output_is_changed_itself() -> None:
    body = "y = MatMul(x, w) z = Relu(y)"
    proto = model(body, arrays(w=(3, 4)), FLAT, "float[N, 4] y, float[N, 4] z")
    result = ir.to_proto(added(traced(proto), "y", ROW).model)
    fed = feed(proto, 3)
    wanted = (outputs(proto, fed)["y"] + ROW).astype(np.float32)
    assert difference({"y": wanted, "z": np.maximum(wanted, 0)}, outputs(result, fed)) < 1e-6


@pytest.mark.parametrize("as_node", [False, True])
def test_a_bias_that_others_read_is_copied_first(as_node: bool) -> None:
    weights = arrays(w=(4, 3, 1, 1), v=(4, 3, 1, 1), b=(4,))
    body = "y = Conv(x, w, b) z = Conv(x, v, b) s = Neg(b)"
    if as_node:
        numbers = ", ".join(str(float(one)) for one in weights.pop("b"))
        body = f"b = Constant<value = float[4] {{{numbers}}}>() {body}"
    results = f"{MAP_OUT}, float[N, 4, a, b] z, float[4] s"
    check(model(body, weights, MAP, results), "y", BY_CHANNEL)


def test_a_replaced_constant_node_does_not_stay_behind() -> None:
    body = "b = Constant<value = float[4] {1, 2, 3, 4}>() y = Conv(x, w, b)"
    result = check(model(body, arrays(w=(4, 3, 1, 1)), MAP, MAP_OUT), "y", BY_CHANNEL)
    assert kinds(result) == ["Conv"]


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (1, 1, 5, 5), (1, 4, 5, 5), (1, 4, 5, 1)], ids=str)
def test_anything_of_the_outputs_rank_can_be_added(shape: tuple[int, ...]) -> None:
    delta = np.random.default_rng(1).standard_normal(shape)
    proto = model("y = Conv(x, w, b)", arrays(w=(4, 3, 1, 1), b=(4,)), MAP, MAP_OUT)
    check(proto, "y", delta)


def test_additions_add_up() -> None:
    """Into the bias, then behind the node, twice: names stay, every node stands in its order."""
    proto = model("y = Conv(x, w)", arrays(w=(4, 3, 1, 1)), MAP, MAP_OUT)
    subject = traced(proto)
    full = EditableModel(subject.model.clone(), subject.coupling)
    node, dtype = full.nodes["y"], np.dtype(np.float32)
    place = np.random.default_rng(1).standard_normal((1, 1, 5, 5))
    full.add_to_output(node, BY_CHANNEL, dtype)
    full.add_to_output(node, place, dtype)
    full.add_to_output(node, 2 * place, dtype)
    full.add_to_output(node, BY_CHANNEL, dtype)
    result, fed = ir.to_proto(full.model), feed(proto, 3)
    onnx.checker.check_model(result, full_check=True)
    assert kinds(result) == ["Conv", "Add", "Add"]
    wanted = (outputs(proto, fed)["y"] + 2 * BY_CHANNEL + 3 * place).astype(np.float32)
    assert difference({"y": wanted}, outputs(result, fed)) < 1e-6


CHAIN = """b = Constant<value = float[4] {1, 2, 3, 4}>()
    a = Conv(x, w, b) h = Relu(a) f = Conv(h, w2) y = Relu(f)"""


@pytest.mark.parametrize("bias", ["Conv(x, w, b)", "Conv(x, w)"])
@pytest.mark.parametrize("delta", [BY_CHANNEL, np.ones((1, 4, 5, 5)) * BY_CHANNEL], ids=["c", "m"])
def test_what_was_added_is_cut_with_the_channels_it_belongs_to(
    bias: str, delta: NDArray[np.float64]
) -> None:
    """Labels cover the new constants: masked and sliced model agree after a cut."""
    body = CHAIN.replace("Conv(x, w, b)", bias)
    proto = model(body, arrays(w=(4, 3, 1, 1), w2=(2, 4, 1, 1)), MAP, "float[N, 2, a, b] y")
    subject = traced(proto)
    full = added(subject, "a", delta)
    cut = Cut(full.coupling, subject.units("w", 0)[[0, 2]].tolist())
    masked, sliced = full.model.clone(), full.model
    zero_removed(masked, cut)
    slice_removed(sliced, cut)
    small = ir.to_proto(sliced)
    onnx.checker.check_model(small, full_check=True)
    fed = feed(proto, 3)
    assert difference(outputs(ir.to_proto(masked), fed), outputs(small, fed)) < 1e-6
    numbers = [one for one in small.graph.initializer if 4 in one.dims]
    assert not numbers, "nothing of four channels is left"


@pytest.mark.parametrize("made", ["Identity(v)", "Transpose(v)", "Cast<to = 1>(v)"])
def test_a_new_weight_keeps_the_name_that_its_reader_is_known_by(made: str) -> None:
    """Consumers say which weight they read by name, also after it was solved anew."""
    body = f"h = MatMul(x, u) r = Relu(h) w = {made} y = MatMul(r, w)"
    shape = (4, 6) if made.startswith("Transpose") else (6, 4)
    subject = traced(model(body, arrays(u=(3, 6), v=shape), FLAT, FLAT_OUT))
    full = EditableModel(subject.model.clone(), subject.coupling)
    node, wanted = full.nodes["y"], arrays(other=(6, 4))["other"]
    full.set_weight(node, 1, wanted)
    (weight,) = (one.weight for one in full.coupling.consumers if one.node == "y")
    assert weight in [value.name for value in node.inputs if value is not None]
    result = ir.to_proto(full.model)
    onnx.checker.check_model(result, full_check=True)
    fed = feed(result, 3)
    hidden = np.maximum(fed["x"] @ onnx.numpy_helper.to_array(result.graph.initializer[0]), 0)
    np.testing.assert_allclose(outputs(result, fed)["y"], hidden @ wanted, rtol=1e-5, atol=1e-5)
