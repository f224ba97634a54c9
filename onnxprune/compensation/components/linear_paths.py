"""Sets of units between whose producers and readers all is linear and acts on each of them alike.

Values of heads on their way through the attention average to the output projection, queries and
keys on their way to their product, a convolution that follows another without an activation: what
a matrix T does to the units where they are made, its inverse undoes where they are read.

No pattern is looked for. Units that share all their rows form a set; every node at which one of
them appears has to be of a kind known to be linear and alike, with the whole set at its place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.compensation.components.linear_walk import (
    Factor,
    Product,
    Regressor,
    SetWalk,
    UnitLabel,
    Unsuitable,
)
from onnxprune.compensation.regression.linear_layers import replaceable_layers
from onnxprune.coupling.groups import Group
from onnxprune.coupling.trace import Coupling


@dataclass(frozen=True, eq=False)
class LinearSet:
    """Units that a matrix may be applied to where its inverse is applied as well.

    Attributes:
        group: name of their group.
        units: their numbers in it, ascending.
        factors: constants to be multiplied, with T or with its inverse.
        readers: layers that read the set; none where there are products.
        products: products of two activations that both carry the set.
    """

    group: str
    units: tuple[int, ...]
    factors: tuple[Factor, ...]
    readers: tuple[Regressor, ...]
    products: tuple[Product, ...]


@dataclass(frozen=True)
class LeftAlone:
    """A set that something else than a linear map is done to.

    Attributes:
        group: name of its group.
        units: its units.
        node: where.
        reason: what it is.
    """

    group: str
    units: tuple[int, ...]
    node: str
    reason: str


def linear_sets(
    model: ir.Model, coupling: Coupling, groups: Sequence[Group], largest: int = 2048
) -> tuple[list[LinearSet], list[LeftAlone]]:
    """Find the sets of some groups.

    Args:
        model: the model.
        coupling: its labels.
        groups: groups to look at.
        largest: units above which a set is left alone.

    Returns:
        the sets, and those sets of two or more units that are none.
    """
    layers = {id(layer.node): layer for layer in replaceable_layers(model, coupling)}
    summed: dict[tuple[str, str], set[int]] = defaultdict(set)
    for consumer in coupling.consumers:
        if consumer.weight is not None:
            summed[consumer.node, consumer.weight].add(consumer.weight_axis)
    nodes = _nodes_by_name(model)
    sets: list[LinearSet] = []
    left: list[LeftAlone] = []
    for group, carriers in zip(groups, _carriers(coupling, groups), strict=True):
        for units in _sets(group.size, carriers):
            if len(units) < 2:
                continue
            numbers = tuple(units.tolist())
            try:
                if len(units) > largest:
                    raise Unsuitable("", f"more than {largest} units")
                walk = SetWalk(model, coupling, layers, summed, carriers, units)
                walk.along(_touched(walk.names, nodes))
                sets.append(LinearSet(group.name, numbers, *walk.result()))
            except Unsuitable as reason:
                left.append(LeftAlone(group.name, numbers, reason.node, str(reason)))
    return sets, left


def _carriers(coupling: Coupling, groups: Sequence[Group]) -> list[dict[str, list[UnitLabel]]]:
    """Labels of each group by tensor."""
    count = coupling.relations.count
    owner, unit = np.full(count, -1, np.int64), np.full(count, -1, np.int64)
    for number, group in enumerate(groups):
        owner[group.units], unit[group.units] = number, np.arange(group.size)
    carriers: list[dict[str, list[UnitLabel]]] = [defaultdict(list) for _ in groups]
    for name, labels in coupling.tensors.items():
        for label in labels.axis_labels:
            ids = coupling.unit_of[label.atoms]
            for number in np.unique(owner[ids]).tolist():
                if number >= 0:
                    units = np.where(owner[ids] == number, unit[ids], -1)
                    carriers[number][name].append(UnitLabel(label.axes, units, label.atoms))
    return carriers


def _sets(size: int, carriers: Mapping[str, Sequence[UnitLabel]]) -> Iterator[NDArray[np.int64]]:
    """Split a group into units that are together in every row of every joint label."""
    rng = np.random.default_rng(0)
    signature = np.zeros(size, np.uint64)
    for labels in carriers.values():
        for label in labels:
            rows = label.units.reshape(-1, label.units.shape[-1])
            marks = rng.integers(0, 2**63, len(rows), dtype=np.uint64)
            row, column = np.nonzero(rows >= 0)
            np.add.at(signature, rows[row, column], marks[row])
    for mark in dict.fromkeys(signature.tolist()):
        yield np.flatnonzero(signature == np.uint64(mark))


def _nodes_by_name(model: ir.Model) -> dict[str, list[tuple[int, ir.Node]]]:
    """Nodes of the main graph that read or make a tensor, with their places."""
    nodes: dict[str, list[tuple[int, ir.Node]]] = defaultdict(list)
    for place, node in enumerate(model.graph):
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.name:
                nodes[value.name].append((place, node))
    return nodes


def _touched(names: Sequence[str], nodes: dict[str, list[tuple[int, ir.Node]]]) -> list[ir.Node]:
    """Nodes at some tensors, in graph order."""
    ordered = {place: node for name in names for place, node in nodes.get(name, ())}
    return [ordered[place] for place in sorted(ordered)]
