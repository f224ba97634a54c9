"""What every node costs, for people to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from onnxprune.cost.macs import node_macs
from onnxprune.cost.size import is_parameter, tensor_bytes
from onnxprune.coupling.subgraph_shapes import captured
from onnxprune.model.observe import Facts


@dataclass(frozen=True)
class NodeCost:
    """What one node costs, the bodies in its attributes included.

    Attributes:
        node: display name.
        op_type: its op type.
        macs: multiply-accumulates for one run at the traced size.
        parameters: elements of the parameters it reads.
        bytes: bytes of these.
        activations: bytes of its outputs at the traced size.
    """

    node: str
    op_type: str
    macs: int
    parameters: int
    bytes: int
    activations: int


def node_costs(graph: ir.Graph, facts: Facts) -> list[NodeCost]:
    """Cost of every node that multiplies or reads parameters, in graph order.

    Args:
        graph: the main graph.
        facts: constants, shapes and types; a parameter counts where it is first read.
    """
    seen = facts.first
    left = {name for name, tensor in facts.constants.items() if is_parameter(tensor)}
    costs = []
    for node in graph:
        read = left.intersection(tensors_of(node)) if node.op_type != "Constant" else set()
        left -= read
        macs = node_macs(node, seen.shapes.__getitem__)
        if not (macs or read):
            continue
        outputs = [value.name for value in node.outputs if value.name in seen.shapes]
        costs.append(
            NodeCost(
                node.name or node.outputs[0].name or "",
                node.op_type,
                macs,
                sum(prod(seen.shapes[name]) for name in read),
                sum(_bytes(facts, name) for name in read),
                sum(_bytes(facts, name) for name in outputs if name),
            )
        )
    return costs


def tensors_of(node: ir.Node) -> Iterator[str]:
    """Names of the tensors a node reads or makes, those its bodies read included."""
    yield from (value.name for value in node.inputs if value is not None and value.name)
    yield from (value.name for value in node.outputs if value.name)
    yield from captured(node)


def _bytes(facts: Facts, name: str) -> int:
    kind = facts.first.types.get(name, ir.DataType.FLOAT)
    return tensor_bytes(facts.first.shapes[name], kind)
