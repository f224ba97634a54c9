"""One walk over the graph: every node's rule relates the labels of its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxprune.coupling.labels import TensorLabels, align_nesting
from onnxprune.coupling.relations import Relations
from onnxprune.coupling.rules import RULES
from onnxprune.coupling.step import Consumer, Refusal, Statistic, Step, node_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from onnxprune.model.observe import Facts

__all__ = ["Coupling", "trace"]

_QUANTISED_TYPES = frozenset(
    ir.DataType[name] for name in ("INT8", "UINT8", "INT32", "INT4", "UINT4", "INT16", "UINT16")
)


@dataclass(frozen=True)
class Coupling:
    """Which indices of which tensors live and die together.

    Attributes:
        relations: classes of atoms and the constraints between them.
        tensors: labels of every tensor of the graph, by name.
        consumers: contractions that read labelled axes.
        divisors: constants that must keep their value where removed, because they divide.
        zero_points: quantised constant -> the tensor with its zero point, and the axis it lies on.
        statistics: statistics over labelled axes, where the user allows such axes to be cut.
        facts: the observed shapes and integers.
        classes: class of every atom once all is known, 0 for the frozen ones: int32 [atoms].
    """

    relations: Relations
    tensors: Mapping[str, TensorLabels]
    consumers: tuple[Consumer, ...]
    divisors: frozenset[str]
    zero_points: Mapping[str, tuple[str, int]]
    statistics: tuple[Statistic, ...]
    facts: Facts
    classes: NDArray[np.int32]

    def inexact_classes(self) -> set[int]:
        """Classes on axes whose statistics, once cut, run over what is kept."""
        return {
            int(one)
            for statistic in self.statistics
            if not statistic.exact
            for layer in self.tensors[statistic.tensor].layers
            if layer.axes == (statistic.axis,)
            for one in np.unique(self.classes[layer.atoms])
        } - {0}


def trace(model: ir.Model, facts: Facts, *, normalised: bool = False) -> Coupling:
    """Label every tensor of a model.

    Args:
        model: unchanged.
        facts: its shapes and integers at a concrete size (`onnxprune.model.observe`).
        normalised: axes that normalisation statistics run over may be cut.
    """
    relations = Relations()
    divisors = frozenset(_divisors(model.graph, facts))
    tensors = _sources(model.graph, facts, divisors)
    settled = _settled(model.graph, facts)
    consumers: list[Consumer] = []
    zero_points: dict[str, tuple[str, int]] = {}
    statistics: list[Statistic] = []

    def values(name: str) -> NDArray[Any] | None:
        return facts.value(name) if name in settled else None

    for node in model.graph:
        if node.op_type == "Constant" and node.domain == "":
            continue
        relations.node = display_name(node)
        opset = model.opset_imports.get(node.domain, 1)
        step = Step(
            node, opset, relations, tensors, facts.first.shapes, values, normalised=normalised
        )
        try:
            _apply_rule(step)
        except Refusal as refusal:
            _refuse(step, str(refusal))
        else:
            consumers += step.consumers
            zero_points |= step.zero_points
            statistics += step.statistics
        _freeze_rest(step)
    relations.node = "graph output"
    for value in model.graph.outputs:
        if value.name in tensors:
            _freeze(relations, tensors[value.name], "the model's interface stays as it is")
    _demand_product_cuts(relations, tensors, facts)
    _close_definitions(relations)
    return Coupling(
        relations=relations,
        tensors=tensors,
        consumers=tuple(consumers),
        divisors=divisors,
        zero_points=zero_points,
        statistics=tuple(statistics),
        facts=facts,
        classes=relations.find(np.arange(relations.count, dtype=np.int32)),
    )


def display_name(node: ir.Node) -> str:
    """How a node is called in messages."""
    return f"{node.op_type} {node.name or node_id(node)}"


def _settled(graph: ir.Graph, facts: Facts) -> set[str]:
    """Tensors that follow from constants and shapes; the values of others vary with the input."""
    settled = set(facts.constants)
    for node in graph:
        shape = node.op_type in ("Shape", "Size") and node.domain == ""
        given = {value.name for value in node.inputs if value is not None}
        if shape or (given and given <= settled and not any(_captured(node))):
            settled.update(value.name for value in node.outputs if value.name)
    return settled


def _divisors(graph: ir.Graph, facts: Facts) -> Iterator[str]:
    """Constants that divide (or are an exponent), directly or worked out from constants alone."""
    made_from = {name: {name} for name in facts.constants}
    for node in graph:
        given = [value.name or "" for value in node.inputs if value is not None]
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
        shape = tuple(tensor.shape.numpy())
        number = tensor.dtype.is_floating_point() and 0 not in shape
        tensors[name] = TensorLabels(
            name,
            shape,
            constant=True,
            pristine=number,
            zero=name not in divisors,
            integer=not number and tensor.dtype in _QUANTISED_TYPES and 0 not in shape,
        )
    return tensors


def _apply_rule(step: Step) -> None:
    node = step.node
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for attribute in node.attributes.values()
    ):
        raise Refusal(f"{node.op_type} runs a subgraph")
    rule = RULES.get((node.domain, node.op_type))
    if rule is None:
        domain = f"{node.domain}::" if node.domain else ""
        raise Refusal(f"there is no coupling rule for {domain}{node.op_type}")
    missing = [step.name(slot) for slot in _slots(step) if not step.known(slot)]
    if missing:
        raise Refusal(f"the shape of {missing[0]} is unknown")
    rule(step)
    for value in node.outputs:
        if (value.uses() or value.is_graph_output()) and value.name not in step.tensors:
            raise Refusal(f"the output {value.name} of {node.op_type} is in use")


def _slots(step: Step) -> list[int]:
    return [slot for slot in range(len(step.node.inputs)) if step.has(slot)]


def _refuse(step: Step, text: str) -> None:
    """Freeze whatever enters a node nobody understands, captured tensors included."""
    step.understood.clear()
    for slot in _slots(step):
        if step.known(slot):
            _freeze(step.relations, step.peek(slot), text)
    for name in _captured(step.node):
        if name in step.tensors:
            _freeze(step.relations, step.tensors[name], text)
    for value in step.node.outputs:
        if value.name:
            shape = step.shapes.get(value.name)
            step.tensors.pop(value.name, None)
            if shape is not None:
                step.tensors[value.name] = TensorLabels(value.name, shape)


def _freeze_rest(step: Step) -> None:
    for slot in _slots(step):
        if slot not in step.understood and step.known(slot):
            text = f"input {slot} of {step.node.op_type} is not cut"
            _freeze(step.relations, step.peek(slot), text)


def _freeze(relations: Relations, labels: TensorLabels, text: str) -> None:
    labels.integer = False
    labels.materialise(relations)
    for layer in labels.layers:
        relations.freeze(layer.atoms, text)
    labels.layers = ()


def _captured(node: ir.Node) -> Iterator[str]:
    """Names that the subgraphs of a node read from outside."""
    for attribute in node.attributes.values():
        graphs = []
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = list(attribute.as_graphs())
        for graph in graphs:
            for inner in graph:
                yield from (value.name for value in inner.inputs if value and value.name)
                yield from _captured(inner)
            yield from (value.name for value in graph.outputs if value.name)


def _demand_product_cuts(
    relations: Relations, tensors: Mapping[str, TensorLabels], facts: Facts
) -> None:
    """A plan lists kept indices per axis, so the cut of a constant has to be a product."""
    for name in facts.constants:
        layers = tensors[name].layers
        for layer in layers:
            others = [one for one in layers if one is not layer and set(one.axes) & set(layer.axes)]
            if len(layer.axes) > 1 and not others:
                align_nesting(relations, layer)


def _close_definitions(relations: Relations) -> None:
    """A composite with a frozen member is frozen; with members of one class it is that class."""
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
