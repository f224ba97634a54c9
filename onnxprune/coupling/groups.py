"""From labels to groups of removable units, and to the refusals for everything else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxprune.coupling.closure import ConstraintSet
from onnxprune.coupling.relations import DisjointSets
from onnxprune.coupling.step import Consumer
from onnxprune.coupling.trace import Coupling


@dataclass(frozen=True, eq=False)
class LabelledAxes:
    """Axes of a tensor that carry units of a group.

    Only what is the group's is held: where many groups are concatenated, each has few positions.

    Attributes:
        axes: the axes, in nesting order.
        shape: their extents.
        positions: the positions of these axes that are the group's, flat and ascending: int64 [n].
        indices: unit index at each of them: int64 [n].
    """

    axes: tuple[int, ...]
    shape: tuple[int, ...]
    positions: NDArray[np.int64]
    indices: NDArray[np.int64]

    @property
    def units(self) -> NDArray[np.int64]:
        """Unit index at each position, -1 where it is not the group's; one dimension per axis."""
        units = np.full(self.shape, -1, np.int64)
        units.reshape(-1)[self.positions] = self.indices
        return units


@dataclass(frozen=True, eq=False)
class OwnedAxes(LabelledAxes):
    """Axes of a constant that a group cuts.

    Attributes:
        tensor: name of the constant.
    """

    tensor: str


@dataclass(frozen=True, eq=False)
class Reading(LabelledAxes):
    """A contraction that reads the group.

    Attributes:
        consumer: node, activation, weight and axes.
    """

    consumer: Consumer


@dataclass(frozen=True, eq=False)
class Group:
    """Units that depend on each other or sit on one axis, with everything that goes with them.

    Attributes:
        name: the tensor and axis that makes the units, as `tensor[axis]`.
        kind: channel, head or channel group.
        units: its units in the order of that axis: int32 [size].
        all_units: these and their composites: int32, ascending.
        constraints: what must hold between them.
        owned: the constants cut with the group.
        readings: the contractions that read it.
        axes: unit indices of every distinct set of units that shares an axis.
        closed: for each entry of `axes`, whether nothing else lies on that axis, so that one of
            its units has to stay.
    """

    name: str
    kind: str
    units: NDArray[np.int32]
    all_units: NDArray[np.int32]
    constraints: ConstraintSet
    owned: tuple[OwnedAxes, ...]
    readings: tuple[Reading, ...]
    axes: tuple[tuple[int, ...], ...]
    closed: tuple[bool, ...]

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.units)


@dataclass(frozen=True)
class Refused:
    """An axis of a weight that cannot be cut, or only in part.

    Attributes:
        tensor: the weight.
        dimension: number of the axis.
        node: the node that forbids it.
        reason: in plain words.
        parameters: elements of the tensor that it holds back.
    """

    tensor: str
    dimension: int
    node: str
    reason: str
    parameters: int

    @property
    def axis(self) -> str:
        """The axis as `tensor[dimension]`."""
        return f"{self.tensor}[{self.dimension}]"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "axis": self.axis,
            "node": self.node,
            "reason": self.reason,
            "parameters": self.parameters,
        }


def find_groups(coupling: Coupling) -> list[Group]:
    """Collect removable units into groups, in the order in which the graph makes them."""
    view = _UnitView(coupling)
    groups = (view.group(key) for key in view.components())
    return [group for group in groups if group is not None]


def find_refusals(coupling: Coupling) -> list[Refused]:
    """List every axis of a weight that makes something and cannot be cut, or only in part."""
    relations = coupling.relations
    blocks = relations.blocks()
    start = np.searchsorted(np.sort(blocks), np.arange(len(relations.origins) + 1))
    by_block = np.argsort(blocks, kind="stable")
    refused = []
    for number, origin in enumerate(relations.origins):
        atoms = by_block[start[number] : start[number + 1]]
        frozen = atoms[coupling.unit_of[atoms] == 0]
        if origin.tensor not in coupling.facts.constants or not len(frozen):
            continue
        reason = relations.reason(int(frozen[0]))
        size = int(np.prod(coupling.tensors[origin.tensor].shape))
        refused.append(
            Refused(
                tensor=origin.tensor,
                dimension=origin.axis,
                node=reason.node if reason else "",
                reason=reason.text if reason else "",
                parameters=size * len(frozen) // len(atoms),
            )
        )
    return refused


