"""One walk over the graph: every node's rule relates the labels of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.coupling.cuttable_interface import CuttableInterface
from onnxprune.coupling.labels import TensorLabels, align_nesting
from onnxprune.coupling.operators import RULES
from onnxprune.coupling.relations import Relations
from onnxprune.coupling.static_values import static_values
from onnxprune.coupling.step import Consumer, Place, Refusal, Rule, Statistic, Step
from onnxprune.coupling.subgraph_shapes import Bodies
from onnxprune.model.bodies import body_of, captured, node_id, nodes_within, places, subgraphs
from onnxprune.model.observe import Facts
from onnxprune.model.tensors import extents

_INTEGER_TYPES = frozenset(
    ir.DataType[name]
    for name in ("INT8", "UINT8", "INT32", "INT4", "UINT4", "INT16", "UINT16", "INT64")
)
"""Of constants that may be data: quantised numbers, or an index for every entry."""
_REPEATED = frozenset({"Loop", "Scan"})


@dataclass(frozen=True)
class Coupling:
    """Which entries of which tensors can only be removed together.

    Attributes:
        relations: atoms, the units they form, and the constraints between units.
        tensors: labels of every tensor of the graph, by name.
        consumers: contractions that read labelled axes.
        divisors: constants that must keep their value where removed, because they divide.
        zero_points: quantised constant -> the tensor with its zero point, and the axis it lies on.
        statistics: statistics over labelled axes, where the user allows such axes to be cut.
        facts: the observed shapes and integers, those inside bodies included.
        unit_of: unit of every atom once all is known, 0 for the frozen ones: int32 [atoms].
        static: tensors whose observed values hold for every input of the observed size.
        closed: ids of the nodes whose subgraphs are not looked into.
        renumbered: ids of the lookups whose indices will speak of what is left of their table.
        idle: keys of the bodies that stay whole because of the samples, with the reason: how few
            of them run it, as words before its name.
    """

    relations: Relations
    tensors: Mapping[str, TensorLabels]
    consumers: tuple[Consumer, ...]
    divisors: frozenset[str]
    zero_points: Mapping[str, tuple[str, int]]
    statistics: tuple[Statistic, ...]
    facts: Facts
    unit_of: NDArray[np.int32]
    static: frozenset[str]
    closed: frozenset[str]
    renumbered: frozenset[str] = frozenset()
    idle: Mapping[str, str] = field(default_factory=dict)

    def value(self, name: str) -> NDArray[Any] | None:
        """Value of a constant, or of an integer tensor that does not depend on data."""
        return self.facts.value(name) if name in self.static else None

    def nodes(self, graph: ir.Graph) -> Iterator[ir.Node]:
        """Nodes of a graph and of the bodies in it, each behind those of its own bodies."""
        return nodes_within(graph, self.closed)

    def inexact_units(self) -> set[int]:
        """Units on axes whose statistics, once cut, run over what is kept."""
        return {
            int(unit)
            for statistic in self.statistics
            if not statistic.exact
            for label in self.tensors[statistic.tensor].axis_labels
            if label.axes == (statistic.axis,)
            for unit in np.unique(self.unit_of[label.atoms])
        } - {0}


def trace(
    model: ir.Model,
    facts: Facts,
    *,
    normalised: bool | Collection[Place] = False,
    opening: CuttableInterface | None = None,
    given: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Coupling:
    """Label every tensor of a model.

    Args:
        model: unchanged.
        facts: its shapes and integers at a concrete size (`onnxprune.model.observe`).
        normalised: axes that normalisation statistics run over may be cut: all, or only those
            of the statistics named.
        opening: parts of the interface that may be cut; default none.
        given: key of a body -> what it was given in one or two runs, for bodies that do not run
            otherwise.
    """
    bodies = Bodies(model, facts, given or {})
    walk = _Walk(model, bodies, normalised, opening)
    opening = opening or CuttableInterface()
    walk.along(model.graph)
    relations = walk.relations
    relations.node = "graph output"
    for value in model.graph.outputs:
        if value.name in walk.tensors:
            _freeze(
                relations,
                walk.tensors[value.name],
                "the model's interface stays as it is",
                opening.axes.get(value.name, frozenset()),
            )
    _demand_product_cuts(relations, walk.tensors, bodies.facts)
    _close_definitions(relations)
    return Coupling(
        relations=relations,
        tensors=walk.tensors,
        consumers=tuple(walk.consumers),
        divisors=walk.divisors,
        zero_points=walk.zero_points,
        statistics=tuple(walk.statistics),
        facts=bodies.facts,
        unit_of=relations.find(np.arange(relations.count, dtype=np.int32)),
        static=walk.static,
        closed=frozenset(node_id(node) for node in bodies.closed),
        renumbered=opening.renumbered,
    )


class _Walk:
    """What is collected on the way through a graph and the bodies of its nodes."""

    def __init__(
        self,
        model: ir.Model,
        bodies: Bodies,
        normalised: bool | Collection[Place],
        opening: CuttableInterface | None,
    ) -> None:
        self.relations = Relations()
        self.divisors = frozenset(
            _divisors(model.graph, {n: {n} for n in bodies.facts.constants}, bodies.closed)
        )
        self.tensors = _sources(model.graph, bodies.facts, self.divisors)
        self.static = static_values(model.graph, bodies.facts, bodies.closed)
        self.consumers: list[Consumer] = []
        self.zero_points: dict[str, tuple[str, int]] = {}
        self.statistics: list[Statistic] = []
        self._model = model
        self._bodies = bodies
        self._keys = {id(place.graph): key for key, place in places(model.graph).items()}
        self._normalised = normalised
        self.held = opening is None
        self._rules = opening.rules if opening is not None else {}

    def along(self, graph: ir.Graph) -> None:
        """Apply the rule of every node."""
        outermost = graph is self._model.graph
        for node in graph:
            if node.op_type == "Constant" and node.domain == "":
                continue
            self.relations.node = display_name(node)
            step = Step(
                node,
                self._model.opset_imports.get(node.domain, 1),
                self,
                self._normalised if outermost else False,
                shape_of=self._bodies.facts.first.shapes.__getitem__,
                value_of=self._value,
            )
            try:
                _apply_rule(step, self._bodies.closed.get(node), self._rules.get(node_id(node)))
            except Refusal as refusal:
                self.relations.node = display_name(node)
                _refuse(step, str(refusal))
            else:
                self.zero_points |= step.zero_points
                body = self._keys.get(id(graph), "")
                self.consumers += [replace(consumer, body=body) for consumer in step.consumers]
                if outermost:
                    self.statistics += step.statistics
            _freeze_rest(step)

    def rehearse(self, graph: ir.Graph) -> Mapping[str, TensorLabels]:
        """Labels of every tensor after a walk along a body that leaves no trace."""
        trial = copy(self)
        trial.relations = deepcopy(self.relations)
        trial.tensors = {name: copy(labels) for name, labels in self.tensors.items()}
        trial.consumers, trial.statistics = [], []
        trial.zero_points = {}
        trial.along(graph)
        return trial.tensors

    def _value(self, name: str) -> NDArray[Any] | None:
        return self._bodies.facts.value(name) if name in self.static else None


def display_name(node: ir.Node) -> str:
    """How a node is called in messages."""
    return f"{node.op_type} {node.name or node_id(node)}"


def _divisors(
    graph: ir.Graph, made_from: dict[str, set[str]], closed: Container[ir.Node]
) -> Iterator[str]:
    """Constants that divide (or are an exponent), directly or worked out from constants alone.

    Args:
        graph: the graph; the bodies of its nodes are looked into.
        made_from: names of the constants that a tensor is worked out from; it is added to.
        closed: nodes whose bodies are not looked into.
    """
    for node in graph:
        given = [value.name or "" for value in node.inputs if value is not None]
        for inner in subgraphs(node) if node not in closed else ():
            for slot, formal, *_ in body_of(node).states if node.op_type in _REPEATED else ():
                value, own = node.inputs[slot], inner.inputs[formal].name or ""
                if value is not None and value.name in made_from:
                    made_from[own] = made_from[value.name]
            yield from _divisors(inner, made_from, closed)
        if given and all(name in made_from for name in given):
            parts = set().union(*(made_from[name] for name in given))
            made_from.update((value.name, parts) for value in node.outputs if value.name)
        if node.op_type in ("Div", "Mod", "Pow") and node.domain == "":
            yield from made_from.get(given[-1], ())


def _sources(graph: ir.Graph, facts: Facts, divisors: frozenset[str]) -> dict[str, TensorLabels]:
    tensors = {
        value.name: TensorLabels(value.name, facts.first.shapes.get(value.name, ()))
        for value in graph.inputs
        if value.name and value.name not in facts.constants
    }
    for name, tensor in facts.constants.items():
        shape = extents(tensor)
        number = tensor.dtype.is_floating_point() and 0 not in shape
        tensors[name] = TensorLabels(
            name,
            shape,
            constant=True,
            pristine=number,
            zero=name not in divisors,
            integer=not number and tensor.dtype in _INTEGER_TYPES and 0 not in shape,
        )
    return tensors


def _apply_rule(step: Step, closed: str | None, rule: Rule | None) -> None:
    node = step.node
    if closed:
        raise Refusal(closed)
    rule = rule or RULES.get((node.domain, node.op_type))
    if rule is None:
        domain = f"{node.domain}::" if node.domain else ""
        raise Refusal(f"there is no coupling rule for {domain}{node.op_type}")
    missing = [step.name(slot) for slot in step.inputs() if not step.known(slot)]
    if missing:
        raise Refusal(f"the shape of {missing[0]} is unknown")
    rule(step)
    for value in node.outputs:
        if (value.uses() or value.is_graph_output()) and value.name not in step.tensors:
            raise Refusal(f"the output {value.name} of {node.op_type} is in use")


def _refuse(step: Step, text: str) -> None:
    """Freeze whatever enters a node without a description, captured tensors included."""
    step.understood.clear()
    for slot in step.inputs():
        if step.known(slot):
            _freeze(step.relations, step.peek(slot), text)
    for name in captured(step.node):
        if name in step.tensors:
            _freeze(step.relations, step.tensors[name], text)
    for slot in step.outputs():
        name = step.output_name(slot)
        step.tensors.pop(name, None)
        with suppress(Refusal):  # the shape of an output may be unknown
            step.tensors[name] = TensorLabels(name, step.output_shape(slot))


def _freeze_rest(step: Step) -> None:
    for slot in step.inputs():
        if slot in step.understood or not step.known(slot):
            continue
        labels = step.peek(slot)
        # A constant no other op has read is a parameter of this one, not a weight held back.
        labels.pristine = False
        text = f"input {slot} of {step.node.op_type} is not cut"
        _freeze(step.relations, labels, text)


def _freeze(
    relations: Relations, labels: TensorLabels, text: str, spared: Collection[int] = ()
) -> None:
    """Freeze what lies on none of the spared axes."""
    labels.integer = False
    labels.materialise(relations)
    for label in labels.axis_labels:
        if not set(label.axes) & set(spared):
            relations.freeze(label.atoms, text)
    labels.axis_labels = tuple(
        label for label in labels.axis_labels if set(label.axes) & set(spared)
    )


def _demand_product_cuts(
    relations: Relations, tensors: Mapping[str, TensorLabels], facts: Facts
) -> None:
    """A plan lists kept indices per axis, so the cut of a constant has to be a product."""
    for name in facts.constants:
        axis_labels = tensors[name].axis_labels
        for label in axis_labels:
            others = [
                other
                for other in axis_labels
                if other is not label and set(other.axes) & set(label.axes)
            ]
            if len(label.axes) > 1 and not others:
                align_nesting(relations, label)


def _close_definitions(relations: Relations) -> None:
    """A composite with a frozen member is frozen; with members of one unit it is that unit."""
    changed = True
    while changed:
        changed = False
        for composite, members in relations.definitions:
            own = np.array([composite], np.int32)
            roots = relations.find(members)
            frozen = np.flatnonzero(roots == 0)
            if len(frozen) and relations.find(own)[0] != 0:
                relations.unify(own, members[frozen[:1]])
                changed = True
            elif (roots == roots[0]).all() and relations.find(own)[0] != roots[0]:
                relations.unify(own, members[:1])
                changed = True
