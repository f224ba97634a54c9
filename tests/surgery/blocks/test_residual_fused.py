"""Residual additions inside fused normalisations become nodes of their own, without effect."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.oracle import ONE_THREAD, difference, feed, outputs
from helpers.reducing import graph, weights

from onnxprune.model.execution import open_session, run
from onnxprune.model.load import load
from onnxprune.model.observe import observe
from onnxprune.surgery.blocks.fused_sums import separated_sums
from onnxprune.surgery.blocks.residual import ResidualBlock, remove_block, residual_blocks

VALUES = weights(a=(4, 4), b=(4, 4), k=(4,), g=(4,), h=(4,))
SIGNATURE = "(float[N, 3, 4] x) => (float[N, 3, 4] y)"
# The second branch reads the first normalised tensor; the sum is read by nothing else.
POST_NORM = """f = MatMul (x, a)
    z = com.microsoft.SkipLayerNormalization <epsilon = 0.01> (f, x, g, h, k)
    u = MatMul (z, b) y = com.microsoft.SkipLayerNormalization <epsilon = 0.01> (z, u, g, h)"""
# The second sum has the first as its other term.
PRE_NORM = """f = MatMul (x, a)
    z, , , s = com.microsoft.SkipLayerNormalization <epsilon = 0.01> (x, f, g, h, k)
    u = MatMul (z, b) w, , , t = com.microsoft.SkipLayerNormalization <epsilon = 0.01> (s, u, g, h)
    y = Add (w, t)"""
SIMPLE = """f = MatMul (x, a)
    z, , , s = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.01> (x, f, g, k)
    u = MatMul (z, b)
    y = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.01> (s, u, g)"""
KNOWN = SIMPLE.replace(
    "y = ", "n = SimplifiedLayerNormalization <axis = -1> (s, g) v = Add (n, u) y = "
).replace("(s, u, g)", "(s, v, g)")


def network(body: str, opset: int = 17) -> onnx.ModelProto:
    return graph(SIGNATURE, body, VALUES, opset)


def separated(proto: onnx.ModelProto) -> ir.Model:
    return separated_sums(load(proto).model)


def found(model: ir.Model) -> list[ResidualBlock]:
    return residual_blocks(model.graph, observe(model, ONE_THREAD, np.random.default_rng(0)))


def norm(x: np.ndarray, values: Mapping[str, np.ndarray], epsilon: float = 0.01) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    return centred / deviation * values["g"] + values["h"]


@pytest.mark.parametrize("opset", [14, 17, 18])
@pytest.mark.parametrize("body", [POST_NORM, PRE_NORM, SIMPLE], ids=["post", "pre", "simple"])
def test_nothing_changes_but_the_nodes(body: str, opset: int) -> None:
    proto = network(body, opset)
    result = ir.to_proto(separated(proto))
    onnx.checker.check_model(result, full_check=True)
    assert not any(node.domain for node in result.graph.node)
    assert {t.name for t in proto.graph.initializer} <= {t.name for t in result.graph.initializer}
    assert (proto.graph.input, proto.graph.output) == (result.graph.input, result.graph.output)
    inputs = feed(proto, 3)
    assert difference(outputs(proto, inputs), outputs(result, inputs)) < 1e-5
    optimised = run(open_session(result, ONE_THREAD), inputs)
    assert difference(outputs(proto, inputs), optimised) < 1e-5


@pytest.mark.parametrize(
    ("body", "opset", "expected"),
    [
        (POST_NORM, 17, "LayerNormalization"),
        (POST_NORM, 14, "ReduceMean"),
        (KNOWN, 17, "SimplifiedLayerNormalization"),
        (SIMPLE, 17, "ReduceMean"),
    ],
    ids=["standard", "before it was", "the model has it", "no standard"],
)
def test_normalisation_is_one_node_where_that_is_valid(
    body: str, opset: int, expected: str
) -> None:
    proto = network(body, opset)
    result = separated(proto)
    assert expected in {node.op_type for node in result.graph}
    one = expected != "ReduceMean"
    assert one == ("Sqrt" not in {node.op_type for node in result.graph})
    inputs = feed(proto, 2)
    assert difference(outputs(proto, inputs), outputs(ir.to_proto(result), inputs)) < 1e-5


@pytest.mark.parametrize(
    ("body", "sums"), [(POST_NORM, ["z/sum", "y/sum"]), (PRE_NORM, ["s", "t"])], ids=["post", "pre"]
)
def test_every_branch_is_found_with_its_bias(body: str, sums: list[str]) -> None:
    first, second = found(separated(network(body)))
    assert [first.name, second.name] == sums
    assert first.stream == "x"
    assert (first.parameters, second.parameters) == (4 * 4 + 4, 4 * 4)
    assert (first.macs, second.macs) == (2 * 3 * 16, 2 * 3 * 16)


def test_normalisation_before_a_branch_goes_with_it() -> None:
    _, second = found(separated(network(SIMPLE)))
    assert (second.name, second.stream, second.branch) == ("y/sum", "s", "u")
    assert {"z", "u"} <= set(second.nodes)


def test_fused_sums_are_no_blocks_before() -> None:
    assert found(load(network(POST_NORM)).model) == []


def test_nodes_whose_mean_is_read_stay() -> None:
    body = """f = MatMul (x, a)
        z, m = com.microsoft.SkipLayerNormalization <epsilon = 0.01> (f, x, g, h)
        y = Add (z, m)"""
    model = load(network(body)).model
    assert separated_sums(model) is model


@pytest.mark.parametrize(
    ("operands", "blocks"),
    [("x, f", [("y", "x", "f")]), ("x, f, k", [("y/part", "x", "f")])],
    ids=["two", "three"],
)
def test_a_sum_is_a_chain_of_additions(operands: str, blocks: list[tuple[str, ...]]) -> None:
    proto = network(f"f = MatMul (x, a) y = Sum ({operands})")
    model = separated(proto)
    assert "Sum" not in {node.op_type for node in model.graph}
    inputs = feed(proto, 3)
    assert difference(outputs(proto, inputs), outputs(ir.to_proto(model), inputs)) == 0.0
    assert [(one.name, one.stream, one.branch) for one in found(model)] == blocks


def test_names_of_nodes_stay_for_patterns() -> None:
    proto = network(POST_NORM)
    for number, node in enumerate(proto.graph.node):
        node.name = f"node_{number}"
    names = {node.name for node in separated(proto).graph}
    assert {f"node_{number}" for number in range(len(proto.graph.node))} <= names


def test_a_model_without_such_nodes_is_itself() -> None:
    model = load(network("f = MatMul (x, a) y = Add (x, f)")).model
    assert separated_sums(model) is model


def test_taken_names_are_not_taken_again() -> None:
    values = {**VALUES, "y/sum": VALUES["k"]}
    body = """f = MatMul (x, a)
        y = com.microsoft.SkipLayerNormalization <epsilon = 0.01> (f, x, g, h, k)"""
    proto = graph(SIGNATURE, body, values)
    (block,) = found(separated(proto))
    assert block.name == "y/sum_1"


def test_what_is_left_without_a_branch() -> None:
    proto = network(POST_NORM)
    model = separated(proto)
    first, _ = found(model)
    mean = np.arange(4.0)
    remove_block(model.graph, first, mean)
    inputs = feed(proto, 3)
    z = norm(inputs["x"] + mean, VALUES)
    expected = norm(z + z @ VALUES["b"], VALUES)
    result = ir.to_proto(model)
    onnx.checker.check_model(result, full_check=True)
    assert "a" not in {tensor.name for tensor in result.graph.initializer}
    np.testing.assert_allclose(outputs(result, inputs)["y"], expected, rtol=1e-4, atol=1e-4)