class _Part(NamedTuple):
    """What a label says of one component.

    Attributes:
        tensor: name of the tensor.
        axes: axes of the label.
        shape: their extents.
        positions: flat positions with single units of the component, ascending: int64 [n].
        indices: index of the unit at each of them among those of the component: int64 [n].
    """

    tensor: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    positions: NDArray[np.int64]
    indices: NDArray[np.int64]


class _UnitView:
    """Labels, constraints and consumers of a coupling in terms of units, by component."""

    def __init__(self, coupling: Coupling) -> None:
        relations = coupling.relations
        self.coupling = coupling
        self.unit_of = coupling.unit_of
        self.component = _components(coupling)
        blocks = relations.blocks()
        atoms = np.flatnonzero(blocks >= 0)
        found, first = np.unique(self.unit_of[atoms], return_index=True)
        self.first_atom = dict(zip(found.tolist(), atoms[first].tolist(), strict=True))
        self.members = self._members()
        self.units = {key: self._units(key) for key in self.members}
        # A unit belongs to one component only, so one array numbers the units of all of them.
        self.index = np.full(len(self.unit_of), -1, np.int64)
        for units in self.units.values():
            self.index[units] = np.arange(len(units))
        self.definitions = self._by_component(
            [np.append(self.unit_of[m], self.unit_of[c]) for c, m in relations.definitions]
        )
        self.rectangles = self._by_component([self.unit_of[a] for a in relations.rectangles])
        self.alignments = self._by_component(
            [np.unique(self.unit_of[a], axis=0) for a in relations.alignments]
        )
        self.axis_labels: dict[int, list[_Part]] = defaultdict(list)
        self.readings: dict[int, list[tuple[Consumer, _Part]]] = defaultdict(list)
        read = {consumer.tensor for consumer in coupling.consumers}
        parts: dict[str, list[tuple[int, _Part]]] = defaultdict(list)
        split = cache(self._split)
        for name, labels in coupling.tensors.items():
            for label in labels.axis_labels:
                shape = label.atoms.shape
                for key, positions, indices in split(self.unit_of[label.atoms].tobytes()):
                    part = _Part(name, label.axes, shape, positions, indices)
                    self.axis_labels[key].append(part)
                    if name in read:
                        parts[name].append((key, part))
        for consumer in coupling.consumers:
            for key, part in parts[consumer.tensor]:
                if consumer.axis in part.axes:
                    self.readings[key].append((consumer, part))

    def components(self) -> list[int]:
        """Components with something removable, in the order of their first atom."""
        return list(self.members)

    def group(self, key: int) -> Group | None:
        """Build the group of a component; None when no weight would become smaller."""
        units = self.units[key]
        owned = tuple(
            OwnedAxes(part.axes, part.shape, part.positions, part.indices, part.tensor)
            for part in self.axis_labels[key]
            if part.tensor in self.coupling.facts.constants
        )
        if not owned or not len(units):
            return None
        readings = tuple(
            Reading(part.axes, part.shape, part.positions, part.indices, consumer)
            for consumer, part in self.readings[key]
        )
        axes = self._axes(key)
        constraints = self._constraints(key)
        return Group(
            name=self._name(units, owned),
            kind=_kind(constraints, readings),
            units=units,
            all_units=self.members[key],
            constraints=constraints,
            owned=owned,
            readings=readings,
            axes=tuple(axes),
            closed=tuple(axes.values()),
        )

    def _members(self) -> dict[int, NDArray[np.int32]]:
        """Units of every component with something removable, both ascending."""
        units = np.unique(self.unit_of[self.unit_of > 0])
        order = np.argsort(self.component[units], kind="stable")
        keys, starts = np.unique(self.component[units][order], return_index=True)
        parts = np.split(units[order], starts[1:])
        return dict(zip(keys.tolist(), parts, strict=True)) if len(units) else {}

    def _units(self, key: int) -> NDArray[np.int32]:
        made = [unit for unit in self.members[key].tolist() if unit in self.first_atom]
        return np.array(sorted(made, key=self.first_atom.__getitem__), np.int32)

    def _split(self, label: bytes) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Take a label apart.

        Args:
            label: units at its positions, the bytes of an int32 array.

        Returns:
            components in it, each with flat positions and unit indices as a `_Part` has them.
        """
        units = np.frombuffer(label, np.int32)
        owners, indices = self.component[units], self.index[units]
        order = np.argsort(owners, kind="stable")
        order = order[units[order] > 0]
        owners = owners[order]
        starts = np.flatnonzero(np.diff(owners, prepend=-1)).tolist()
        parts = []
        for start, stop in pairwise([*starts, len(order)]):
            positions = order[start:stop]
            mine = indices[positions]
            if mine.min() < 0:  # composites
                positions, mine = positions[mine >= 0], mine[mine >= 0]
            parts.append((int(owners[start]), positions, mine))
        return parts

    def _name(self, units: NDArray[np.int32], owned: tuple[OwnedAxes, ...]) -> str:
        relations = self.coupling.relations
        origin = relations.origins[relations.blocks()[self.first_atom[int(units[0])]]]
        if origin.tensor in self.coupling.facts.constants:
            return f"{origin.tensor}[{origin.axis}]"
        return f"{owned[0].tensor}[{owned[0].axes[0]}]"

    def _axes(self, key: int) -> dict[tuple[int, ...], bool]:
        """Distinct sets of units on one axis, and whether nothing else is on it."""
        found: dict[tuple[int, ...], bool] = {}
        seen: dict[tuple[bytes, bool], None] = {}
        for part in self.axis_labels[key]:
            if len(part.indices):
                seen[part.indices.tobytes(), len(part.positions) == prod(part.shape)] = None
        for indices, alone in seen:
            mine = tuple(np.unique(np.frombuffer(indices, np.int64)).tolist())
            found[mine] = found.get(mine, False) or alone
        return found

    def _constraints(self, key: int) -> ConstraintSet:
        definitions = tuple((int(d[-1]), np.unique(d[:-1])) for d in self.definitions[key])
        return ConstraintSet(definitions, tuple(self.rectangles[key]), tuple(self.alignments[key]))

    def _keys(self, ids: NDArray[np.int32]) -> list[int]:
        return [int(key) for key in np.unique(self.component[ids[ids > 0]])]

    def _by_component(
        self, arrays: Iterable[NDArray[np.int32]]
    ) -> dict[int, list[NDArray[np.int32]]]:
        distinct = {(array.shape, array.tobytes()): array for array in arrays}
        sorted_: dict[int, list[NDArray[np.int32]]] = defaultdict(list)
        for array in distinct.values():
            for key in self._keys(array):
                sorted_[key].append(array)
        return sorted_


def _components(coupling: Coupling) -> NDArray[np.int32]:
    """Connect units that share a block of atoms or a constraint: component of each atom."""
    relations, unit_of = coupling.relations, coupling.unit_of
    sets = DisjointSets(relations.count)
    blocks = relations.blocks()
    order = np.argsort(blocks, kind="stable").astype(np.int32)
    order = order[(blocks[order] >= 0) & (unit_of[order] > 0)]
    same = blocks[order[1:]] == blocks[order[:-1]]
    sets.link_all(unit_of[order[:-1][same]], unit_of[order[1:][same]])
    together = [np.append(members, np.int32(c)) for c, members in relations.definitions]
    together += [array.ravel() for array in (*relations.rectangles, *relations.alignments)]
    for atoms in together:
        ids = unit_of[atoms]
        ids = ids[ids > 0]
        sets.link_all(ids[:-1], ids[1:])
    return sets.roots(unit_of)


def _kind(constraints: ConstraintSet, readings: tuple[Reading, ...]) -> str:
    if not len(constraints):
        return "channel"
    return (
        "head" if any(reading.consumer.weight is None for reading in readings) else "channel group"
    )


def unit_positions(units: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Positions of all units, by how many they have.

    Args:
        units: unit index at each position, -1 for none; any shape.

    Returns:
        For each number of positions a pair: (units [n], flat positions [n, positions], ascending).
    """
    flat = units.ravel()
    order = np.argsort(flat, kind="stable")
    order = order[flat[order] >= 0]
    present, start, counts = np.unique(flat[order], return_index=True, return_counts=True)
    result = []
    for times in np.unique(counts).tolist():
        mine = counts == times
        result.append((present[mine], order[start[mine][:, np.newaxis] + np.arange(times)]))
    return result
