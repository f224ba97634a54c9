"""Multiply-accumulates against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from helpers.oracle import parse, traced
from numpy.typing import NDArray

from onnxprune.cost.macs import node_macs


def macs(node: str, weights: dict[str, tuple[int, ...]], inputs: str, output: str) -> int:
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g ({inputs}) => ({output} y) {{ y = {node} }}"""
    values: dict[str, NDArray[Any]] = {
        name: np.ones(shape, np.float32) for name, shape in weights.items()
    }
    subject = traced(parse(text, values))
    shapes = subject.coupling.facts.first.shapes
    return node_macs(next(iter(subject.model.graph)), shapes.__getitem__)


IMAGE = "float[2, 6, 8, 8] x"
MAP = "float[a, b, c, d]"


@pytest.mark.parametrize(
    ("node", "weight", "wanted"),
    [
        ("Conv(x, w)", (4, 6, 3, 3), 2 * 4 * 6 * 6 * (6 * 9)),
        ("Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w)", (4, 6, 3, 3), 2 * 4 * 4 * 4 * 54),
        ("Conv<dilations = [2, 2]>(x, w)", (4, 6, 3, 3), 2 * 4 * 4 * 4 * 54),
        ("Conv<group = 2>(x, w)", (4, 3, 1, 1), 2 * 4 * 8 * 8 * 3),
        ("Conv<group = 6>(x, w)", (6, 1, 3, 3), 2 * 6 * 6 * 6 * 9),
        ("ConvTranspose(x, w)", (6, 4, 3, 3), 2 * 6 * 8 * 8 * (4 * 9)),
        ("ConvTranspose<strides = [2, 2]>(x, w)", (6, 4, 2, 2), 2 * 6 * 8 * 8 * (4 * 4)),
        ("ConvTranspose<group = 2>(x, w)", (6, 2, 1, 1), 2 * 6 * 8 * 8 * 2),
        ("MatMul(x, w)", (8, 5), 2 * 6 * 8 * 5 * 8),
        ("MatMul(w, x)", (5, 8), 2 * 6 * 5 * 8 * 8),
        ('Einsum<equation = "abcd,de->abce">(x, w)', (8, 5), 2 * 6 * 8 * 8 * 5),
        ('Einsum<equation = "abcd,bk->acdk">(x, w)', (6, 3), 2 * 6 * 8 * 8 * 3),
        ('Einsum<equation = "...d,de->...e">(x, w)', (8, 5), 2 * 6 * 8 * 8 * 5),
    ],
)
def test_macs_of_a_node(node: str, weight: tuple[int, ...], wanted: int) -> None:
    assert macs(node, {"w": weight}, IMAGE, MAP) == wanted


@pytest.mark.parametrize(
    ("node", "shape", "weight"),
    [
        ("Gemm(x, w)", "7, 3", (3, 5)),
        ("Gemm<transA = 1>(x, w)", "3, 7", (3, 5)),
        ("Gemm<transB = 1>(x, w)", "7, 3", (5, 3)),
        ("Gemm<transA = 1, transB = 1>(x, w)", "3, 7", (5, 3)),
    ],
)
def test_macs_of_gemm(node: str, shape: str, weight: tuple[int, ...]) -> None:
    assert macs(node, {"w": weight}, f"float[{shape}] x", "float[a, b]") == 7 * 5 * 3


def test_products_with_a_vector() -> None:
    assert macs("MatMul(x, w)", {"w": (8,)}, "float[4, 8] x", "float[a]") == 4 * 8
    assert macs("MatMul(w, x)", {"w": (4,)}, "float[4, 8] x", "float[a]") == 8 * 4


def test_everything_else_is_free() -> None:
    assert macs("Mul(x, w)", {"w": (8,)}, IMAGE, MAP) == 0
    custom = ir.Node("their.domain", "Conv", [ir.Value(name="x"), ir.Value(name="w")])
    assert node_macs(custom, {"x": (1, 2, 3), "w": (1, 2, 3)}.__getitem__) == 0


def test_a_node_of_unknown_shape_counts_nothing() -> None:
    node = ir.Node("", "MatMul", [ir.Value(name="x"), ir.Value(name="w")])
    assert node_macs(node, {"x": (2, 3)}.__getitem__) == 0


def macs_of_shapes(
    op_type: str,
    inputs: list[tuple[int, ...] | None],
    outputs: list[tuple[int, ...]],
    domain: str = "",
    **attributes: Any,
) -> int:
    """Count a node that need not run; None is an input left out."""
    given = [None if shape is None else ir.Value(name=f"i{n}") for n, shape in enumerate(inputs)]
    node = ir.Node(
        domain,
        op_type,
        given,
        ir.convenience.convert_attributes(attributes),
        outputs=[ir.Value(name=f"o{n}") for n in range(len(outputs))],
    )
    shapes = {f"i{n}": shape for n, shape in enumerate(inputs) if shape is not None}
    shapes |= {f"o{n}": shape for n, shape in enumerate(outputs)}
    return node_macs(node, shapes.__getitem__)


