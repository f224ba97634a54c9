"""The walk from the loss to weights: what is added up, and what keeps a gradient from whom."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.differences import check_gradient
from helpers.oracle import ONE_THREAD, parse

from onnxprune.gradients.backward import Backward, Edge, add_backward
from onnxprune.gradients.differentiated import EmittedLoss, differentiate_weights
from onnxprune.gradients.emitter import Emitter
from onnxprune.model.execution import open_session, run
from onnxprune.model.load import load
from onnxprune.model.observe import observe


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


EYE = np.eye(4, dtype=np.float32)


def backward(body: str, edges: list[Edge], tensors: set[str], **weights: np.ndarray) -> Backward:
    text = f"""<ir_version: 8, opset_import: ["": 18]>
        g (float[N, 4] x) => (float[N, 4] y) {{ {body} }}"""
    model = load(parse(text, weights)).model
    facts = observe(model, ONE_THREAD, np.random.default_rng(0), {"x": weight(2, 4)})
    seed = ir.Value(name="seed", type=ir.TensorType(ir.DataType.FLOAT))
    emit = Emitter(model, (facts.first, facts.second))
    return add_backward(model, emit, {"y": seed}, edges, tensors=tensors)


@pytest.mark.parametrize(
    "body",
    [
        "h = MatMul(x, w) t = Tanh(h) y = MatMul(t, w)",
        "t = Transpose(w) h = MatMul(x, w) y = MatMul(h, t)",
    ],
)
def test_a_weight_that_is_read_twice_has_the_sum(body: str) -> None:
    check_gradient(body, (2, 4), {"w": weight(4, 4)}, tuned="w")


def test_a_weight_without_a_gradient_does_not_block_what_comes_before() -> None:
    body = "h = MatMul(x, w) e = Exp(h) q = Pow(e, p) y = Mul(q, s)"
    given = {"w": weight(4, 4), "p": np.full(4, 2, np.float32), "s": weight(4)}
    edge = Edge("h", "x")
    found = backward(body, [edge], {"w", "p", "s"}, **given)
    assert found.tensors.keys() == {"w", "s"}
    assert found.gradients.keys() == {edge}
    assert found.stuck.keys() == {"p"}
    assert "exponent" in found.stuck["p"]


def test_nor_does_one_that_is_computed_from_weights() -> None:
    body = "h = MatMul(x, w) e = Exp(h) p = Abs(r) y = Pow(e, p)"
    found = backward(body, [], {"w", "r"}, w=weight(4, 4), r=np.full(4, -2, np.float32))
    assert found.tensors.keys() == {"w"}
    assert found.stuck.keys() == {"r"}


def test_the_other_weights_of_its_node_keep_theirs() -> None:
    given = {"s": weight(4), "b": weight(4), "m": weight(4), "v": weight(4) ** 2}
    found = backward("y = BatchNormalization(x, s, b, m, v)", [], set(given), **given)
    assert found.tensors.keys() == {"s", "b"}
    assert found.stuck.keys() == {"m", "v"}


def test_a_weight_before_an_operator_without_a_rule_is_stuck() -> None:
    found = backward(
        "h = MatMul(x, w) f = Hardmax(h) y = Mul(f, s)", [], {"w", "s"}, w=weight(4, 4), s=weight(4)
    )
    assert found.tensors.keys() == {"s"}
    assert "Hardmax" in found.stuck["w"]


def test_a_weight_that_only_sets_a_limit_is_stuck() -> None:
    given = {"low": np.array(-1, np.float32), "high": np.array(1, np.float32)}
    found = backward("h = MatMul(x, w) y = Clip(h, low, high)", [], {"w", *given}, **given, w=EYE)
    assert found.tensors.keys() == {"w"}
    assert found.stuck["low"].endswith("has no rule with respect to its input 1")


def test_a_weight_that_is_listed_among_the_inputs() -> None:
    text = """<ir_version: 3, opset_import: ["": 9]>
        g (float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }"""
    proto = parse(text, {"w": EYE})
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [4, 4]))
    made = differentiate_weights(
        load(proto).model,
        ["w"],
        lambda emit, values: EmittedLoss({"y": values["y"]}),
        {"x": weight(2, 4)},
        ONE_THREAD,
        np.random.default_rng(0),
    )
    feed = {"x": weight(2, 4), "w": 2 * EYE}
    found = run(open_session(made.model, ONE_THREAD), feed)[made.gradients["w"]]
    np.testing.assert_allclose(found, weight(2, 4).T @ (2 * weight(2, 4)), rtol=1e-5)


def test_a_weight_read_behind_and_before_it_is_stuck() -> None:
    """Part of its gradient is not known."""
    body = "h = MatMul(x, w) f = Hardmax(h) y = MatMul(f, w)"
    found = backward(body, [], {"w"}, w=weight(4, 4))
    assert found.stuck.keys() == {"w"}
    assert not found.tensors
