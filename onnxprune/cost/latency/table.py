"""Seconds of every node of a model at other widths, measured with this machine's onnxruntime.

    seconds(node, shapes) = call + kernel * relative(shapes)

`kernel` is the time of the node in a profile of the whole original, so that all nodes add up to
what was measured. `relative` is 1 at the original's shapes. For operators that multiply it is the
time of the operator alone at the new widths over that at the old ones (`latency.grid`), or, where
it cannot be timed alone, the ratio of multiply-accumulates; for all others that of elements
written. The same times say which multiple of units every group should keep on this machine.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from math import gcd, prod

import numpy as np
import onnx_ir as ir

from onnxprune.cost.latency.cache import TimingCache, cache_folder, machine
from onnxprune.cost.latency.grid import KernelTimes
from onnxprune.cost.latency.probe import kernel_of, profile_model
from onnxprune.cost.macs import node_macs
from onnxprune.coupling.closure import close
from onnxprune.coupling.cut_shapes import CutShapes
from onnxprune.coupling.groups import Group
from onnxprune.coupling.trace import Coupling
from onnxprune.errors import RuntimeFailure
from onnxprune.model.inputs import overridable
from onnxprune.model.node_view import ShapeOf
from onnxprune.model.observe import Facts
from onnxprune.model.runtime import Runtime

_LAUNCH = 1e-6  # seconds of a kernel that do not fall with its work


class LatencyTable:
    """Seconds of every node of a model, at any widths.

    Nothing is run before it is asked for; what is timed of operators alone is kept on disk.

    Args:
        model: the original; not changed, also not later.
        facts: its constants, and its shapes on the feed whose time is meant.
        runtime: providers and threads, the user's.
        cache: where timings are kept; default: the user's cache directory.
    """

    def __init__(
        self, model: ir.Model, facts: Facts, runtime: Runtime, cache: TimingCache | None = None
    ) -> None:
        self._model = model
        self._facts = facts
        # what may be overridden, onnxruntime takes as it comes
        free = overridable(model)
        self._constants = {n: value for n, value in facts.constants.items() if n not in free}
        self._runtime = runtime
        self._cache = cache or TimingCache(cache_folder())
        self._machine = machine(runtime)
        self._profile = profile_model(model, facts.first.feed, facts.first.shapes, runtime)
        self._number = {id(node): number for number, node in enumerate(model.graph)}
        self._times: dict[int, KernelTimes | None] = {}
        self._by_key: dict[str, KernelTimes] = {}
        self._work: dict[int, float] = {}

    @property
    def measured(self) -> float:
        """Seconds of one run of the original."""
        return self._profile.total

    def seconds(self, node: ir.Node, shape_of: ShapeOf) -> float:
        """Seconds a node of the main graph takes at some shapes.

        Args:
            node: a node of the model this table was made for.
            shape_of: shape of a tensor by name after a cut; raises KeyError when unknown.
        """
        number = self._number.get(id(node))
        if number is None:
            return 0.0
        kernel = self._profile.kernels[number]
        if not kernel:
            return 0.0
        return self._profile.call + kernel * self._relative(node, shape_of)

    def multiples(self, node: ir.Node, shape_of: ShapeOf) -> dict[int, tuple[int, int]]:
        """The widths of a node that a cut changes.

        Args:
            node: a node of the model this table was made for.
            shape_of: shape of a tensor by name after the cut.

        Returns:
            For each axis whose width changes: by how much, and the multiple its width should keep
            (1 where rounding buys nothing). Nothing for nodes that cannot be timed alone.
        """
        times = self._kernel_times(node)
        if times is None:
            return {}
        before, after = times.widths, times.widths_at(node, shape_of)
        if after is None:
            return {}
        changed = [axis for axis, width in enumerate(after) if width != before[axis]]
        try:
            return {axis: (before[axis] - after[axis], times.multiple(axis)) for axis in changed}
        except RuntimeFailure:
            return {}

    def _relative(self, node: ir.Node, shape_of: ShapeOf) -> float:
        times = self._kernel_times(node)
        if times is not None:
            widths = times.widths_at(node, shape_of)
            if widths is not None:
                if widths == times.widths:
                    return 1.0
                try:
                    return times.seconds(widths) / times.seconds(times.widths)
                except RuntimeFailure:
                    self._times[id(node)] = None
        return self._relative_work(node, shape_of)

    def _relative_work(self, node: ir.Node, shape_of: ShapeOf) -> float:
        before = self._work.get(id(node))
        if before is None:
            before = self._work[id(node)] = _work(node, self._facts.first.shapes.__getitem__)
        after = _work(node, shape_of)
        if not before or not after:
            return 1.0
        ratio = after / before
        kernel = self._profile.kernels[self._number[id(node)]]
        fixed = min(_LAUNCH / kernel, 1.0)
        return fixed + (1 - fixed) * ratio

    def _kernel_times(self, node: ir.Node) -> KernelTimes | None:
        if id(node) not in self._times:
            self._times[id(node)] = self._new_times(node)
        return self._times[id(node)]

    def _new_times(self, node: ir.Node) -> KernelTimes | None:
        shape_of = self._facts.first.shapes.__getitem__
        opsets = self._model.opset_imports
        kernel = kernel_of(node, shape_of, self._constants, opsets)
        if kernel is None:
            return None
        name = json.dumps([kernel.key(), kernel.widths])
        if name not in self._by_key:
            times = KernelTimes(kernel, self._runtime, self._cache, self._machine)
            self._by_key[name] = times
        return self._by_key[name]


def _work(node: ir.Node, shape_of: ShapeOf) -> float:
    """Multiply-accumulates, or elements written where there are none; 0 where nothing is known."""
    macs = node_macs(node, shape_of)
    if macs:
        return float(macs)
    try:
        return float(sum(prod(shape_of(value.name)) for value in node.outputs if value.name))
    except KeyError:
        return 0.0


_ENOUGH_OF_GROUP = 0.3  # share of the time of a group that a multiple has to speed up
_ENOUGH_OF_MODEL = 0.002  # share of the time of the model below which a group is not rounded
_SEEDS = 8  # axes of a group that are looked at


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
    shapes, observed = CutShapes(coupling), coupling.facts.first.shapes.__getitem__
    return {group.name: _multiple(table, shapes, observed, group, readers) for group in groups}


def _multiple(
    table: LatencyTable,
    shapes: CutShapes,
    observed: ShapeOf,
    group: Group,
    readers: Mapping[str, Sequence[ir.Node]],
) -> int:
    names = [owned.tensor for owned in group.owned]
    names += [reading.consumer.tensor for reading in group.readings]
    nodes = {id(node): node for name in names for node in readers.get(name, ())}
    multiples: dict[int, int] = {}
    for removed in _small_removals(group):
        shape_of = shapes.after(removed)
        units = set(removed)
        count = max(
            len(units.intersection(group.units[list(axis)].tolist())) for axis in group.axes
        )
        for number, node in nodes.items():
            for change, step in table.multiples(node, shape_of).values():
                multiples[number] = max(multiples.get(number, 1), _in_units(step, change, count))
    shares: dict[int, float] = defaultdict(float)
    for number, multiple in multiples.items():
        shares[multiple] += table.seconds(nodes[number], observed)
    total = sum(shares.values())
    if total < _ENOUGH_OF_MODEL * table.measured:
        return 1
    fitting = [
        multiple
        for multiple in shares
        if sum(s for other, s in shares.items() if other >= multiple) >= _ENOUGH_OF_GROUP * total
    ]
    multiple = max(fitting, default=1)
    shortest = min(len(axis) for axis in group.axes)
    while multiple > 1 and shortest < 2 * multiple:
        multiple //= 2
    return multiple


def _small_removals(group: Group) -> Iterator[list[int]]:
    """Units that are removed with one unit, for a unit of every axis; nothing where none can be."""
    by_unit = group.constraints.by_unit()
    cost = np.zeros(int(group.all_units.max()) + 1)
    seeds = dict.fromkeys(int(group.units[axis[0]]) for axis in group.axes)
    for seed in islice(seeds, _SEEDS):
        removed = close(group.constraints, by_unit, np.zeros(len(cost), bool), [seed], cost)
        if removed is not None:
            yield [int(unit) for unit in removed]


def _in_units(step: int, change: int, units: int) -> int:
    """Units in a step, for a width that changes by so much when so many units of an axis go."""
    if change % units:
        return 1
    return step // gcd(step, change // units)