IMAGES, KERNEL, MAPS = (2, 6, 8, 8), (4, 6, 3, 3), (2, 4, 6, 6)
SCALE: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("op_type", "domain", "inputs"),
    [
        ("ConvInteger", "", [IMAGES, KERNEL]),
        ("DeformConv", "", [IMAGES, KERNEL, (2, 18, 6, 6)]),
        ("FusedConv", "com.microsoft", [IMAGES, KERNEL]),
        ("QLinearConv", "", [IMAGES, SCALE, SCALE, KERNEL, (4,), (4,), SCALE, SCALE]),
    ],
)
def test_every_form_of_a_convolution_counts_alike(
    op_type: str, domain: str, inputs: list[tuple[int, ...] | None]
) -> None:
    assert macs_of_shapes(op_type, inputs, [MAPS], domain) == 2 * 4 * 6 * 6 * (6 * 9)


@pytest.mark.parametrize(
    ("op_type", "domain", "inputs", "attributes"),
    [
        ("MatMulInteger", "", [(3, 7, 8), (8, 5)], {}),
        ("QLinearMatMul", "", [(3, 7, 8), SCALE, SCALE, (8, 5), SCALE, SCALE, SCALE, SCALE], {}),
        ("MatMulIntegerToFloat", "com.microsoft", [(3, 7, 8), (8, 5), SCALE, SCALE], {}),
        ("DynamicQuantizeMatMul", "com.microsoft", [(3, 7, 8), (8, 5), SCALE], {}),
        ("MatMulNBits", "com.microsoft", [(3, 7, 8), (5, 1, 4), (5,)], {"K": 8, "N": 5}),
        ("FusedMatMul", "com.microsoft", [(3, 7, 8), (8, 5)], {}),
        ("FusedMatMul", "com.microsoft", [(3, 8, 7), (8, 5)], {"transA": 1}),
        ("FusedMatMul", "com.microsoft", [(3, 7, 8), (5, 8)], {"transB": 1}),
        ("FusedMatMul", "com.microsoft", [(7, 3, 8), (8, 5)], {"transBatchA": 1}),
        ("FusedMatMul", "com.microsoft", [(8, 3, 7), (8, 5)], {"transA": 1, "transBatchA": 1}),
    ],
)
def test_every_form_of_a_matrix_product_counts_alike(
    op_type: str, domain: str, inputs: list[tuple[int, ...] | None], attributes: dict[str, Any]
) -> None:
    found = macs_of_shapes(op_type, inputs, [(3, 7, 5)], domain, **attributes)
    assert found == 3 * 7 * 5 * 8


@pytest.mark.parametrize("op_type", ["FusedGemm", "QGemm"])
def test_every_form_of_gemm_counts_alike(op_type: str) -> None:
    inputs: list[tuple[int, ...] | None] = [(8, 7), (8, 5), (5,), (8, 5)]
    assert macs_of_shapes(op_type, inputs, [(7, 5)], "com.microsoft", transA=1) == 7 * 5 * 8


