"""In which order the units of a group go: a nested sequence of legal removals.

Every prefix of the sequence is legal, so an allocator only has to choose how far to go. Each step
carries the fraction of its axis that is gone after it; the sequence is built by raising that
fraction slowly and, below it, taking the cheapest legal closure first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.coupling.closure import close

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onnxprune.coupling.groups import Group

__all__ = ["RemovalStep", "aligned", "removal_order"]

_STAGES = 64
_ROUNDING = 1e-9


@dataclass(frozen=True)
class RemovalStep:
    """One legal removal on top of those before it.

    Attributes:
        classes: what dies now, composites included.
        fraction: largest fraction of any axis of the group that is gone afterwards.
        score: sum of the scores of the units that die now.
    """

    classes: tuple[int, ...]
    fraction: float
    score: float


def removal_order(group: Group, scores: NDArray[np.float64]) -> list[RemovalStep]:
    """Order the removals of a group until nothing more can go.

    Args:
        group: the units and what constrains them.
        scores: importance of each unit, float [size].
    """
    if not len(group.constraints) and len(group.axes) == 1:
        return _by_score(group, scores)
    return _Greedy(group, scores).run()


def aligned(group: Group, order: Sequence[RemovalStep], multiple: int) -> list[RemovalStep]:
    """Bundle steps so that every axis of the group keeps a multiple of some number of units.

    Args:
        group: the group the order belongs to.
        order: its removal order.
        multiple: 1 changes nothing; 8 or 16 are the widths in which kernels compute.

    Returns:
        a removal order with fewer, larger steps; steps behind the last such width are left out.
    """
    if multiple == 1:
        return list(order)
    left = [len(axis) for axis in group.axes]
    number_of = {int(one): unit for unit, one in enumerate(group.units)}
    result: list[RemovalStep] = []
    waiting: list[RemovalStep] = []
    for step in order:
        waiting.append(step)
        gone = {number_of[one] for one in step.classes if one in number_of}
        left = [n - len(gone.intersection(axis)) for n, axis in zip(left, group.axes, strict=True)]
        if all(n % multiple == 0 for n in left):
            classes = tuple(one for each in waiting for one in each.classes)
            score = sum(each.score for each in waiting)
            result.append(RemovalStep(classes, step.fraction, score))
            waiting = []
    return result


def _by_score(group: Group, scores: NDArray[np.float64]) -> list[RemovalStep]:
    """Independent units on one axis: sort them."""
    order = np.argsort(scores, kind="stable")
    last = group.size - 1 if group.closed[0] else group.size
    return [
        RemovalStep((int(group.units[unit]),), (i + 1) / group.size, float(scores[unit]))
        for i, unit in enumerate(order[:last].tolist())
    ]


class _Greedy:
    """Constrained groups: raise the budget of every axis in stages, close seeds within it."""

    def __init__(self, group: Group, scores: NDArray[np.float64]) -> None:
        self.group = group
        self.by_class = group.constraints.by_class()
        count = int(group.classes.max()) + 1
        self.cost = np.zeros(count)
        self.cost[group.units] = scores
        self.dead = np.zeros(count, bool)
        self.axes = [group.units[list(axis)] for axis in group.axes]
        self.limits = [
            len(axis) - 1 if closed else len(axis)
            for axis, closed in zip(group.axes, group.closed, strict=True)
        ]
        self.axes_of: dict[int, list[int]] = {}
        for number, axis in enumerate(self.axes):
            for one in axis.tolist():
                self.axes_of.setdefault(one, []).append(number)
        self.gone = [0] * len(self.axes)
        self.seeds = self._seeds()

    def run(self) -> list[RemovalStep]:
        """Return the steps."""
        steps: list[RemovalStep] = []
        needed = dict.fromkeys(self.seeds, 0.0)
        stages = min(_STAGES, max(len(axis) for axis in self.axes))
        for stage in range(1, stages + 1):
            budget = stage / stages
            for seed in [seed for seed, least in needed.items() if least <= budget + _ROUNDING]:
                if self.dead[seed]:
                    del needed[seed]
                elif self._floor(seed) <= budget + _ROUNDING:
                    step, needed[seed] = self._try(seed, budget, first=needed[seed] == 0.0)
                    if step is not None:
                        steps.append(step)
                        del needed[seed]
        return steps

    def _seeds(self) -> list[int]:
        """Units and composites, cheapest per unit first."""
        members = {c: m for c, m in self.group.constraints.definitions if c}
        price = {int(one): float(self.cost[one]) for one in self.group.units}
        for composite, parts in members.items():
            price.setdefault(int(composite), float(self.cost[parts].mean()))
        return sorted(price, key=lambda seed: (price[seed], seed))

    def _floor(self, seed: int) -> float:
        """Fraction of its axes that removing a unit reaches at least."""
        numbers = self.axes_of.get(seed, ())
        return max(((self.gone[n] + 1) / len(self.axes[n]) for n in numbers), default=0.0)

    def _try(self, seed: int, budget: float, first: bool) -> tuple[RemovalStep | None, float]:
        """Close a seed.

        Returns:
            the step, or None and a lower bound of the budget the seed needs. The first attempt
            finds the true need, later ones stop as soon as the budget is exceeded.
        """
        after = list(self.gone)
        impossible = False

        def give_up(killed: Sequence[int]) -> bool:
            nonlocal impossible
            for one in killed:
                for number in self.axes_of.get(one, ()):
                    after[number] += 1
            impossible = any(a > limit for a, limit in zip(after, self.limits, strict=True))
            return impossible or (not first and self._fraction(after) > budget + _ROUNDING)

        trial = self.dead.copy()
        killed = close(
            self.group.constraints, self.by_class, trial, [seed], self.cost, give_up=give_up
        )
        fraction = self._fraction(after)
        if killed is None:
            stopped = not impossible and fraction > budget + _ROUNDING
            return None, fraction if stopped else np.inf
        if fraction > budget + _ROUNDING:
            return None, fraction
        self.dead, self.gone = trial, after
        score = float(sum(self.cost[one] for one in killed))
        return RemovalStep(tuple(killed), fraction, score), 0.0

    def _fraction(self, gone: Sequence[int]) -> float:
        return max(n / len(axis) for n, axis in zip(gone, self.axes, strict=True))
