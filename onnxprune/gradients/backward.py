"""From the loss back through a graph: the walk that applies the rule of every node.

A gradient is asked for at an *edge*, what one node reads of one tensor: a unit that is removed is
missing there, whatever else reads the tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxprune.coupling.step import node_id
from onnxprune.errors import InputError
from onnxprune.gradients.rules import RULES
from onnxprune.gradients.step import GradientStep, NoGradient
from onnxprune.model.pieces import node_reads

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    import onnx_ir as ir

    from onnxprune.gradients.emitter import Emitter

__all__ = ["Edge", "add_backward"]


@dataclass(frozen=True)
class Edge:
    """What one node reads of one tensor.

    Attributes:
        node: id of the node.
        tensor: name of the tensor.
    """

    node: str
    tensor: str


def add_backward(
    model: ir.Model,
    emit: Emitter,
    seeds: Mapping[str, ir.Value],
    edges: Collection[Edge],
) -> dict[Edge, ir.Value]:
    """Append the nodes that compute gradients.

    Only what lies between an edge and a seed is gone through.

    Args:
        model: changed.
        emit: appends to it.
        seeds: gradient of the loss with respect to tensors of the model, by name.
        edges: where gradients are asked for.

    Returns:
        the gradient of each edge, of the shape of its tensor; an edge that the loss does not
        depend on is left out.

    Raises:
        InputError: naming the node that has no rule, or one that does not fit.
    """
    nodes = list(model.graph)
    asked: dict[str, set[str]] = {}
    for edge in edges:
        asked.setdefault(edge.node, set()).add(edge.tensor)
    reached = _reached(nodes, asked)
    gradients: dict[str, ir.Value] = dict(seeds)
    found: dict[Edge, ir.Value] = {}
    for node in reversed(nodes):
        outputs = [gradients.pop(value.name or "", None) for value in node.outputs]
        mine = asked.get(node_id(node), set())
        wanted = frozenset(
            slot
            for slot, value in enumerate(node.inputs)
            if value is not None and (value.name in reached or value.name in mine)
        )
        if all(one is None for one in outputs):
            continue
        hidden = any(name in reached or name in mine for name in _in_bodies(node))
        if not wanted and not hidden:
            continue
        for slot, gradient in _through(GradientStep(node, emit, outputs, wanted)).items():
            value = node.inputs[slot]
            if slot not in wanted or value is None:
                continue
            name = value.name or ""
            if name in mine:
                edge = Edge(node_id(node), name)
                found[edge] = emit.total(found.get(edge), gradient)
            if name in reached:
                gradients[name] = emit.total(gradients.get(name), gradient)
    return found


def _reached(nodes: Sequence[ir.Node], asked: Mapping[str, set[str]]) -> set[str]:
    """Tensors that depend on something a gradient is asked for."""
    reached: set[str] = set()
    for node in nodes:
        if node_id(node) in asked or any(value.name in reached for value in node_reads(node)):
            reached.update(value.name for value in node.outputs if value.name)
    return reached


def _in_bodies(node: ir.Node) -> Iterator[str]:
    """Names of what only the bodies of a node read."""
    slots = {value.name for value in node.inputs if value is not None}
    yield from (value.name or "" for value in node_reads(node) if value.name not in slots)


def _through(step: GradientStep) -> Mapping[int, ir.Value]:
    node = step.node
    where = f"the gradient through {node.op_type} node {node.name or node_id(node)!r}"
    remedy = "exclude the groups before it, or take another criterion"
    rule = RULES.get((node.domain, node.op_type))
    if rule is None:
        raise InputError(f"{where} cannot be computed: there is no rule for this op; {remedy}")
    try:
        return rule(step)
    except NoGradient as error:
        raise InputError(f"{where} cannot be computed: {error}; {remedy}") from None
