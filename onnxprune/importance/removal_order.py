"""In which order the units of a group are removed: a nested sequence of legal removals.

Every prefix of the sequence is legal, so an allocator only has to choose how far to go. Each step
carries the fraction of its axis that is removed after it; the sequence is built by raising that
fraction slowly and, below it, taking the cheapest legal closure first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.coupling.closure import close
from onnxprune.coupling.groups import Group
from onnxprune.coupling.relations import DisjointSets

_STAGES = 64
_ROUNDING = 1e-9
_WORTHWHILE = 1.02


@dataclass(frozen=True)
class RemovalStep:
    """One legal removal on top of those before it.

    Attributes:
        units: what is removed now, composites included.
        fraction: largest fraction of any axis of the group that is removed afterwards.
        score: sum of the scores of the units that die now.
    """

    units: tuple[int, ...]
    fraction: float
    score: float


def removal_order(
    group: Group,
    scores: NDArray[np.float64],
    goal: float | None = None,
    seeds: Collection[int] | None = None,
) -> list[RemovalStep]:
    """Order the removals of a group.

    Args:
        group: the units and what constrains them.
        scores: importance of each unit, float [size].
        goal: fraction at which the order ends, used up as far as possible; None for the order
            until nothing more can go.
        seeds: units that may start a removal; None for all.
    """
    if not len(group.constraints) and len(group.axes) == 1:
        free = _by_score(group, scores)
        return [step for step in free if goal is None or step.fraction <= goal + _ROUNDING]
    greedy = _Greedy(group, scores, goal, seeds=seeds)
    steps = greedy.run()
    if goal is not None and (promoted := greedy.left_out()):
        other = _Greedy(group, scores, goal, promoted)
        alternative = other.run()
        if other.units_gone() > _WORTHWHILE * greedy.units_gone():
            return alternative
    return steps


def aligned(
    group: Group,
    order: Sequence[RemovalStep],
    multiple: int,
    *,
    finer: bool = False,
    by_row: bool = False,
) -> list[RemovalStep]:
    """Bundle steps so that every axis they cut keeps a multiple of some number of units.

    Args:
        group: the group the order belongs to.
        order: its removal order.
        multiple: 1 changes nothing; 8 or 16 are the widths in which kernels compute.
        finer: where the order goes on behind the last such width, go on in half of the multiple,
            and so on; else what is behind it is left out.
        by_row: what a composite is made of (the dimensions of one head) keeps a multiple as well,
            so that axes still do when whole composites go besides.

    Returns:
        a removal order with fewer, larger steps.
    """
    axes = [frozenset(axis) for axis in group.axes]
    if by_row:
        axes += _rows(group)
    left = [len(axis) for axis in axes]
    result, rest = _bundles(group, order, axes, left, multiple)
    while finer and rest and multiple > 1:
        multiple //= 2
        more, rest = _bundles(group, rest, axes, left, multiple)
        result += more
    return result


def keeps_multiples(group: Group, classes: Sequence[int], multiple: int) -> bool:
    """Whether every axis of a group keeps a multiple of some number of units, or all it has.

    Args:
        group: the group.
        classes: what goes.
        multiple: 1 is always kept.
    """
    removed = np.isin(group.units, classes)
    left = [len(axis) - int(removed[list(axis)].sum()) for axis in group.axes]
    return _are_multiples(group.axes, left, multiple)


def _are_multiples(axes: Sequence[Collection[int]], left: Sequence[int], multiple: int) -> bool:
    pairs = zip(axes, left, strict=True)
    return all(count % multiple == 0 or count == len(axis) for axis, count in pairs)


def _rows(group: Group) -> list[frozenset[int]]:
    """Units that each composite is made of."""
    number_of = {int(unit): number for number, unit in enumerate(group.units)}
    members = (row.tolist() for _, row in group.constraints.definitions)
    return [frozenset(number_of[unit] for unit in row if unit in number_of) for row in members]


def _bundles(
    group: Group,
    order: Sequence[RemovalStep],
    axes: Sequence[frozenset[int]],
    left: list[int],
    multiple: int,
) -> tuple[list[RemovalStep], list[RemovalStep]]:
    """Bundles of steps, and the steps behind the last; `left` becomes what the axes then keep."""
    number_of = {int(unit): number for number, unit in enumerate(group.units)}
    result: list[RemovalStep] = []
    waiting: list[RemovalStep] = []
    now = list(left)
    for step in order:
        waiting.append(step)
        removed = {number_of[unit] for unit in step.units if unit in number_of}
        now = [n - len(axis & removed) for n, axis in zip(now, axes, strict=True)]
        if _are_multiples(axes, now, multiple):
            classes = tuple(unit for each in waiting for unit in each.units)
            score = sum(each.score for each in waiting)
            result.append(RemovalStep(classes, step.fraction, score))
            waiting, left[:] = [], now
    return result, waiting


def _by_score(group: Group, scores: NDArray[np.float64]) -> list[RemovalStep]:
    """Independent units on one axis: sort them."""
    order = np.argsort(scores, kind="stable")
    last = group.size - 1 if group.closed[0] else group.size
    return [
        RemovalStep((int(group.units[unit]),), (i + 1) / group.size, float(scores[unit]))
        for i, unit in enumerate(order[:last].tolist())
    ]


class _Greedy:
    """Constrained groups: raise the budget of every axis in stages, close seeds within it.

    Args:
        group: the units and what constrains them.
        scores: importance of each unit.
        goal: fraction to stop at; None goes on until nothing more can go.
        promoted: families that are taken first, whatever they cost.
        seeds: units that may start a removal; None for all.
    """

    def __init__(
        self,
        group: Group,
        scores: NDArray[np.float64],
        goal: float | None,
        promoted: Sequence[int] = (),
        seeds: Collection[int] | None = None,
    ) -> None:
        self.group = group
        self.seeds = seeds
        self.goal = goal
        self.promoted = promoted
        self.by_unit = group.constraints.by_unit()
        count = int(group.all_units.max()) + 1
        self.cost = np.zeros(count)
        self.cost[group.units] = scores
        self.removed = np.zeros(count, bool)
        self.axes = [group.units[list(axis)] for axis in group.axes]
        self.limits = [
            len(axis) - 1 if closed else len(axis)
            for axis, closed in zip(group.axes, group.closed, strict=True)
        ]
        self.axes_of: dict[int, list[int]] = {}
        for number, axis in enumerate(self.axes):
            for unit in axis.tolist():
                self.axes_of.setdefault(unit, []).append(number)
        self.counts = [0] * len(self.axes)
        self.families = self._families()
        self.needed = [0.0] * len(self.families)
        self.growth: dict[int, list[int]] = {}

    def run(self) -> list[RemovalStep]:
        """Return the steps."""
        steps: list[RemovalStep] = []
        if self.goal is not None:
            for number in self.promoted:
                steps += self._advance(number, self.goal)
        for budget in self._budgets():
            for number, least in enumerate(self.needed):
                if least <= budget + _ROUNDING:
                    steps += self._advance(number, budget)
        return steps

    def left_out(self) -> list[int]:
        """Families that found no room although they lie on an axis that has some left.

        Small closures that were taken early can fill an axis so that a larger one, the only way
        to cut another axis, comes too late.
        """
        assert self.goal is not None
        room = [
            int(self.goal * len(axis) + _ROUNDING) - count
            for axis, count in zip(self.axes, self.counts, strict=True)
        ]
        return [
            number
            for number, growth in self.growth.items()
            if np.isfinite(self.needed[number])
            and any(0 < more <= left for more, left in zip(growth, room, strict=True))
        ]

    def units_gone(self) -> int:
        """Number of units removed."""
        return int(self.removed[self.group.units].sum())

    def _budgets(self) -> list[float]:
        stages = min(_STAGES, max(len(axis) for axis in self.axes))
        budgets = [stage / stages for stage in range(1, stages + 1)]
        if self.goal is None:
            return budgets
        return [*(budget for budget in budgets if budget < self.goal), self.goal]

    def _families(self) -> list[list[int]]:
        """Units and composites, cheapest first; those an alignment lets go only together as one."""
        sets = DisjointSets(len(self.cost))
        for rows in self.group.constraints.alignments:
            free = rows[:, (rows > 0).all(axis=0)]
            sets.link_all(free[:-1], free[1:])
        price = {int(unit): float(self.cost[unit]) for unit in self.group.units}
        for composite, parts in self.group.constraints.definitions:
            if composite:
                price.setdefault(int(composite), float(self.cost[parts].mean()))
        if self.seeds is not None:
            price = {unit: paid for unit, paid in price.items() if unit in self.seeds}
        families: dict[int, list[int]] = {}
        roots = sets.roots(np.array(list(price), np.int32)).tolist()
        for seed, root in zip(price, roots, strict=True):
            families.setdefault(root, []).append(seed)
        means = {root: float(np.mean([price[m] for m in f])) for root, f in families.items()}
        ranked = sorted(families, key=lambda root: (means[root], root))
        return [sorted(families[root], key=lambda seed: (price[seed], seed)) for root in ranked]

    def _advance(self, number: int, budget: float) -> Iterator[RemovalStep]:
        """Close seeds of a family as long as the budget allows it."""
        family = self.families[number]
        while family:
            if self.removed[family[0]]:
                family.pop(0)
            elif self._floor(family[0]) > budget + _ROUNDING:
                return
            else:
                step, self.needed[number] = self._try(number, budget)
                if step is not None:
                    yield step
                elif np.isfinite(self.needed[number]):
                    return
                else:
                    family.pop(0)
        self.needed[number] = np.inf

    def _floor(self, seed: int) -> float:
        """Fraction of its axes that removing a unit reaches at least."""
        numbers = self.axes_of.get(seed, ())
        return max(((self.counts[n] + 1) / len(self.axes[n]) for n in numbers), default=0.0)

    def _try(self, number: int, budget: float) -> tuple[RemovalStep | None, float]:
        """Close the first seed of a family.

        Returns:
            the step, or None and a lower bound of the budget the seed needs. The first attempt
            finds the true need, later ones stop as soon as the budget is exceeded.
        """
        seed, first = self.families[number][0], number not in self.growth
        if self.seeds is not None and not first:
            # Removals of one part grow alike, so the first attempt says what this one will take.
            grown = [n + more for n, more in zip(self.counts, self.growth[number], strict=True)]
            if (likely := self._fraction(grown)) > budget + _ROUNDING and likely <= 1:
                return None, likely
        after = list(self.counts)
        dying: list[int] = []
        impossible = False

        def give_up(killed: Sequence[int]) -> bool:
            nonlocal impossible
            dying.extend(killed)
            for unit in killed:
                for number in self.axes_of.get(unit, ()):
                    after[number] += 1
            impossible = any(a > limit for a, limit in zip(after, self.limits, strict=True))
            return impossible or (not first and self._fraction(after) > budget + _ROUNDING)

        killed = close(
            self.group.constraints, self.by_unit, self.removed, [seed], self.cost, give_up=give_up
        )
        fraction = self._fraction(after)
        if first:
            self.growth[number] = [n - count for n, count in zip(after, self.counts, strict=True)]
        if killed is None or fraction > budget + _ROUNDING:
            self.removed[dying] = False
            stopped = not impossible and fraction > budget + _ROUNDING
            return None, fraction if stopped else np.inf
        self.counts = after
        score = float(sum(self.cost[unit] for unit in killed))
        return RemovalStep(tuple(killed), fraction, score), 0.0

    def _fraction(self, counts: Sequence[int]) -> float:
        return max(n / len(axis) for n, axis in zip(counts, self.axes, strict=True))


@dataclass(frozen=True)
class RankedGroup:
    """A group with its removal order and what the removal costs.

    Attributes:
        group: the group.
        steps: its removal order.
        curves: error after each step by name of the scaling, float [steps]; empty where the
            criterion measures none.
        parts: removals of the group that do not depend on each other, each ranked for itself;
            empty when it has only one.
    """

    group: Group
    steps: tuple[RemovalStep, ...]
    curves: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    parts: tuple[RankedGroup, ...] = ()

    def bundled(self, multiple: int, *, finer: bool = False) -> RankedGroup:
        """Bundle steps so that the axes of the group keep a multiple of some number of units.

        Args:
            multiple: 1 changes nothing.
            finer: go on in smaller steps behind the last such width.
        """
        if multiple == 1:
            return self
        # 11 heads of 64, or 12 of 62, are multiples of 8; 11 of 62 are not
        parts = [part._bundled(multiple, finer, by_row=not finer) for part in self.parts]
        whole = self._bundled(multiple, finer)
        return replace(whole, parts=tuple(parts) if all(part.steps for part in parts) else ())

    def _bundled(self, multiple: int, finer: bool, *, by_row: bool = False) -> RankedGroup:
        """Steps bundled to a multiple, with the errors at their ends."""
        steps = tuple(aligned(self.group, self.steps, multiple, finer=finer, by_row=by_row))
        ends = np.cumsum([len(step.units) for step in self.steps])
        removed = np.cumsum([len(step.units) for step in steps])
        last = np.searchsorted(ends, removed)
        curves = {name: curve[last] for name, curve in self.curves.items()}
        return RankedGroup(self.group, steps, curves)
