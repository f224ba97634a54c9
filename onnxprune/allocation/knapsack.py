"""The cheapest way to meet cost targets, given an error curve of every group.

A multiple-choice knapsack: of each group one width is taken, the errors add up, the costs must not
exceed the budget. It is solved exactly by dynamic programming over cost in buckets::

    best[g, c] = min over widths k of  error[g, k] + best[g - 1, c - cost[g, k]]

What a width of one group costs depends on the widths of its neighbours (a convolution between two
cut groups costs their product), so costs are taken at the present solution and the problem is
solved again until it stays the same; what is left of the budget in the end is given back.

Several budgets become one by mixing: whatever meets all of them meets, for any weights w that add
up to 1, the budget

    sum over kinds of  w * cost / budget  <=  1

This surrogate is made tighter until all true budgets are met; the mixture of least error counts.

Source: Frantar & Alistarh 2022 (SPDY) for pruning by dynamic programming; Glover
1975 for surrogate constraints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from onnxprune.cost.kinds import CostModel
from onnxprune.coupling.cut import Removal
from onnxprune.coupling.groups import Group
from onnxprune.importance.removal_order import RemovalStep

_BUCKETS = 3000
_LEVELS = 48
_ROUNDS = 6
_TIGHTER = 12
_CLOSE = 0.002
_USED_UP = 0.98
_STEPS = {1: 1, 2: 4}
_FEW_STEPS = 2


def allocate(
    groups: Sequence[Group],
    orders: Sequence[Sequence[RemovalStep]],
    errors: Sequence[NDArray[np.float64]],
    target: Mapping[str, float],
    cost: CostModel,
    start: Removal,
    least: Sequence[int] | None = None,
) -> Removal:
    """Choose how far to go along every group's removal order.

    Args:
        groups: the groups; one may come several times, with orders that do not depend on each
            other.
        orders: the removal order of each.
        errors: error of each group after each step of its order, float [steps].
        target: kind of cost -> fraction that may remain; all are met.
        cost: the cost model.
        start: a removal that meets the targets; costs are taken there first.
        least: steps that have to be taken of each order; none by default.

    Returns:
        A removal that meets the targets.
    """
    full = cost.whole
    budgets = {kind: share * full[kind] for kind, share in target.items()}
    problem = _Problem(groups, orders, errors, budgets, cost, least or [0] * len(groups))
    first = problem.at(start)
    tried = [first] if problem.meets(first) else []
    for mixture in _mixtures([kind for kind, budget in budgets.items() if budget > 0]):
        widths = problem.settled(first, mixture)
        tried += [widths] if widths is not None else []
        if widths is not None and len(mixture) == 1 and problem.uses_up(widths, *mixture):
            break  # the other budgets are met without a thought for them
    if not tried:
        return start
    return problem.removal(problem.filled_up(min(tried, key=problem.error)))


def _mixtures(kinds: Sequence[str]) -> list[dict[str, float]]:
    """Weights of the kinds that are tried, in equal steps: each kind alone first."""
    steps = _STEPS.get(len(kinds), _FEW_STEPS)  # 5 mixtures of two kinds, 6 of three
    mixtures = [
        {kind: n / steps for kind, n in zip(kinds, numbers, strict=True) if n}
        for numbers in product(range(steps + 1), repeat=len(kinds))
        if sum(numbers) == steps
    ]
    return sorted(mixtures, key=len)


class _Problem:
    """The groups with their levels: numbers of steps taken."""

    def __init__(
        self,
        groups: Sequence[Group],
        orders: Sequence[Sequence[RemovalStep]],
        errors: Sequence[NDArray[np.float64]],
        budgets: Mapping[str, float],
        cost: CostModel,
        least: Sequence[int],
    ) -> None:
        self.groups = groups
        self.orders = orders
        self.errors = [np.concatenate([[0.0], np.asarray(each, np.float64)]) for each in errors]
        self.budgets = budgets
        self.cost = cost
        self.least = least
        self.classes = [
            np.array([unit for step in order for unit in step.units], np.int32) for order in orders
        ]
        self.ends = [np.cumsum([0, *(len(step.units) for step in order)]) for order in orders]
        self.levels = [
            np.unique(np.linspace(low, len(order), min(len(order) - low, _LEVELS) + 1).astype(int))
            for order, low in zip(orders, least, strict=True)
        ]

    def at(self, removal: Removal) -> list[int]:
        """Steps that a removal takes of each group's order, as far as it follows that."""
        widths = []
        for group, order in zip(self.groups, self.orders, strict=True):
            removed = set(removal.units.get(group.name, ()))
            followed = [removed.issuperset(step.units) for step in order]
            widths.append([*followed, False].index(False))
        return widths

    def meets(self, widths: Sequence[int]) -> bool:
        """Whether every target is met."""
        true = self._true(widths)
        enough = all(width >= low for width, low in zip(widths, self.least, strict=True))
        return enough and all(true[kind] <= budget for kind, budget in self.budgets.items())

    def uses_up(self, widths: Sequence[int], kind: str) -> bool:
        """Whether hardly anything is left of one budget."""
        return self._true(widths)[kind] >= _USED_UP * self.budgets[kind]

    def removal(self, widths: Sequence[int]) -> Removal:
        """Classes that go."""
        classes: dict[str, set[int]] = {}
        for number, (group, width) in enumerate(zip(self.groups, widths, strict=True)):
            if width:
                classes.setdefault(group.name, set()).update(self._units(number, width).tolist())
        return Removal({name: tuple(sorted(units)) for name, units in classes.items()})

    def error(self, widths: Sequence[int]) -> float:
        """Sum of the errors."""
        return float(sum(error[width] for error, width in zip(self.errors, widths, strict=True)))

    def settled(self, widths: Sequence[int], mixture: Mapping[str, float]) -> list[int] | None:
        """Solve until nothing changes; returns the best that meets the targets, if any does."""
        present, met = list(widths), []
        for _ in range(_ROUNDS):
            solution = self.solve(present, mixture)
            if self.meets(solution):
                met.append(solution)
            if solution == present:
                break
            present = solution
        return min(met, key=self.error) if met else None

    def solve(self, present: Sequence[int], mixture: Mapping[str, float]) -> list[int]:
        """Solve with the costs at the present widths; these again when nothing meets the targets.

        Args:
            present: where costs are taken.
            mixture: kind -> weight; the costs are added up in units of the largest budget.
        """
        unit = max(self.budgets[kind] for kind in mixture)
        scale = {kind: weight * unit / self.budgets[kind] for kind, weight in mixture.items()}
        levels = self._with(present)
        near = self.cost.near(self._all_dead(present))
        tables = [self._table(near, n, present, levels[n], scale) for n in range(len(self.groups))]
        now = sum(
            float(table[np.searchsorted(level, width)])
            for table, level, width in zip(tables, levels, present, strict=True)
        )
        true = self._true(present)
        allowed = unit - (sum(true[kind] * factor for kind, factor in scale.items()) - now)
        for _ in range(_TIGHTER):
            widths = self._knapsack(tables, levels, allowed)
            if widths is None:
                break
            excess = self._excess(widths)
            if excess <= 0:
                return widths
            allowed -= max(excess, _CLOSE) * unit
        return list(present)

    def filled_up(self, widths: list[int]) -> list[int]:
        """Give steps back, those of the greatest error first, as long as the budgets allow it."""
        widths = list(widths)
        for number in sorted(
            range(len(widths)), key=lambda n: -self.errors[n][widths[n]] + self.errors[n][0]
        ):
            while widths[number] > self.least[number]:
                fewer = [w - (n == number) for n, w in enumerate(widths)]
                if self._excess(fewer) > 0:
                    break
                widths = fewer
        return widths

    def _units(self, number: int, width: int) -> NDArray[np.int32]:
        """Classes of the first steps of an order."""
        return self.classes[number][: self.ends[number][width]]

    def _all_dead(self, widths: Sequence[int]) -> NDArray[np.int32]:
        return np.concatenate([self._units(n, width) for n, width in enumerate(widths)])

    def _true(self, widths: Sequence[int]) -> Mapping[str, float]:
        return self.cost.after(self._all_dead(widths))

    def _excess(self, widths: Sequence[int]) -> float:
        """By how much of its budget the worst kind is over; not above 0 when all are met."""
        true = self._true(widths)
        return max(
            (true[kind] - budget) / budget if budget else true[kind]
            for kind, budget in self.budgets.items()
        )

    def _with(self, present: Sequence[int]) -> list[NDArray[np.int64]]:
        """Levels offered, the present ones included."""
        pairs = zip(self.levels, present, strict=True)
        return [np.union1d(levels, [width]) for levels, width in pairs]

    def _table(
        self,
        cost: CostModel,
        number: int,
        present: Sequence[int],
        levels: NDArray[np.int64],
        scale: Mapping[str, float],
    ) -> NDArray[np.float64]:
        """Mixed cost of what a group touches, at each of its levels."""
        others = self._all_dead([width * (n != number) for n, width in enumerate(present)])
        costs = []
        for level in levels.tolist():
            removed = np.concatenate([others, self._units(number, level)])
            touched = cost.touched(self.groups[number], removed)
            costs.append(sum(touched[kind] * factor for kind, factor in scale.items()))
        return np.array(costs, np.float64)

    def _knapsack(
        self,
        tables: Sequence[NDArray[np.float64]],
        levels: Sequence[NDArray[np.int64]],
        allowed: float,
    ) -> list[int] | None:
        """Exact up to the size of a bucket; None when not even the cheapest widths fit."""
        floors = [float(table.min()) for table in tables]
        room = allowed - sum(floors)
        if room < 0:
            return None
        # where costs are whole numbers small problems are solved exactly
        whole = all(np.array_equal(table, np.rint(table)) for table in tables)
        bucket = max(room / _BUCKETS, float(whole)) or 1.0
        count = int(room / bucket + 1e-9)
        best = np.zeros(count + 1)
        picks = []
        for number, (table, floor) in enumerate(zip(tables, floors, strict=True)):
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
