"""The knapsack over error curves: exact where costs are independent, never over the budget."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxprune.allocation.knapsack import allocate
from onnxprune.coupling.cut import Removal
from onnxprune.importance.removal_order import RemovalStep

UNITS = 100


def order_of(number: int, steps: int, size: int = 1) -> list[RemovalStep]:
    """Classes of group n are n * 100, n * 100 + 1, ..., `size` of them in each step."""
    first = number * UNITS
    return [
        RemovalStep(
            tuple(range(first + i * size, first + (i + 1) * size)), (i + 1) / (steps + 1), 0.0
        )
        for i in range(steps)
    ]


class _Whole:
    """Fractions refer to the uncut model."""

    @property
    def whole(self) -> Any:
        return self.after(())

    def after(self, dead: Sequence[int]) -> Any:
        raise NotImplementedError


class Independent(_Whole):
    """What a group costs depends on how many of its own units are gone alone."""

    def __init__(self, tables: Sequence[Sequence[int]]) -> None:
        self.tables = tables

    def after(self, dead: Sequence[int]) -> dict[str, int]:
        gone = [len({one for one in dead if one // UNITS == n}) for n in range(len(self.tables))]
        return {"macs": sum(table[n] for table, n in zip(self.tables, gone, strict=True))}

    def touched(self, group: Any, dead: Sequence[int]) -> dict[str, int]:
        number = int(group.name)
        return {"macs": self.tables[number][len({x for x in dead if x // UNITS == number})]}

    def near(self, dead: Sequence[int]) -> Independent:
        return self


class Chain(_Whole):
    """Layers between neighbours: each costs the product of the widths on its two sides."""

    def __init__(self, widths: Sequence[int]) -> None:
        self.widths = widths

    def _left(self, dead: Sequence[int]) -> list[int]:
        inner = [
            width - len({one for one in dead if one // UNITS == n})
            for n, width in enumerate(self.widths)
        ]
        return [3, *inner, 5]

    def after(self, dead: Sequence[int]) -> dict[str, int]:
        return {"macs": sum(a * b for a, b in itertools.pairwise(self._left(dead)))}

    def touched(self, group: Any, dead: Sequence[int]) -> dict[str, int]:
        left, place = self._left(dead), int(group.name) + 1
        return {"macs": left[place - 1] * left[place] + left[place] * left[place + 1]}

    def near(self, dead: Sequence[int]) -> Chain:
        return self


def solve(
    cost: Any,
    orders: Sequence[Sequence[RemovalStep]],
    errors: Sequence[Sequence[float]],
    share: float,
    start: Sequence[int],
    names: Sequence[str] | None = None,
) -> Removal:
    groups: Any = [SimpleNamespace(name=name) for name in names or map(str, range(len(orders)))]
    classes = {
        group.name: tuple(one for step in order[:count] for one in step.units)
        for group, order, count in zip(groups, orders, start, strict=True)
    }
    arrays = [np.array(one, np.float64) for one in errors]
    return allocate(groups, orders, arrays, {"macs": share}, cost, Removal(classes))


def widths_of(removal: Removal, orders: Sequence[Sequence[RemovalStep]]) -> list[int]:
    """Steps taken; fails when that is not a prefix of every order."""
    dead, counts = set(removal.removed_units()), []
    for order in orders:
        count = sum(dead.issuperset(step.units) for step in order)
        mine = {one for step in order for one in step.units}
        assert dead & mine == {one for step in order[:count] for one in step.units}
        counts.append(count)
    return counts


tables = st.lists(st.integers(0, 40), min_size=1, max_size=6)


@settings(max_examples=100)
@given(
    drawn=st.lists(st.tuples(tables, st.integers(0, 2**16)), min_size=1, max_size=4),
    share=st.floats(0.05, 0.95),
)
def test_the_least_error_within_the_budget(
    drawn: list[tuple[list[int], int]], share: float
) -> None:
    """Against all combinations there are; costs that do not fall make steps that do not pay."""
    costs = [[sum(falls[i:]) + 1 for i in range(len(falls) + 1)] for falls, _ in drawn]
    errors = [
        np.cumsum(np.random.default_rng(seed).random(len(falls))).tolist() for falls, seed in drawn
    ]
    orders = [order_of(n, len(falls)) for n, (falls, _) in enumerate(drawn)]
    cost = Independent(costs)
    budget = share * cost.after(())["macs"]
    whole = [len(order) for order in orders]
    assume(sum(table[-1] for table in costs) <= budget)
    removal = solve(cost, orders, errors, share, whole)
    widths = widths_of(removal, orders)
    assert cost.after(removal.removed_units())["macs"] <= budget

    def error(counts: Sequence[int]) -> float:
        return sum([0.0, *one][n] for one, n in zip(errors, counts, strict=True))

    possible = (
        counts
        for counts in itertools.product(*(range(n + 1) for n in whole))
        if sum(table[n] for table, n in zip(costs, counts, strict=True)) <= budget
    )
    assert error(widths) == pytest.approx(min(error(counts) for counts in possible))


@settings(max_examples=60)
@given(
    widths=st.lists(st.integers(2, 12), min_size=1, max_size=4),
    share=st.floats(0.1, 0.95),
    seed=st.integers(0, 2**16),
)
def test_coupled_costs_meet_the_target_and_nothing_can_be_given_back(
    widths: list[int], share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    cost = Chain(widths)
    orders = [order_of(n, width - 1) for n, width in enumerate(widths)]
    errors = [np.cumsum(rng.random(width - 1) ** 3).tolist() for width in widths]
    budget = share * cost.after(())["macs"]
    whole = [width - 1 for width in widths]
    everything = [one for order in orders for step in order for one in step.units]
    assume(cost.after(everything)["macs"] <= budget)
    removal = solve(cost, orders, errors, share, whole)
    counts = widths_of(removal, orders)
    assert cost.after(removal.removed_units())["macs"] <= budget
    for number, count in enumerate(counts):
        if count:
            fewer = [n - (i == number) for i, n in enumerate(counts)]
            dead = [
                one
                for order, n in zip(orders, fewer, strict=True)
                for step in order[:n]
                for one in step.units
            ]
            assert cost.after(dead)["macs"] > budget


def test_costs_of_neighbours_are_taken_into_account() -> None:
    """A wide neighbour makes a unit dear: what saves most for its error goes first."""
    orders = [order_of(0, 19), order_of(1, 1), order_of(2, 19)]
    errors = [np.arange(1.0, 20.0), [1000.0], np.arange(1.0, 20.0)]
    removal = solve(Chain([20, 2, 20]), orders, errors, 0.6, [19, 0, 19])
    # of 240 are 96 to go, 7 with each unit that has 5 readers, 5 with one that has 3 inputs
    assert widths_of(removal, orders) == [0, 0, 14]


def test_a_free_lunch_is_eaten_and_a_met_target_costs_nothing() -> None:
    cost = Independent([[10, 8, 2], [10, 5, 1]])
    orders = [order_of(0, 2), order_of(1, 2)]
    assert solve(cost, orders, [[0.0, 0.0], [1.0, 2.0]], 0.6, [2, 2]).removed_units() == [0, 1]
    assert solve(cost, orders, [[0.5, 1.0], [1.0, 2.0]], 1.0, [2, 2]).removed_units() == []


def test_large_costs_do_not_overflow() -> None:
    """A budget that only the cheapest widths meet leaves no room to divide."""
    table = [10**15, 5 * 10**14, 10**14]
    cost = Independent([table, table])
    orders = [order_of(0, 2), order_of(1, 2)]
    removal = solve(cost, orders, [[1.0, 2.0], [1.0, 2.0]], 0.1, [2, 2])
    assert widths_of(removal, orders) == [2, 2]


def test_long_orders_are_offered_at_some_levels_and_used_at_all() -> None:
    """100 steps, 48 levels; what is left of the budget is given back step by step."""
    table = list(range(100, 0, -1))
    cost = Independent([table, table])
    orders = [order_of(0, 99), order_of(1, 99)]
    errors = [np.arange(1.0, 100.0), 3 * np.arange(1.0, 100.0)]
    removal = solve(cost, orders, errors, 0.605, [99, 99])
    assert cost.after(removal.removed_units())["macs"] == 121
    assert widths_of(removal, orders)[0] > widths_of(removal, orders)[1]


def test_a_start_that_the_orders_do_not_follow_is_fallen_back_on() -> None:
    """The parts of a group have orders of their own; what they reach may not be enough."""
    cost = Independent([[10, 9, 8, 1]])
    orders = [[RemovalStep((0,), 0.3, 0.0), RemovalStep((1,), 0.6, 0.0)]]
    groups: Any = [SimpleNamespace(name="0")]
    start = Removal({"0": (0, 1, 2)})
    found = allocate(groups, orders, [np.array([1.0, 2.0])], {"macs": 0.5}, cost, start)
    assert found.same_as(start)
    other = Removal({"0": (1, 2, 0)})
    again = allocate(groups, orders, [np.array([1.0, 2.0])], {"macs": 0.8}, cost, other)
    assert again.removed_units() == [0, 1]


def test_parts_of_one_group_are_joined() -> None:
    cost = Independent([[10, 8, 6, 4, 2]])
    orders = [
        [RemovalStep((0,), 0.2, 0.0), RemovalStep((1,), 0.4, 0.0)],
        [RemovalStep((2,), 0.2, 0.0), RemovalStep((3,), 0.4, 0.0)],
    ]
    errors = [[5.0, 6.0], [0.1, 9.0]]
    removal = solve(cost, orders, errors, 0.8, [2, 2], names=["0", "0"])
    assert removal.units == {"0": (2,)}


class TwoKinds(_Whole):
    """Two kinds of cost, each from tables of its own."""

    def __init__(self, **tables: Sequence[Sequence[float]]) -> None:
        self.tables = tables

    def _gone(self, dead: Sequence[int], number: int) -> int:
        return len({one for one in dead if one // UNITS == number})

    def after(self, dead: Sequence[int]) -> dict[str, float]:
        return {
            kind: sum(table[self._gone(dead, n)] for n, table in enumerate(tables))
            for kind, tables in self.tables.items()
        }

    def touched(self, group: Any, dead: Sequence[int]) -> dict[str, float]:
        number = int(group.name)
        return {kind: t[number][self._gone(dead, number)] for kind, t in self.tables.items()}

    def near(self, dead: Sequence[int]) -> TwoKinds:
        return self


def solve_both(
    cost: TwoKinds, errors: Sequence[Sequence[float]], target: dict[str, float]
) -> list[int]:
    orders = [order_of(n, len(one)) for n, one in enumerate(errors)]
    groups: Any = [SimpleNamespace(name=str(n)) for n in range(len(orders))]
    start = {str(n): tuple(c for s in order for c in s.units) for n, order in enumerate(orders)}
    arrays = [np.array(one, np.float64) for one in errors]
    removal = allocate(groups, orders, arrays, target, cost, Removal(start))
    after, full = cost.after(removal.removed_units()), cost.after(())
    assert all(after[kind] <= share * full[kind] for kind, share in target.items())
    return widths_of(removal, orders)


def test_budgets_on_different_groups_are_all_met() -> None:
    """The first group alone pays for macs, the second for params; the third would pay for both."""
    cost = TwoKinds(
        macs=[[10, 8, 6, 4], [0, 0, 0, 0], [10, 8, 6, 4]],
        params=[[0, 0, 0, 0], [10, 8, 6, 4], [10, 8, 6, 4]],
    )
    cheap, dear = [1.0, 2.0, 3.0], [10.0, 20.0, 30.0]
    assert solve_both(cost, [cheap, cheap, dear], {"macs": 0.7, "params": 0.7}) == [3, 3, 0]
    assert solve_both(cost, [dear, dear, cheap], {"macs": 0.7, "params": 0.7}) == [0, 0, 3]
    assert solve_both(cost, [cheap, dear, dear], {"macs": 0.7, "params": 1.0}) == [3, 0, 0]


def test_units_of_cost_do_not_matter() -> None:
    """Seconds beside bytes: fractions far below 1 are costs like any others."""
    bytes_ = [[10**9, 8 * 10**8, 6 * 10**8], [10**9, 9 * 10**8, 8 * 10**8]]
    seconds = [[0.010, 0.009, 0.008], [0.010, 0.008, 0.006]]
    cost = TwoKinds(size=bytes_, latency=seconds)
    errors = [[1.0, 2.0], [1.0, 2.0]]
    assert solve_both(cost, errors, {"size": 0.8}) == [2, 0]
    assert solve_both(cost, errors, {"latency": 0.8}) == [0, 2]
    assert solve_both(cost, errors, {"size": 0.85, "latency": 0.85}) == [1, 1]


def test_steps_that_have_to_be_taken_are_taken() -> None:
    cost = Independent([[10, 8, 6, 4], [10, 8, 6, 4]])
    orders = [order_of(0, 3), order_of(1, 3)]
    groups: Any = [SimpleNamespace(name=str(n)) for n in range(2)]
    start = Removal({"0": (0, 1, 2), "1": (100, 101, 102)})
    errors = [np.array([9.0, 18.0, 27.0]), np.array([1.0, 2.0, 3.0])]
    found = allocate(groups, orders, errors, {"macs": 0.6}, cost, start, [1, 0])
    assert widths_of(found, orders) == [1, 3]
    free = allocate(groups, orders, errors, {"macs": 0.7}, cost, start)
    assert widths_of(free, orders) == [0, 3]
