"""Widths of operators: read from shapes, put back into shapes, and runnable at other values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.oracle import ONE_THREAD, Traced, parse, traced
from numpy.typing import NDArray

from onnxprune.cost.latency.kernels import Widths
from onnxprune.cost.latency.probe import Kernel, kernel_of, time_kernel
from onnxprune.errors import RuntimeFailure
from onnxprune.model.inputs import overridable


def subject(body: str, weights: dict[str, NDArray[Any]], inputs: str) -> Traced:
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g ({inputs}) => (float y) {{ {body} }}"""
    proto = parse(text, weights)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return traced(proto)


def kernel(body: str, weights: dict[str, tuple[int, ...]], inputs: str, op: str) -> Kernel:
    filled = {name: np.ones(shape, np.float32) for name, shape in weights.items()}
    return found(subject(body, filled, inputs), op)


def found(one: Traced, op: str) -> Kernel:
    facts = one.coupling.facts
    node = next(node for node in one.model.graph if node.op_type == op)
    free = overridable(one.model)
    constants = {name: value for name, value in facts.constants.items() if name not in free}
    result = kernel_of(node, facts.first.shapes.__getitem__, constants, one.model.opset_imports)
    assert result is not None
    return result


IMAGE = "float[2, 8, 6, 6] x"
CASES = [
    ("Conv(x, w, b)", {"w": (4, 8, 3, 3), "b": (4,)}, IMAGE, (1, 8, 4), (1, 5, 3)),
    ("Conv<group = 8>(x, w, b)", {"w": (8, 1, 3, 3), "b": (8,)}, IMAGE, (8, 1, 1), (5, 1, 1)),
    ("Conv<group = 2>(x, w)", {"w": (6, 4, 1, 1)}, IMAGE, (2, 4, 3), (1, 2, 3)),
    ("ConvTranspose(x, w, b)", {"w": (8, 4, 3, 3), "b": (4,)}, IMAGE, (1, 8, 4), (1, 5, 3)),
    ("ConvTranspose<group = 2>(x, w)", {"w": (8, 3, 1, 1)}, IMAGE, (2, 4, 3), (2, 3, 2)),
    ("Gemm(x, w, b)", {"w": (8, 5), "b": (5,)}, "float[3, 8] x", (3, 8, 5), (3, 6, 2)),
    (
        "Gemm<transA = 1, transB = 1>(x, w, b)",
        {"w": (5, 8), "b": (3, 5)},
        "float[8, 3] x",
        (3, 8, 5),
        (2, 6, 4),
    ),
    ("MatMul(x, w)", {"w": (8, 5)}, "float[2, 3, 8] x", (1, 6, 8, 5), (1, 6, 3, 2)),
    ("MatMul(x, v)", {}, "float[2, 4, 3, 8] x, float[2, 4, 8, 5] v", (8, 3, 8, 5), (6, 3, 7, 5)),
    (
        "LSTM<hidden_size = 4>(x, w, r, b)",
        {"w": (1, 16, 8), "r": (1, 16, 4), "b": (1, 32)},
        "float[3, 2, 8] x",
        (8, 4),
        (5, 3),
    ),
    (
        "GRU<hidden_size = 4>(x, w, r)",
        {"w": (1, 12, 8), "r": (1, 12, 4)},
        "float[3, 2, 8] x",
        (8, 4),
        (5, 3),
    ),
]


@pytest.mark.parametrize(("call", "weights", "inputs", "widths", "others"), CASES)
def test_widths_are_read_from_shapes_and_put_back(
    call: str, weights: dict[str, tuple[int, ...]], inputs: str, widths: Widths, others: Widths
) -> None:
    op = call.split("(")[0].split("<")[0]
    one = kernel(f"y = {call}", weights, inputs, op)
    family = one.family
    assert one.widths == widths
    same = family.resized(family.slots, one.shapes, widths, widths)
    assert [np.prod(shape) for shape in same] == [np.prod(shape) for shape in one.shapes]
    assert time_kernel(one, widths, ONE_THREAD) > 0
    assert time_kernel(one, others, ONE_THREAD) > 0


