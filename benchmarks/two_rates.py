"""One ONNX model of two networks: an `If` at the root chooses by the scalar input `sr`."""

from __future__ import annotations

import onnx
from made_data import RATES
from onnx import TensorProto, compose, helper

OPSET = 18


def chosen_by_rate(branches: dict[int, onnx.ModelProto]) -> onnx.ModelProto:
    """One `If` with the network of the higher rate in its then branch, the other in its else."""
    low, high = RATES
    graphs = [branch(branches[rate].graph, f"rate_{rate}_") for rate in (high, low)]
    nodes = [
        helper.make_node("Constant", [], ["high"], value_int=high),
        helper.make_node("Equal", ["sr", "high"], ["is_high"]),
        helper.make_node(
            "If", ["is_high"], ["output"], "by_rate", then_branch=graphs[0], else_branch=graphs[1]
        ),
    ]
    inputs = [
        helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", "samples"]),
        helper.make_tensor_value_info("sr", TensorProto.INT64, []),
    ]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 1])]
    graph = helper.make_graph(nodes, "two_rates", inputs, outputs)
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10)


def branch(graph: onnx.GraphProto, prefix: str) -> onnx.GraphProto:
    """A graph as the body of an If: names of its own, and the input of the graph around it."""
    (given,) = graph.input
    name = given.name
    compose.add_prefix_graph(graph, prefix, inplace=True)
    for node in graph.node:
        node.input[:] = [name if value == prefix + name else value for value in node.input]
    del graph.input[:]
    return graph
