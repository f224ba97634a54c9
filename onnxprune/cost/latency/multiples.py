"""Which multiple of units every group should keep on this machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from math import gcd

import numpy as np
import onnx_ir as ir

from onnxprune.cost.latency.table import LatencyTable
from onnxprune.coupling.closure import close
from onnxprune.coupling.cut import shapes_after
from onnxprune.coupling.groups import Group
from onnxprune.coupling.trace import Coupling

_ENOUGH_OF_GROUP = 0.3
_ENOUGH_OF_MODEL = 0.002
_SEEDS = 8


def group_multiples(
    table: LatencyTable, graph: ir.Graph, coupling: Coupling, groups: Sequence[Group]
) -> dict[str, int]:
    """Say how many units every group should keep a multiple of.

    A smallest legal removal shows which widths of which nodes a group changes and by how much. A
    multiple is taken when nodes with at least 30 % of the time that the group has a say in fall in
    such steps; it is halved while an axis of the group would have fewer than two levels.

    Args:
        table: of the model.
        graph: the main graph of the model.
        coupling: its labels.
        groups: its groups.

    Returns:
        By group name; 1 where rounding buys nothing.
    """
    readers: dict[str, list[ir.Node]] = defaultdict(list)
    for node in graph:
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.name:
                readers[value.name].append(node)
    return {group.name: _multiple(table, coupling, group, readers) for group in groups}


def _multiple(
    table: LatencyTable,
    coupling: Coupling,
    group: Group,
    readers: Mapping[str, Sequence[ir.Node]],
) -> int:
    names = [owned.tensor for owned in group.owned]
    names += [reading.consumer.tensor for reading in group.readings]
    nodes = {id(node): node for name in names for node in readers.get(name, ())}
    multiples: dict[int, int] = {}
    for removed in _small_removals(group):
        shape_of = shapes_after(coupling, removed)
        units = set(removed)
        gone = max(len(units.intersection(group.units[list(axis)].tolist())) for axis in group.axes)
        for number, node in nodes.items():
            for change, step in table.multiples(node, shape_of).values():
                multiples[number] = max(multiples.get(number, 1), _in_units(step, change, gone))
    shares: dict[int, float] = defaultdict(float)
    observed = coupling.facts.first.shapes.__getitem__
    for number, multiple in multiples.items():
        shares[multiple] += table.seconds(nodes[number], observed)
    total = sum(shares.values())
    if total < _ENOUGH_OF_MODEL * table.measured:
        return 1
    fitting = [
        one
        for one in shares
        if sum(share for other, share in shares.items() if other >= one) >= _ENOUGH_OF_GROUP * total
    ]
    multiple = max(fitting, default=1)
    shortest = min(len(axis) for axis in group.axes)
    while multiple > 1 and shortest < 2 * multiple:
        multiple //= 2
    return multiple


def _small_removals(group: Group) -> Iterator[list[int]]:
    """What goes when one unit goes, for a unit of every axis; nothing where none can."""
    by_unit = group.constraints.by_unit()
    cost = np.zeros(int(group.all_units.max()) + 1)
    seeds = dict.fromkeys(int(group.units[axis[0]]) for axis in group.axes)
    for seed in islice(seeds, _SEEDS):
        killed = close(group.constraints, by_unit, np.zeros(len(cost), bool), [seed], cost)
        if killed is not None:
            yield [int(one) for one in killed]


def _in_units(step: int, change: int, units: int) -> int:
    """Units in a step, for a width that changes by so much when so many units of an axis go."""
    if change % units:
        return 1
    return step // gcd(step, change // units)
