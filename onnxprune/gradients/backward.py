"""From the loss back through a graph: the walk that applies the rule of every node.

A gradient is asked for at an *edge*, what one node reads of one tensor: a unit that is removed is
missing there, whatever else reads the tensor. Where a node has no rule, the edges before it are
blocked: part of their gradient is unknown. All others have theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx_ir as ir

from onnxprune.gradients.emitter import Emitter
from onnxprune.gradients.operators import RULES
from onnxprune.gradients.preparation import Expansion
from onnxprune.gradients.step import GradientStep, NoGradient
from onnxprune.model.bodies import node_id
from onnxprune.model.execution import node_reads

_NOTHING = Expansion()

Added: TypeAlias = Callable[[ir.Value | None], ir.Value]
"""Appends what is added to the gradient of a tensor, given all of it before; None for nothing."""


@dataclass(frozen=True)
class Edge:
    """What one node reads of one tensor.

    Attributes:
        node: id of the node.
        tensor: name of the tensor.
    """

    node: str
    tensor: str


@dataclass(frozen=True)
class Backward:
    """Gradients at edges and tensors, and why some have none.

    Attributes:
        gradients: of each edge, of the shape of its tensor; an edge that the loss does not depend
            on is left out.
        blocked: why an edge has none.
        tensors: by name of a tensor, the gradient of all that reads it.
        stuck: by name of a tensor, why it has none.
    """

    gradients: dict[Edge, ir.Value] = field(default_factory=dict)
    blocked: dict[Edge, str] = field(default_factory=dict)
    tensors: dict[str, ir.Value] = field(default_factory=dict)
    stuck: dict[str, str] = field(default_factory=dict)


def add_backward(
    model: ir.Model,
    emit: Emitter,
    seeds: Mapping[str, ir.Value],
    edges: Collection[Edge],
    expansion: Expansion = _NOTHING,
    tensors: Collection[str] = (),
    later: Mapping[str, Added] | None = None,
) -> Backward:
    """Append the nodes that compute gradients.

    Only nodes between an edge and a seed are visited.

    Args:
        model: changed.
        emit: appends to it.
        seeds: gradient of the loss with respect to tensors of the model, by name.
        edges: where gradients are asked for.
        expansion: of the model, where edges still call nodes by what they were before.
        tensors: names of tensors whose whole gradient is asked for; of initializers too, whose
            gradient is that of all nodes that read them.
        later: by name of a tensor that a node makes, what is added to its gradient when all of the
            others is known.
    """
    nodes = list(model.graph)
    asked: dict[str, set[str]] = {}
    for edge in edges:
        asked.setdefault(edge.node, set()).add(edge.tensor)
    weights = set(model.graph.initializers)
    known = _Known(dict(seeds), later or {})
    walk = _Walk(emit, asked, expansion, known, set(tensors), weights)
    walk.mark(nodes)
    for node in reversed(nodes):
        walk.back_through(node)
    walk.keep_initializers(model.graph.initializers)
    backward = walk.backward
    present = {walk.owner(node) for node in nodes}
    backward.blocked.update(
        {
            edge: f"the node {edge.node!r} lies in the body of a control-flow node"
            for edge in edges
            if edge.node not in present
        }
    )
    for edge in backward.blocked:
        backward.gradients.pop(edge, None)
    return backward


class _Known:
    """Gradients of tensors as far as the walk has come.

    Args:
        gradients: by tensor.
        later: see `add_backward`.
    """

    def __init__(self, gradients: dict[str, ir.Value], later: Mapping[str, Added]) -> None:
        self._gradients, self._later = gradients, later

    def add(self, name: str, gradient: ir.Value, emit: Emitter) -> None:
        """Add what comes from one more node."""
        self._gradients[name] = emit.total(self._gradients.get(name), gradient)

    def take(self, name: str, emit: Emitter) -> ir.Value | None:
        """The whole gradient of a tensor all of whose readers were visited; None for nothing."""
        gradient = self._gradients.pop(name, None)
        if name not in self._later:
            return gradient
        return emit.total(gradient, self._later[name](gradient))


class _Walk:
    """The state of one walk.

    Args:
        emit: appends nodes.
        asked: tensors whose gradient is asked for, by id of the node that reads them.
        expansion: see `add_backward`.
        known: gradients so far.
        tensors: names of those whose gradient is kept.
        weights: names of the initializers.
    """

    def __init__(
        self,
        emit: Emitter,
        asked: Mapping[str, set[str]],
        expansion: Expansion,
        known: _Known,
        tensors: set[str],
        weights: set[str],
    ) -> None:
        self.backward = Backward()
        self._tensors = tensors
        self._emit, self._asked, self._expansion = emit, asked, expansion
        self._known = known
        self._reached: set[str] = set(tensors)
        self._fixed: set[str] = set(weights)
        self._stuck: dict[str, str] = {}

    def owner(self, node: ir.Node) -> str:
        """Id of the node that edges call it by."""
        name = node_id(node)
        return self._expansion.owners.get(name, name)

    def mark(self, nodes: Sequence[ir.Node]) -> None:
        """Note the tensors that depend on something a gradient is asked for, and weights.

        What is computed from weights alone counts as one.
        """
        for node in nodes:
            mine = self._asked.get(self.owner(node), set())
            names = {value.name for value in node.outputs if value.name}
            reads = [_name(value) for value in node_reads(node)]
            if any(self._matters(name, mine) for name in reads):
                self._reached.update(names)
            if self._fixed.issuperset(reads):
                self._fixed.update(names)

    def keep_initializers(self, names: Collection[str]) -> None:
        """Note what is known of initializers, after the walk."""
        for name in sorted(self._tensors.intersection(names)):
            reasons = [self._stuck[name]] if name in self._stuck else []
            self._keep([name], [self._known.take(name, self._emit)], reasons)

    def back_through(self, node: ir.Node) -> None:
        """Hand the gradients of what a node makes on to what it reads."""
        names = [value.name or "" for value in node.outputs]
        outputs = [self._known.take(name, self._emit) for name in names]
        reasons = [self._stuck.pop(name) for name in names if name in self._stuck]
        self._keep(names, outputs, reasons)
        mine = self._asked.get(self.owner(node), set())
        wanted = frozenset(
            slot
            for slot, value in enumerate(node.inputs)
            if value is not None and self._emit.has_slope(value) and self._matters(value.name, mine)
        )
        hidden = [name for name in _in_bodies(node) if self._matters(name, mine)]
        if not (wanted or hidden) or not (reasons or any(g is not None for g in outputs)):
            return
        through: Mapping[int, ir.Value] = {}
        refused = dict.fromkeys(wanted, reasons[0]) if reasons else {}
        if not reasons:
            through, refused, reasons = self._attempt(node, outputs, wanted)
        blocked = {node.inputs[slot]: reason for slot, reason in sorted(refused.items())}
        for value, reason in blocked.items():
            self._block(node, _name(value), mine, reason)
        for name in hidden if reasons else ():
            self._block(node, name, mine, reasons[0])
        for slot in sorted(through.keys() & wanted):
            self._add(node, _name(node.inputs[slot]), mine, through[slot])

    def _attempt(
        self, node: ir.Node, outputs: Sequence[ir.Value | None], wanted: frozenset[int]
    ) -> tuple[Mapping[int, ir.Value], dict[int, str], list[str]]:
        """Apply the rule of a node; a weight it refuses does not block the activations.

        Returns:
            gradients by slot, reasons by slot that is refused, and why the whole node is.
        """
        refused: dict[int, str] = {}
        weights = {slot for slot in wanted if _name(node.inputs[slot]) in self._fixed}
        while True:
            left = wanted.difference(refused)
            try:
                step = GradientStep(node, self._emit, outputs, left)
                through = _through(step, self._expansion.whole.get(self.owner(node)))
                for slot in weights & left.difference(through) if through else ():
                    refused[slot] = f"{_where(node)} has no rule with respect to its input {slot}"
                return through, refused, []
            except NoGradient as error:
                candidates = weights & left
                blamed = (candidates & error.slots) or candidates or left
                refused |= dict.fromkeys(blamed, str(error))
                if blamed == left:
                    return {}, refused, [str(error)]

    def _keep(
        self, names: Sequence[str], gradients: Sequence[ir.Value | None], reasons: Sequence[str]
    ) -> None:
        """Note what is known of tensors that are asked for."""
        for name, gradient in zip(names, gradients, strict=True):
            if name in self._tensors and reasons:
                self.backward.stuck[name] = reasons[0]
            elif name in self._tensors and gradient is not None:
                self.backward.tensors[name] = gradient

    def _matters(self, name: str | None, mine: set[str]) -> bool:
        return name in self._reached or name in mine

    def _block(self, node: ir.Node, name: str, mine: set[str], reason: str) -> None:
        if name in mine:
            self.backward.blocked[Edge(self.owner(node), name)] = reason
        if name in self._reached:
            self._stuck[name] = reason

    def _add(self, node: ir.Node, name: str, mine: set[str], gradient: ir.Value) -> None:
        if name in mine:
            edge = Edge(self.owner(node), name)
            self.backward.gradients[edge] = self._emit.total(
                self.backward.gradients.get(edge), gradient
            )
        if name in self._reached:
            self._known.add(name, gradient, self._emit)


def _in_bodies(node: ir.Node) -> Iterator[str]:
    """Names of what only the bodies of a node read."""
    slots = {value.name for value in node.inputs if value is not None}
    yield from (value.name or "" for value in node_reads(node) if value.name not in slots)


def _name(value: ir.Value | None) -> str:
    return (value.name or "") if value is not None else ""


def _where(node: ir.Node) -> str:
    return f"the gradient through {node.op_type} node {node.name or node_id(node)!r}"


def _through(step: GradientStep, whole: str | None) -> Mapping[int, ir.Value]:
    node, where = step.node, _where(step.node)
    rule = RULES.get((node.domain, node.op_type))
    if rule is None:
        why = whole or "there is no rule for this op"
        raise NoGradient(f"{where} cannot be computed: {why}")
    try:
        return rule(step)
    except NoGradient as error:
        raise NoGradient(f"{where} cannot be computed: {error}", error.slots) from None
