"""Which additions have a branch that can be taken out, and what goes with it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.oracle import ONE_THREAD, feed, outputs
from helpers.reducing import Weights, graph, weights

from onnxprune.coupling.trace import trace
from onnxprune.model.load import load
from onnxprune.model.observe import observe
from onnxprune.surgery.blocks.fused_sums import separated_sums
from onnxprune.surgery.blocks.residual import (
    ResidualBlock,
    fold_added_constants,
    remove_block,
    residual_blocks,
)
from onnxprune.surgery.editable_model import EditableModel

SQUARE = weights(a=(4, 4), b=(4, 4))


def found(body: str, values: Weights | None = None, out: str = "N, 4") -> list[ResidualBlock]:
    proto = graph(f"(float[N, 4] x) => (float[{out}] y)", body, values or SQUARE)
    model = load(proto).model
    return residual_blocks(model.graph, observe(model, ONE_THREAD, np.random.default_rng(0)))


@pytest.mark.parametrize("operands", ["x, f", "f, x"])
def test_branch_may_be_either_operand(operands: str) -> None:
    (block,) = found(f"h = MatMul (x, a) r = Relu (h) f = MatMul (r, b) y = Add ({operands})")
    assert (block.name, block.stream, block.branch) == ("y", "x", "f")
    assert block.nodes == ("h", "r", "f")
    assert (block.axis, block.parameters, block.macs) == (1, 32, 2 * 2 * 16)


def test_pre_norm_and_post_norm() -> None:
    norms = weights(a=(4, 4), b=(4, 4), s=(4,))
    pre = "n = LayerNormalization (x, s) f = MatMul (n, a) y = Add (x, f)"
    assert [block.nodes for block in found(pre, norms)] == [("n", "f")]
    post = "f = MatMul (x, a) z = Add (x, f) y = LayerNormalization (z, s)"
    assert [block.nodes for block in found(post, norms)] == [("f",)]


def test_blocks_one_after_another() -> None:
    blocks = found("f = MatMul (x, a) z = Add (x, f) g = MatMul (z, b) y = Add (z, g)")
    assert [(block.name, block.nodes) for block in blocks] == [("z", ("f",)), ("y", ("g",))]


def test_shortcut_with_one_layer_keeps_the_longer_side_removable() -> None:
    body = "s = MatMul (x, a) h = MatMul (x, b) r = Relu (h) f = MatMul (r, c) y = Add (s, f)"
    (block,) = found(body, weights(a=(4, 4), b=(4, 4), c=(4, 4)))
    assert (block.stream, block.nodes) == ("s", ("h", "r", "f"))


def test_parallel_branches_leave_the_stream() -> None:
    """(x + f(x)) + g(x): x itself must not go, though more nodes would."""
    body = "f = MatMul (x, a) p = Add (x, f) g = MatMul (x, b) y = Add (p, g)"
    assert [(block.stream, block.branch) for block in found(body)] == [("x", "f"), ("p", "g")]


@pytest.mark.parametrize(
    "body",
    [
        "f = MatMul (x, a) i = Identity (f) y = Add (x, i)",
        "f = MatMul (x, a) i = Dropout (f) y = Add (x, i)",
        "c = Cast <to = 1> (x) f = MatMul (c, a) i = Cast <to = 1> (f) y = Add (x, i)",
        "f = MatMul (x, a) i = Mul (f, s) y = Add (x, i)",
        """xq = QuantizeLinear (x, t, z) xd = DequantizeLinear (xq, t, z) f = MatMul (xd, a)
           fq = QuantizeLinear (f, t, z) i = DequantizeLinear (fq, t, z) w = Add (xd, i)
           wq = QuantizeLinear (w, t, z) y = DequantizeLinear (wq, t, z)""",
    ],
    ids=["identity", "dropout", "cast", "scale", "quantised"],
)
def test_what_lies_between_a_branch_and_its_sum_goes_with_it(body: str) -> None:
    values = {
        **SQUARE,
        **weights(s=(4,)),
        "t": np.array(0.1, np.float32),
        "z": np.array(0, np.int8),
    }
    (block,) = found(body, values)
    assert {"f", "i"} <= set(block.nodes)


def test_shortcut_whose_weight_is_computed_from_constants() -> None:
    body = """w = DequantizeLinear (q, t, z) s = MatMul (x, w) h = MatMul (x, a) r = Relu (h)
              f = MatMul (r, b) y = Add (s, f)"""
    values = {**SQUARE, "q": np.arange(16, dtype=np.int8).reshape(4, 4)}
    values |= {"t": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    (block,) = found(body, values)
    assert (block.stream, block.shortcut) == ("s", 1)


@pytest.mark.parametrize(
    "body",
    [
        "f = MatMul (x, a) z = Add (x, f) y = Add (z, f)",
        "f = Relu (x) y = Add (x, f)",
        "f = MatMul (x, a) y = Mul (x, f)",
        "f = MatMul (x, v) y = Add (x, f)",
        "f = MatMul (x, a) g = MatMul (f, b) h = MatMul (x, b) k = MatMul (h, a) y = Add (g, k)",
    ],
    ids=["read twice", "no weights", "no addition", "broadcast", "two layers beside it"],
)
def test_what_is_no_block(body: str) -> None:
    assert found(body, weights(a=(4, 4), b=(4, 4), v=(4, 1))) == []


def test_removed_branch_leaves_its_mean() -> None:
    body = "h = MatMul (x, a) f = MatMul (h, b) y = Add (x, f)"
    proto = graph("(float[N, 4] x) => (float[N, 4] y)", body, SQUARE)
    model = load(proto).model
    (block,) = residual_blocks(model.graph, observe(model, ONE_THREAD, np.random.default_rng(0)))
    mean = np.arange(4.0)
    remove_block(model.graph, block, mean)
    result = ir.to_proto(model)
    onnx.checker.check_model(result, full_check=True)
    assert [node.op_type for node in result.graph.node] == ["Add"]
    assert len(result.graph.initializer) == 1
    inputs = feed(proto, 3)
    np.testing.assert_allclose(outputs(result, inputs)["y"], inputs["x"] + mean, rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("h = MatMul (x, a) y = Add (h, c)", ["MatMul", "Add"]),
        ("h = Gemm (x, a, k) y = Add (h, c)", ["Gemm"]),
        ("g = MatMul (x, a) h = Add (g, k) y = Add (c, h)", ["MatMul", "Add"]),
        ("h = Add (x, k) y = Add (h, c)", ["Add"]),
        ("g = Gemm (x, a, k) h = Add (x, g) y = Add (h, c)", ["Gemm", "Add"]),
        ("g = Gemm (x, a, k) h = Relu (g) y = Add (h, c)", ["Gemm", "Relu", "Add"]),
    ],
    ids=["no bias", "bias", "bias behind it", "two constants", "through a sum", "activation"],
)
def test_added_constants_go_into_a_bias(body: str, left: list[str]) -> None:
    values = weights(a=(4, 4), k=(4,), c=(4,))
    proto = graph("(float[N, 4] x) => (float[N, 4] y)", body, values)
    model = load(proto).model
    facts = observe(model, ONE_THREAD, np.random.default_rng(0))
    target = EditableModel(model, trace(model, facts))
    fold_added_constants(target, ["y"])
    result = ir.to_proto(model)
    onnx.checker.check_model(result, full_check=True)
    assert [node.op_type for node in result.graph.node] == left
    inputs = feed(proto, 3)
    np.testing.assert_allclose(
        outputs(result, inputs)["y"], outputs(proto, inputs)["y"], rtol=1e-4, atol=1e-6
    )


def test_constant_behind_a_sum_of_many_terms_goes_into_a_bias() -> None:
    """The layer is searched once, however many additions a Sum becomes."""
    others = [f"r{number}" for number in range(63)]
    body = " ".join(f"{name} = Relu (x)" for name in others)
    body += f" g = Gemm (x, a, k) h = Sum ({', '.join(['g', *others])}) y = Add (h, c)"
    values = weights(a=(4, 4), k=(4,), c=(4,))
    proto = graph("(float[N, 4] x) => (float[N, 4] y)", body, values)
    model = separated_sums(load(proto).model)
    facts = observe(model, ONE_THREAD, np.random.default_rng(0))
    target = EditableModel(model, trace(model, facts))
    assert fold_added_constants(target, ["y"]) == ["y"]
    inputs = feed(proto, 3)
    wanted, folded = outputs(proto, inputs)["y"], outputs(ir.to_proto(model), inputs)["y"]
    np.testing.assert_allclose(folded, wanted, rtol=1e-4, atol=1e-5)
