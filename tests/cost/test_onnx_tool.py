"""Counts of an independent tool agree, node by node.

onnx-tool also counts what works element by element, and adds one operation per output element to
a Conv or Gemm with bias. So products are compared alone, without these additions.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import onnx
import pytest
from helpers.oracle import Traced, traced
from helpers.paths import MODELS

from onnxprune.cost.figures import node_costs
from onnxprune.cost.macs import node_macs

onnx_tool = pytest.importorskip("onnx_tool")

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
BIASED = ("Conv", "ConvTranspose", "Gemm")
PRODUCTS = (*BIASED, "MatMul")


def profiled(proto: onnx.ModelProto, subject: Traced) -> onnx_tool.Graph:
    """What onnx-tool finds at the traced size."""
    graph = onnx_tool.Model(proto, {"verbose": False}).graph
    graph.shape_infer(dict(subject.coupling.facts.first.feed))
    graph.profile()
    return graph


def counted(proto: onnx.ModelProto) -> tuple[dict[str, int], dict[str, int]]:
    """MACs of every product by the name of its output: ours, and those of onnx-tool."""
    subject = traced(proto)
    shapes = subject.coupling.facts.first.shapes
    ours = {
        node.outputs[0].name or "": node_macs(node, shapes.__getitem__)
        for node in subject.model.graph
        if node.op_type in PRODUCTS
    }
    theirs = {}
    for node in profiled(proto, subject).nodemap.values():
        if node.op_type in PRODUCTS:
            output = node.output[0]
            bias = len(node.input) > 2 and node.op_type in BIASED
            theirs[output] = int(node.macs[0]) - bias * prod(shapes[output])
    return ours, theirs


def full_size(name: str) -> onnx.ModelProto:
    """A network of onnx's own test data: weights of the true shapes, all of one value."""
    return onnx.load(LIGHT / f"light_{name}.onnx")


@pytest.mark.parametrize("name", ["digits_resnet", "digits_resnet_bn", "digits_transformer"])
def test_the_models_of_the_repository(name: str) -> None:
    ours, theirs = counted(onnx.load(MODELS / f"{name}.onnx"))
    assert ours == theirs
    assert len(ours) >= 7


@pytest.mark.parametrize("name", ["resnet50", "squeezenet", "shufflenet", "inception_v1"])
def test_networks_of_full_size(name: str) -> None:
    ours, theirs = counted(full_size(name))
    assert ours == theirs
    assert sum(ours.values()) > 1e8


@pytest.mark.parametrize("name", ["digits_resnet", "digits_resnet_bn", "digits_transformer"])
def test_parameters(name: str) -> None:
    """Of the nodes that multiply; scalars that others read count differently from tool to tool."""
    proto = onnx.load(MODELS / f"{name}.onnx")
    subject = traced(proto)
    ours = {
        cost.node: cost.parameters
        for cost in node_costs(subject.model.graph, subject.coupling)
        if cost.op_type in PRODUCTS and cost.parameters
    }
    nodes = profiled(proto, subject).nodemap.values()
    theirs = {node.name: node.params for node in nodes if node.op_type in PRODUCTS and node.params}
    assert ours == theirs
    assert sum(ours.values()) > 15_000
