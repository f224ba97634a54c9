"""Lossless removal: units without which the model computes the same go, and need no target for it.

Formula, for a reader y = W x + b and units whose values (`surgery/numbering.py`) are x_u::

    dead         x_u = 0, or W[:, u] = 0, at every reader:   u goes
    constant     x_u = c, whatever the input:                b += W[:, u] c, u goes (fold_means)
    duplicate    x_u = x_v at every reader:                  W[:, v] += W[:, u], u goes
    proportional x_u = a x_v at every reader:                W[:, v] += a W[:, u], u goes

a may differ from reader to reader, is positive behind Relu and the like, and of any sign where all
that lies between is linear. v is the unit with the largest factor, so |a| <= 1.

Before (rows 1 and 5 of W1 are equal, row 7 of W1 and b1[7] are zero)::

    x [N,3,H,W] -> Conv(W1 [64,3,3,3], b1) -> Relu -> Conv(W2 [32,64,3,3]) -> y

After::

    x [N,3,H,W] -> Conv(W1 [62,3,3,3], b1) -> Relu -> Conv(W2 [32,62,3,3]) -> y
    with W2[:, 1] + W2[:, 5] in place of W2[:, 1]

Weights are changed at full size, and what goes is set to zero and listed; the usual mask, slice
and certificate do the rest. What goes may make more go (the readers of merged units
become equal, the producers of dead ones are read by nobody), so groups are looked at until nothing
is left, constants last.

Conditions:

* dead, duplicate and proportional follow from the weights alone (by value numbers), to 1e-6 of the
  norm of what is compared; weights below 1e-15 of the layer's largest, as weight decay leaves them,
  are zero. Constant follows from the weights too (no weights, but a bias); moments of calibration
  samples, where given, add what never changed in those.
* duplicates are merged where every reader is a Conv, ConvTranspose, Gemm, MatMul or Einsum with a
  floating-point weight of its own, without groups; products of two activations cannot be merged.
* inside the body of an If, Loop or Scan all samples are all runs of that body; nothing is constant
  for a reader whose body did not run;
* units with constraints (heads, grouped convolutions) go only where nothing else has to go along.
* the result has to give what the original gives on all feeds, to the certificate's tolerance; a
  group for which it does not stays as it was.

Source: Srinivas & Babu 2015 (equal neurons).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.bodies import seen_bodies
from onnxprune.calibration.moments import Moments, Tap
from onnxprune.compensation.agreement import agreeing_groups
from onnxprune.compensation.fold_means import fold_means
from onnxprune.compensation.lossless.value_numbers import ABSENT, NOTHING, ZERO, Carriers, Numbering
from onnxprune.coupling.analysis import tap_at
from onnxprune.coupling.closure import close
from onnxprune.coupling.cut import Cut
from onnxprune.coupling.group_view import GroupView
from onnxprune.coupling.groups import Group, Reading
from onnxprune.coupling.step import Consumer
from onnxprune.model.runtime import Runtime
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.surgery.linear import SMALL_MAP, is_linear, is_mergeable, move_weights

_ROUNDS = 20
"""Passes over all groups at most; each removes what became redundant in the one before."""


@dataclass
class RedundantUnits:
    """Units of one group whose removal changes no output.

    Attributes:
        dead: units that are zero or that nobody reads.
        constant: units that never change.
        merged: unit -> the unit that stands for it, for duplicate and proportional ones.
        units: what is removed, composites included.
    """

    dead: list[int] = field(default_factory=list)
    constant: list[int] = field(default_factory=list)
    merged: dict[int, int] = field(default_factory=dict)
    units: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class LosslessRemoval:
    """What was made ready to be cut away.

    Attributes:
        groups: the redundant units by name of their group; groups without any are left out.
        dropped: groups left as they were because the result differed from the original.
    """

    groups: Mapping[str, RedundantUnits]
    dropped: tuple[str, ...] = ()

    @property
    def units(self) -> dict[str, tuple[int, ...]]:
        """What is removed, by name of the group."""
        return {name: tuple(group.units) for name, group in self.groups.items()}


def remove_lossless(
    target: EditableModel,
    groups: Sequence[Group],
    runtime: Runtime,
    feeds: Sequence[Mapping[str, NDArray[Any]]] | None = None,
    moments: Mapping[Tap, Moments] | None = None,
    varying: Collection[str] = (),
) -> LosslessRemoval:
    """Find units whose removal changes nothing, and make them ready to be cut away.

    Args:
        target: the model at full size and its coupling; both are updated.
        groups: groups to look at.
        runtime: how to run the model.
        feeds: inputs to compare original and result on; default: those the model was traced on.
        moments: activation statistics by tap; units that were steady in all samples then count as
            constant. The feeds should be calibration samples then.
        varying: names of groups whose units may vary although they were steady in all samples.
    """
    facts, coupling = target.coupling.facts, target.coupling
    feeds = feeds if feeds is not None else [facts.first.feed, facts.second.feed]

    counted = [(1, feed) for feed in feeds]
    ran = {"", *seen_bodies(target.model, counted, runtime, coupling.closed)}

    def removed(model: EditableModel, names: Collection[str]) -> dict[str, RedundantUnits]:
        chosen = [group for group in groups if group.name in names]
        search = _Search(model, chosen, moments or {}, ran, varying)
        return search.run(feeds, runtime)

    kept, dropped = agreeing_groups(
        target,
        [group.name for group in groups],
        lambda trial, names: bool(removed(trial, names)),
        feeds,
        runtime,
    )
    return LosslessRemoval(removed(target, kept) if kept else {}, dropped)


class _Search:
    """Redundant units of each group of a model that is being changed."""

    def __init__(
        self,
        target: EditableModel,
        groups: Sequence[Group],
        moments: Mapping[Tap, Moments],
        ran: Set[str],
        varying: Collection[str],
    ) -> None:
        self.varying = varying
        self.target = target
        self.groups = groups
        self.moments = moments
        self.ran = ran
        self.found = [RedundantUnits() for _ in groups]
        self.dead = np.zeros(target.coupling.relations.count, bool)
        self._constant: list[NDArray[np.bool_]] = [np.zeros(group.size, bool) for group in groups]
        self._carriers = Carriers(target.coupling, groups, target.model.graph)
        self._consumers: dict[str, list[Consumer]] = defaultdict(list)
        for consumer in target.coupling.consumers:
            self._consumers[consumer.node].append(consumer)
        self._looked_at: dict[int, list[ir.TensorProtocol]] = {}

    def run(
        self, feeds: Sequence[Mapping[str, NDArray[Any]]], runtime: Runtime
    ) -> dict[str, RedundantUnits]:
        """Remove until nothing more can be removed; returns what was, by name of the group."""
        for _ in range(_ROUNDS):
            if not sum(self.remove(number) for number in range(len(self.groups))):
                break
        self.fold_constants(feeds, runtime)
        pairs = zip(self.groups, self.found, strict=True)
        return {group.name: units for group, units in pairs if units.units}

    def remove(self, number: int) -> bool:
        """Take what is dead or merged out of a group; say whether anything was."""
        group, found = self.groups[number], self.found[number]
        constants = self.target.coupling.facts.constants
        now = [constants[owned.tensor] for owned in group.owned]
        before = self._looked_at.get(number, [])
        if len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True)):
            return False
        self._looked_at[number] = now
        spare = SpareUnits(
            self.target,
            group,
            Numbering(
                group,
                self._carriers.layers[number],
                self._carriers.nodes[number],
                self.target.coupling,
                self.target.constants(),
                self._consumers,
            ),
            {} if group.name in self.varying else self.moments,
            self.ran,
        )
        left = ~self.dead[group.units]
        dead = left & spare.dead()
        self._constant[number] = left & ~dead & spare.constant()
        merged = spare.merged(left & ~dead & ~self._constant[number])
        gone = self._legal(found, group, [*np.flatnonzero(dead).tolist(), *merged])
        merged = {unit: kept for unit, kept in merged.items() if unit in gone}
        spare.move(merged)
        found.dead += [unit for unit in gone if unit not in merged]
        found.merged |= merged
        self.target.blank(group, gone)
        return bool(gone)

    def fold_constants(self, feeds: Sequence[Mapping[str, NDArray[Any]]], runtime: Runtime) -> None:
        """Fold constant units into the biases of their readers."""
        coupling, folded = self.target.coupling, []
        for group, found, mask in zip(self.groups, self.found, self._constant, strict=True):
            known = len(found.units)
            found.constant = self._legal(found, group, np.flatnonzero(mask).tolist())
            folded += found.units[known:]
        if not folded:
            return
        cut = Cut(coupling, folded)
        moments = {}
        for consumer in coupling.consumers:
            for label in coupling.tensors[consumer.tensor].axis_labels:
                if consumer.axis in label.axes and not cut.alive(label).all():
                    gone = ~cut.alive(label)
                    nothing, some = np.zeros(gone.shape), gone.astype(np.float64)
                    seen = Moments(1, nothing, some, some, gone, gone)
                    moments[tap_at(coupling, consumer, label.axes)] = seen
        fold_means(self.target, cut, moments, feeds, runtime, exact=True)
        for group, found in zip(self.groups, self.found, strict=True):
            self.target.blank(group, found.constant)

    def _legal(self, found: RedundantUnits, group: Group, units: Iterable[int]) -> list[int]:
        """Mark those of the units dead that can go without anything else; return them."""
        wanted = dict.fromkeys(units)
        if not wanted:
            return []
        cost = np.ones(len(self.dead))
        cost[group.units[list(wanted)]] = 0
        number_of = {int(unit): number for number, unit in enumerate(group.units)}
        by_unit = group.constraints.by_unit()
        closed = [a for a, whole in zip(group.axes, group.closed, strict=True) if whole]
        axes_of: dict[int, list[int]] = defaultdict(list)
        left = []
        for which, axis in enumerate(closed):
            left.append(int((~self.dead[group.units[list(axis)]]).sum()))
            for unit in axis:
                axes_of[unit].append(which)
        gone: list[int] = []
        for seeds in _seeds(group, wanted):
            if self.dead[seeds].all():
                continue
            if not len(group.constraints):
                killed: list[int] | None = seeds
            else:
                killed = close(group.constraints, by_unit, self.dead.copy(), seeds, cost)
            dying = [number_of[k] for k in killed or () if k in number_of]
            shrunk: dict[int, int] = defaultdict(int)
            for unit in dying:
                for which in axes_of[unit]:
                    shrunk[which] += 1
            emptied = any(left[which] <= n for which, n in shrunk.items())
            if killed is None or emptied or any(unit not in wanted for unit in dying):
                continue
            self.dead[killed] = True
            for which, n in shrunk.items():
                left[which] -= n
            found.units += killed
            gone += dying
        return gone


def _seeds(group: Group, wanted: Mapping[int, None]) -> list[list[int]]:
    """Classes to try together: under constraints, all of them and whole heads come first."""
    singles = [[int(group.units[unit])] for unit in wanted]
    if not len(group.constraints):
        return singles
    everything = [seed for seeds in singles for seed in seeds]
    heads = [
        members.tolist()
        for _, members in group.constraints.definitions
        if np.isin(members, everything).all()
    ]
    return [everything, *heads, *singles] if everything else []


class SpareUnits:
    """Units of one group that the model can do without, as its values and readers are now.

    Args:
        target: the model at full size.
        group: the group.
        numbering: the values of its units.
        moments: activation statistics by tap, if there are any.
        ran: keys of the bodies whose values can be looked up, "" for the main graph.
    """

    def __init__(
        self,
        target: EditableModel,
        group: Group,
        numbering: Numbering,
        moments: Mapping[Tap, Moments],
        ran: Set[str],
    ) -> None:
        self.target = target
        self.group = group
        self.numbering = numbering
        self.moments = moments
        self._ran = ran
        self.values = [
            numbering.at(reading.consumer.tensor, reading.axes) for reading in group.readings
        ]
        self.unfelt = self._unfelt()

    def dead(self) -> NDArray[np.bool_]:
        """Units that no reader feels."""
        result: NDArray[np.bool_] = ~self.numbering.mixed & np.all(
            [*self.unfelt, np.ones(self.group.size, bool)], axis=0
        )
        return result

    def constant(self) -> NDArray[np.bool_]:
        """Units that every reader that feels them sees unchanged, and can do without."""
        fixed = np.fromiter(self.numbering.fixed, np.int64)
        result = ~self.numbering.mixed
        for reading, values, unfelt in zip(
            self.group.readings, self.values, self.unfelt, strict=True
        ):
            steady = np.isin(values.number, fixed) | self._steady(reading)
            foldable = is_linear(self.target, reading) and 0 not in reading.axes
            foldable = foldable and reading.consumer.body in self._ran
            result &= unfelt | (steady & foldable)
        return result

    def merged(self, candidates: NDArray[np.bool_]) -> dict[int, int]:
        """Units that another one can stand for: unit -> that one."""
        free = candidates & ~self.numbering.mixed
        numbers, sizes = [], np.zeros(self.group.size)
        for reading, values in zip(self.group.readings, self.values, strict=True):
            if is_mergeable(self.target, reading):
                numbers.append(values.number)
                sizes = np.where(sizes == 0, np.abs(values.factor), sizes)
            else:
                free &= values.number <= ZERO
        if not numbers:
            return {}
        keys = np.stack(numbers, axis=1)
        order = np.flatnonzero(free)
        order = order[np.argsort(-sizes[order], kind="stable")]
        stands: dict[bytes, int] = {}
        result = {}
        for unit in order.tolist():
            kept = stands.setdefault(keys[unit].tobytes(), unit)
            if kept != unit:
                result[unit] = kept
        return result

    def move(self, merged: Mapping[int, int]) -> None:
        """Add the weights behind the merged units to those behind the ones that stand for them."""
        for reading, values in zip(self.group.readings, self.values, strict=True):
            moved = [
                (unit, kept, float(values.factor[unit] / values.factor[kept]))
                for unit, kept in merged.items()
                if values.number[unit] > ZERO
            ]
            if moved:
                move_weights(self.target, reading, moved)

    def _unfelt(self) -> list[NDArray[np.bool_]]:
        """For each reading the units that add nothing there: zero, or behind weights of zero."""
        view = GroupView(self.group, self.numbering.constants, {})
        zero_at: dict[str, NDArray[np.bool_]] = {}
        for reading, values in zip(self.group.readings, self.values, strict=True):
            node = reading.consumer.node
            zero_at[node] = zero_at.get(node, np.zeros(self.group.size, bool))
            zero_at[node] |= values.number == ZERO
        result = []
        for reading, values in zip(self.group.readings, self.values, strict=True):
            zero = zero_at[reading.consumer.node] | (values.number == ABSENT)
            if is_linear(self.target, reading):
                power = np.array(view.reader_power(reading))
                felt = view.per_unit(reading.units, power)
                zero = zero | (felt <= NOTHING**2 * felt.max())
            result.append(zero)
        return result

    def _steady(self, reading: Reading) -> NDArray[np.bool_]:
        tap = tap_at(self.target.coupling, reading.consumer, reading.axes)
        moments = self.moments.get(tap)
        result = np.zeros(self.group.size, bool)
        if moments is not None:
            steady = moments.steady
            if not self._pays_off(reading, steady & ~moments.even):
                steady = steady & moments.even
            moving = reading.units[~steady]
            result[reading.units[reading.units >= 0]] = True
            result[moving[moving >= 0]] = False
        return result

    def _pays_off(self, reading: Reading, uneven: NDArray[np.bool_]) -> bool:
        """Whether weights that go with uneven units outnumber the constant map in their place."""
        consumer, coupling = reading.consumer, self.target.coupling
        weight, tensors = coupling.facts.constants.get(consumer.weight or ""), coupling.tensors
        if weight is None or consumer.node not in tensors:
            return True
        each = weight.size / max(tensors[consumer.tensor].shape[consumer.axis], 1)
        saved = int(uneven.sum()) * each
        return prod(tensors[consumer.node].shape[1:]) <= max(saved, SMALL_MAP)