@pytest.mark.parametrize(("op_type", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_layers_multiply_both_weights_at_every_step(
    op_type: str, gates: int, directions: int
) -> None:
    length, batch, size, hidden = 5, 3, 6, 4
    weights = [(directions, gates * hidden, size), (directions, gates * hidden, hidden)]
    found = macs_of_shapes(
        op_type, [(length, batch, size), *weights], [(length, directions, batch, hidden)]
    )
    assert found == length * batch * directions * gates * hidden * (size + hidden)


BATCH, HEADS, LENGTH, KEYS, DIM, VALUE = 2, 3, 5, 7, 4, 6
SCORES = BATCH * HEADS * LENGTH * KEYS * DIM
MIXED = BATCH * HEADS * LENGTH * KEYS * VALUE


@pytest.mark.parametrize("past", [0, 2])
def test_attention_of_four_axes(past: int) -> None:
    fresh = KEYS - past
    inputs: list[tuple[int, ...] | None] = [
        (BATCH, HEADS, LENGTH, DIM),
        (BATCH, HEADS, fresh, DIM),
        (BATCH, HEADS, fresh, VALUE),
        None,
    ]
    inputs += [(BATCH, HEADS, past, DIM), (BATCH, HEADS, past, VALUE)] if past else []
    output = (BATCH, HEADS, LENGTH, VALUE)
    assert macs_of_shapes("Attention", inputs, [output]) == SCORES + MIXED


def test_attention_of_three_axes_with_grouped_keys() -> None:
    """Each of the 3 query heads meets all keys, however few key heads there are."""
    inputs: list[tuple[int, ...] | None] = [
        (BATCH, LENGTH, HEADS * DIM),
        (BATCH, KEYS, DIM),
        (BATCH, KEYS, VALUE),
    ]
    output = (BATCH, LENGTH, HEADS * VALUE)
    found = macs_of_shapes("Attention", inputs, [output], q_num_heads=HEADS, kv_num_heads=1)
    assert found == SCORES + MIXED


def test_multi_head_attention_in_its_layouts() -> None:
    query, width = (BATCH, LENGTH, HEADS * DIM), HEADS * VALUE
    outputs = [(BATCH, LENGTH, width)]
    flat: list[tuple[int, ...] | None] = [query, (BATCH, KEYS, HEADS * DIM), (BATCH, KEYS, width)]
    cross: list[tuple[int, ...] | None] = [
        query,
        (BATCH, HEADS, KEYS, DIM),
        (BATCH, HEADS, KEYS, VALUE),
    ]
    for inputs in (flat, cross):
        found = macs_of_shapes("MultiHeadAttention", inputs, outputs, "com.microsoft")
        assert found == SCORES + MIXED
    packed: list[tuple[int, ...] | None] = [(BATCH, LENGTH, HEADS, 3, DIM)]
    alike = macs_of_shapes("MultiHeadAttention", packed, [query], "com.microsoft")
    assert alike == 2 * BATCH * HEADS * LENGTH * LENGTH * DIM


@pytest.mark.parametrize(("op_type", "past"), [("Attention", 4), ("QAttention", 8)])
def test_packed_attention_projects_first(op_type: str, past: int) -> None:
    hidden, cached = 9, 2
    width = 2 * HEADS * DIM + HEADS * VALUE
    inputs: list[tuple[int, ...] | None] = [(BATCH, LENGTH, hidden), (hidden, width)]
    output = (BATCH, LENGTH, HEADS * VALUE)
    projections = BATCH * LENGTH * hidden * width
    found = macs_of_shapes(op_type, inputs, [output], "com.microsoft")
    pairs = BATCH * HEADS * LENGTH * LENGTH
    assert found == projections + pairs * (DIM + VALUE)
    inputs += [None] * (past - 2)
    inputs.append((2, BATCH, HEADS, cached, DIM))
    found = macs_of_shapes(op_type, inputs, [output], "com.microsoft")
    pairs = BATCH * HEADS * LENGTH * (LENGTH + cached)
    assert found == projections + pairs * (DIM + VALUE)


def test_group_query_attention_meets_the_whole_cache() -> None:
    output = (BATCH, LENGTH, HEADS * DIM)
    inputs: list[tuple[int, ...] | None] = [output, (BATCH, LENGTH, DIM), (BATCH, LENGTH, DIM)]
    present = (BATCH, 1, KEYS, DIM)
    found = macs_of_shapes("GroupQueryAttention", inputs, [output, present], "com.microsoft")
    assert found == 2 * SCORES
    alone = macs_of_shapes("GroupQueryAttention", inputs, [output], "com.microsoft")
    assert alone == 2 * BATCH * HEADS * LENGTH * LENGTH * DIM


BODIES = {
    "Loop": (
        """y = Loop(trips, go, x) <body = b (int64 i, bool c, float[2, 4] s)
            => (bool c2, float[2, 4] t) { c2 = Identity(c) t = MatMul(s, w) }>"""
    ),
    "Scan": (
        """final, y = Scan<num_scan_inputs = 1, body = b (float[4] s, float[4] row)
            => (float[4] u, float[4] t) { t = MatMul(row, w) u = Add(s, t) }>(state, x)"""
    ),
    "If": (
        """y = If(flag) <then_branch = a () => (float[2, 4] t) { t = MatMul(x, w) },
            else_branch = b () => (float[2, 4] e) { d = MatMul(x, w) e = MatMul(d, w) }>"""
    ),
}


@pytest.mark.parametrize(("op_type", "times"), [("Loop", 3), ("Scan", 2), ("If", 1.5)])
def test_bodies_count_as_often_as_they_run(op_type: str, times: float) -> None:
    """x [2, 4] times w [4, 4] is 32; a row of it is 16; one branch has a product, the other two."""
    body = BODIES[op_type]
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[2, 4] x) => (float[2, 4] y) {{ {body} }}"""
    weights: dict[str, NDArray[Any]] = {
        "w": np.eye(4, dtype=np.float32),
        "state": np.zeros(4, np.float32),
        "trips": np.array(3),
        "go": np.array(True),
        "flag": np.array(True),
    }
    subject = traced(parse(text, {k: v for k, v in weights.items() if k in body}))
    node = next(node for node in subject.model.graph if node.op_type == op_type)
    found = node_macs(node, subject.coupling.facts.first.shapes.__getitem__)
    assert found == times * (16 if op_type == "Scan" else 32)


@pytest.mark.parametrize(("trips", "times"), [(3, 3), (0, 0), (2**62, 1), (None, 1)])
def test_a_loop_without_a_limit_counts_once(trips: int | None, times: int) -> None:
    product = ir.Node("", "MatMul", [ir.Value(name="x"), ir.Value(name="w")])
    product.outputs[0].name = "t"
    body = ir.Graph([], [product.outputs[0]], nodes=[product])
    limit = ir.Value(name="n")
    if trips is not None:
        limit = ir.Value(name="n", const_value=ir.tensor(np.array(trips)))
    loop = ir.Node("", "Loop", [limit, None], [ir.AttrGraph("body", body)])
    shapes = {"x": (2, 4), "w": (4, 4), "t": (2, 4)}
    loop.outputs[0].name = "y"
    assert node_macs(loop, shapes.__getitem__) == times * 32
