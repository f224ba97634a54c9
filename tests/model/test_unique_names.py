"""Names that bodies use twice become unique; everything else keeps its name."""

from __future__ import annotations

import numpy as np
import onnx
from helpers.oracle import outputs, parse

from onnxprune.model.load import convert, load

TWICE = (
    '<ir_version: 8, opset_import: ["": 17]> net (float[N, 4] x, bool q) => (float[N, 8] y) '
    "{ h = MatMul(x, a) "
    "s = If(q)<then_branch = one () => (float[N, 8] u) { v = Relu(h) u = Neg(v) }, "
    "else_branch = two () => (float[N, 8] u) { u = Neg(h) }> "
    "u_2 = Abs(s) "
    "y = If(q)<then_branch = three () => (float[N, 8] u) { u = Relu(u_2) }, "
    "else_branch = four () => (float[N, 8] v) { v = Neg(u_2) }> }"
)


def made(graph: onnx.GraphProto) -> list[str]:
    """Names of what the nodes of a graph and of its bodies make."""
    names = []
    for node in graph.node:
        names += node.output
        for attribute in node.attribute:
            names += made(attribute.g)
    return names


def test_names_of_bodies_become_unique_and_the_model_stays_what_it_is() -> None:
    proto = parse(TWICE, {"a": np.eye(4, 8, dtype=np.float32)})
    assert len(set(made(proto.graph))) < len(made(proto.graph))
    result = convert(load(proto).model, "proto")
    assert isinstance(result, onnx.ModelProto)
    onnx.checker.check_model(result)
    names = made(result.graph)
    assert len(set(names)) == len(names)
    assert [one for one in names if one in ("h", "s", "u_2", "y")] == ["h", "s", "u_2", "y"]
    for q in (False, True):
        x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
        feed = {"x": x, "q": np.array(q)}
        np.testing.assert_array_equal(outputs(result, feed)["y"], outputs(proto, feed)["y"])


def test_a_model_whose_names_are_unique_keeps_them() -> None:
    text = TWICE.replace("(float[N, 8] u) { u = Neg(h) }", "(float[N, 8] w) { w = Neg(h) }")
    text = text.replace("three () => (float[N, 8] u) { u =", "three () => (float[N, 8] t) { t =")
    text = text.replace("four () => (float[N, 8] v) { v =", "four () => (float[N, 8] r) { r =")
    proto = parse(text, {"a": np.eye(4, 8, dtype=np.float32)})
    result = convert(load(proto).model, "proto")
    assert isinstance(result, onnx.ModelProto)
    assert made(result.graph) == made(proto.graph)
