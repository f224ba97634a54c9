"""The cheapest way to meet a cost target, given an error curve of every group.

A multiple-choice knapsack: of each group one width is taken, the errors add up, the costs must not
exceed the budget. It is solved exactly by dynamic programming over cost in buckets::

    best[g, c] = min over widths k of  error[g, k] + best[g - 1, c - cost[g, k]]

What a width of one group costs depends on the widths of its neighbours (a convolution between two
cut groups costs their product), so costs are taken at the present solution and the problem is
solved again until it stays the same; what is left of the budget in the end is given back.

Source: METHODS.md 4; Frantar & Alistarh 2022 (SPDY) for pruning by dynamic programming.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxprune.allocate.choose import Removal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onnxprune.allocate.order import RemovalStep
    from onnxprune.cost.shapes import CutCost
    from onnxprune.coupling.groups import Group

__all__ = ["allocate"]

_BUCKETS = 3000
_LEVELS = 48
_ROUNDS = 6
_CLOSE = 0.002


def allocate(
    groups: Sequence[Group],
    orders: Sequence[Sequence[RemovalStep]],
    errors: Sequence[NDArray[np.float64]],
    kind: str,
    share: float,
    cost: CutCost,
    start: Removal,
) -> Removal:
    """Choose how far to go along every group's removal order.

    Args:
        groups: the groups; one may come several times, with orders that do not depend on each
            other.
        orders: the removal order of each.
        errors: error of each group after each step of its order, float [steps].
        kind: what the target counts: params or macs.
        share: fraction of it that may remain.
        cost: the cost model.
        start: a removal that meets the target; costs are taken there first.

    Returns:
        A removal that meets the target.
    """
    problem = _Problem(groups, orders, errors, kind, share * cost.after(())[kind], cost)
    widths = problem.at(start)
    best = widths if problem.meets(widths) else None
    for _ in range(_ROUNDS):
        found = problem.solve(widths)
        better = best is None or problem.error(found) < problem.error(best)
        if better and problem.meets(found):
            best = found
        if found == widths:
            break
        widths = found
    return problem.removal(problem.filled_up(best)) if best is not None else start


class _Problem:
    """The groups with their levels: numbers of steps taken."""

    def __init__(
        self,
        groups: Sequence[Group],
        orders: Sequence[Sequence[RemovalStep]],
        errors: Sequence[NDArray[np.float64]],
        kind: str,
        budget: float,
        cost: CutCost,
    ) -> None:
        self.groups = groups
        self.orders = orders
        self.errors = [np.concatenate([[0.0], np.asarray(one, np.float64)]) for one in errors]
        self.kind = kind
        self.budget = budget
        self.cost = cost
        self.levels = [
            np.unique(np.linspace(0, len(order), min(len(order), _LEVELS) + 1).astype(int))
            for order in orders
        ]

    def at(self, removal: Removal) -> list[int]:
        """Steps that a removal takes of each group's order, as far as it follows that."""
        widths = []
        for group, order in zip(self.groups, self.orders, strict=True):
            dead = set(removal.classes.get(group.name, ()))
            followed = [dead.issuperset(step.classes) for step in order]
            widths.append([*followed, False].index(False))
        return widths

    def meets(self, widths: Sequence[int]) -> bool:
        """Whether the target is met."""
        return self._true(widths) <= self.budget

    def removal(self, widths: Sequence[int]) -> Removal:
        """Classes that go."""
        classes: dict[str, set[int]] = {}
        for number, (group, width) in enumerate(zip(self.groups, widths, strict=True)):
            if width:
                classes.setdefault(group.name, set()).update(self._dead(number, width))
        return Removal({name: tuple(sorted(gone)) for name, gone in classes.items()})

    def error(self, widths: Sequence[int]) -> float:
        """Sum of the errors."""
        return float(sum(one[width] for one, width in zip(self.errors, widths, strict=True)))

    def solve(self, present: Sequence[int]) -> list[int]:
        """Solve with the costs at the present widths; these again when nothing meets the target."""
        tables = [self._table(number, present) for number in range(len(self.groups))]
        now = sum(
            float(table[np.searchsorted(levels, width)])
            for table, levels, width in zip(tables, self._with(present), present, strict=True)
        )
        rest = self._true(present) - now
        allowed = self.budget - rest
        for _ in range(12):
            widths = self._knapsack(tables, self._with(present), allowed)
            if widths is None:
                break
            excess = self._true(widths) - self.budget
            if excess <= 0:
                return widths
            allowed -= max(excess, _CLOSE * self.budget)
        return list(present)

    def filled_up(self, widths: list[int]) -> list[int]:
        """Give steps back, those of the greatest error first, as long as the budget allows it."""
        widths = list(widths)
        for number in sorted(
            range(len(widths)), key=lambda n: -self.errors[n][widths[n]] + self.errors[n][0]
        ):
            while widths[number] > 0:
                fewer = [w - (n == number) for n, w in enumerate(widths)]
                if self._true(fewer) > self.budget:
                    break
                widths = fewer
        return widths

    def _dead(self, number: int, width: int) -> list[int]:
        return [one for step in self.orders[number][:width] for one in step.classes]

    def _true(self, widths: Sequence[int]) -> float:
        dead = [one for n, width in enumerate(widths) for one in self._dead(n, width)]
        return float(self.cost.after(dead)[self.kind])

    def _with(self, present: Sequence[int]) -> list[NDArray[np.int64]]:
        """Levels offered, the present ones included."""
        pairs = zip(self.levels, present, strict=True)
        return [np.union1d(levels, [width]) for levels, width in pairs]

    def _table(self, number: int, present: Sequence[int]) -> NDArray[np.float64]:
        """Cost of the nodes a group touches, at each of its levels."""
        others = [
            one for n, width in enumerate(present) if n != number for one in self._dead(n, width)
        ]
        levels = self._with(present)[number]
        return np.array(
            [
                self.cost.touched(self.groups[number], [*others, *self._dead(number, int(level))])[
                    self.kind
                ]
                for level in levels
            ],
            np.float64,
        )

    def _knapsack(
        self,
        tables: Sequence[NDArray[np.float64]],
        levels: Sequence[NDArray[np.int64]],
        allowed: float,
    ) -> list[int] | None:
        """Exact up to the size of a bucket; None when not even the cheapest widths fit."""
        least = [float(table.min()) for table in tables]
        room = allowed - sum(least)
        if room < 0:
            return None
        # costs are whole numbers, so small problems are solved exactly
        bucket = max(room / _BUCKETS, 1.0)
        count = int(room / bucket + 1e-9)
        best = np.zeros(count + 1)
        picks = []
        for number, (table, floor) in enumerate(zip(tables, least, strict=True)):
            sizes = np.ceil((table - floor) / bucket - 1e-6).astype(int)
            fresh = np.full(count + 1, np.inf)
            pick = np.full(count + 1, -1)
            for position, size in enumerate(sizes.tolist()):
                if size > count:
                    continue
                error = self.errors[number][levels[number][position]]
                tried = best[: count + 1 - size] + error
                better = tried < fresh[size:]
                fresh[size:][better] = tried[better]
                pick[size:][better] = position
            best = fresh
            picks.append((pick, sizes))
        place = int(np.argmin(best))
        widths: list[int] = []
        for number in reversed(range(len(tables))):
            pick, sizes = picks[number]
            position = int(pick[place])
            widths.append(int(levels[number][position]))
            place -= int(sizes[position])
        return widths[::-1]