def test_kernels_that_differ_in_widths_only_share_a_key() -> None:
    first = kernel("y = Conv(x, w)", {"w": (4, 8, 3, 3)}, IMAGE, "Conv")
    second = kernel("y = Conv(x, w)", {"w": (6, 8, 3, 3)}, IMAGE, "Conv")
    assert first.key() == second.key()
    for body, inputs in (
        ("y = Conv<strides = [2, 2]>(x, w)", IMAGE),
        ("y = Conv(x, w)", "float[2, 8, 7, 6] x"),
        ("y = Conv(x, w)", "float[1, 8, 6, 6] x"),
    ):
        other = kernel(body, {"w": (4, 8, 3, 3)}, inputs, "Conv")
        assert other.key() != first.key(), (body, inputs)


def test_a_kernel_is_repeated_by_computing_more_samples() -> None:
    one = kernel("y = Conv(x, w)", {"w": (4, 8, 3, 3)}, IMAGE, "Conv")
    assert one.repeated(3).shapes[0] == (6, 8, 6, 6)
    assert one.repeated(3).widths == one.widths
    rows = kernel("y = Gemm(x, w)", {"w": (8, 5)}, "float[3, 8] x", "Gemm")
    assert rows.repeated(3) is rows


def test_a_weight_that_may_be_overridden_is_fed() -> None:
    weight = {"w": np.ones((4, 8, 3, 3), np.float32)}
    fixed = subject("y = Conv(x, w)", weight, IMAGE)
    free = subject("y = Conv(x, w)", weight, f"{IMAGE}, float[4, 8, 3, 3] w")
    operands = [found(one, "Conv").operands[1] for one in (fixed, free)]
    assert [one is not None and one.constant for one in operands] == [True, False]


def test_a_quantised_layer_is_timed_as_one() -> None:
    body = """f = DequantizeLinear(x, s, z) v = DequantizeLinear(w, s, n)
        h = Conv(f, v) q = QuantizeLinear(h, s, z) y = DequantizeLinear(q, s, z)"""
    weights = {
        "w": np.ones((4, 8, 3, 3), np.int8),
        "s": np.array(0.1, np.float32),
        "z": np.array(3, np.uint8),
        "n": np.array(0, np.int8),
    }
    one = found(subject(body, weights, "uint8[2, 8, 6, 6] x"), "Conv")
    data, weight = one.operands[:2]
    assert data is not None
    assert weight is not None
    assert (data.dtype.name, data.quantised, data.constant) == ("UINT8", True, False)
    assert (weight.dtype.name, weight.quantised, weight.constant) == ("INT8", True, True)
    assert one.quantised_output is not None
    assert one.quantised_output.name == "UINT8"
    assert time_kernel(one, (1, 5, 3), ONE_THREAD) > 0


def test_quantised_operators_are_timed() -> None:
    weights = {
        "w": np.ones((4, 8, 3, 3), np.int8),
        "s": np.array(0.1, np.float32),
        "t": np.full(4, 0.1, np.float32),
        "z": np.array(3, np.uint8),
        "n": np.zeros(4, np.int8),
    }
    body = "q = QLinearConv(x, s, z, w, t, n, s, z) y = DequantizeLinear(q, s, z)"
    one = found(subject(body, weights, "uint8[2, 8, 6, 6] x"), "QLinearConv")
    assert one.widths == (1, 8, 4)
    assert time_kernel(one, (1, 5, 3), ONE_THREAD) > 0


def test_other_operators_are_not_timed_alone() -> None:
    one = subject("y = Relu(x)", {}, IMAGE)
    facts = one.coupling.facts
    node = next(iter(one.model.graph))
    shapes = facts.first.shapes.__getitem__
    assert kernel_of(node, shapes, facts.constants, one.model.opset_imports) is None


def test_what_onnxruntime_refuses_is_a_runtime_failure() -> None:
    one = kernel("y = Conv(x, w)", {"w": (4, 8, 3, 3)}, IMAGE, "Conv")
    with pytest.raises(RuntimeFailure, match=r"Conv at \(1, 8, 4\) does not run alone"):
        time_kernel(replace(one, opsets={"": 9999}), one.widths, ONE_THREAD)
