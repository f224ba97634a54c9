"""The closure of a removal is legal, contains what was asked, and never touches what is fixed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.coupling.closure import ConstraintSet, alive_shape, close

CLASSES = 14


def array(*rows: object) -> np.ndarray:
    return np.array(rows, np.int32)


def closure(
    constraints: ConstraintSet, *seeds: int, same: bool = True, cost: np.ndarray | None = None
) -> list[int] | None:
    dead = np.zeros(CLASSES, bool)
    price = np.ones(CLASSES) if cost is None else cost
    killed = close(constraints, constraints.by_unit(), dead, seeds, price, same_positions=same)
    if killed is not None:
        assert sorted(killed) == np.flatnonzero(dead).tolist()
        return sorted(killed)
    return None


def test_without_constraints_only_the_seed_goes() -> None:
    assert closure(ConstraintSet(), 3) == [3]


def test_a_frozen_class_never_goes() -> None:
    assert closure(ConstraintSet(), 0) is None


def test_a_composite_goes_with_its_members_and_the_other_way_round() -> None:
    head = ConstraintSet(definitions=((5, array(1, 2)),))
    assert closure(head, 5) == [1, 2, 5]
    assert closure(head, 1) == [1]
    assert closure(head, 1, 2) == [1, 2, 5]


def test_the_last_member_of_a_frozen_composite_stays() -> None:
    head = ConstraintSet(definitions=((0, array(1, 2)),))
    assert closure(head, 1) == [1]
    assert closure(head, 1, 2) is None


def test_aligned_rows_lose_the_same_columns() -> None:
    assert closure(ConstraintSet(alignments=(array([1, 2, 3], [4, 5, 6]),)), 2) == [2, 5]


def test_a_dead_row_does_not_spread_along_an_alignment() -> None:
    rows = ConstraintSet(alignments=(array([1, 2], [3, 4], [5, 6]),))
    assert closure(rows, 1, 2) == [1, 2]


def test_a_rectangle_takes_the_same_position_of_each_row() -> None:
    assert closure(ConstraintSet(rectangles=(array([1, 2, 3], [4, 5, 6]),)), 3) == [3, 6]


def test_a_rectangle_may_take_the_cheapest_of_each_row() -> None:
    cost = np.arange(CLASSES, 0, -1.0)
    cost[4] = 0
    rows = ConstraintSet(rectangles=(array([1, 2, 3], [4, 5, 6]),))
    assert closure(rows, 3, same=False, cost=cost) == [3, 4]


def test_a_rectangle_avoids_what_is_frozen() -> None:
    assert closure(ConstraintSet(rectangles=(array([1, 2, 3], [4, 5, 0]),)), 3) == [3, 4]
    assert closure(ConstraintSet(rectangles=(array([1, 2], [0, 0]),)), 2) is None


def test_a_whole_row_of_a_rectangle_goes_alone() -> None:
    assert closure(ConstraintSet(rectangles=(array([1, 2], [3, 4]),)), 1, 2) == [1, 2]


@pytest.mark.parametrize(
    ("alive", "shape"),
    [
        ([1, 0, 1], (2,)),
        ([[1, 0, 1], [0, 1, 1]], (2, 2)),
        ([[1, 1], [0, 0]], (1, 2)),
        ([[1, 1], [0, 1]], None),
        ([[0, 0], [0, 0]], (0, 0)),
        ([[[1, 0], [0, 1]], [[0, 0], [0, 0]]], (1, 2, 1)),
        ([[[1, 0], [0, 0]], [[1, 0], [0, 1]]], None),
    ],
)
def test_what_survives_has_a_shape_or_is_ragged(
    alive: list[object], shape: tuple[int, ...] | None
) -> None:
    assert alive_shape(np.array(alive, bool)) == shape


def legal(constraints: ConstraintSet, dead: np.ndarray) -> bool:
    """Legality spelled out once more, straight from the definitions."""
    for composite, members in constraints.definitions:
        if bool(dead[composite]) != all(dead[m] for m in members):
            return False
    for rows in constraints.rectangles:
        counts = [sum(not dead[c] for c in row) for row in rows]
        if len({count for count in counts if count}) > 1:
            return False
    for rows in constraints.alignments:
        patterns = [tuple(not dead[c] for c in row) for row in rows]
        if len({pattern for pattern in patterns if any(pattern)}) > 1:
            return False
    return not dead[0]


classes = st.integers(0, CLASSES - 1)


def rows_by_columns(draw: st.DrawFn) -> np.ndarray:
    rows, columns = draw(st.integers(2, 3)), draw(st.integers(2, 4))
    members = draw(st.permutations(range(CLASSES)))[: rows * columns]
    return np.array(members, np.int32).reshape(rows, columns)


@st.composite
def constraint_sets(draw: st.DrawFn, rectangles: bool = True) -> ConstraintSet:
    definitions = draw(
        st.lists(st.tuples(classes, st.lists(classes, min_size=2, max_size=4)), max_size=3)
    )
    return ConstraintSet(
        tuple((c, np.unique(m).astype(np.int32)) for c, m in definitions if c not in m),
        tuple(rows_by_columns(draw) for _ in range(draw(st.integers(0, 2)) if rectangles else 0)),
        tuple(rows_by_columns(draw) for _ in range(draw(st.integers(0, 2)))),
    )


@settings(max_examples=400)
@given(constraint_sets(), st.lists(classes, min_size=1, max_size=3), st.booleans())
def test_a_closure_is_legal(constraints: ConstraintSet, seeds: list[int], same: bool) -> None:
    killed = closure(constraints, *seeds, same=same, cost=np.linspace(1, 2, CLASSES))
    if killed is not None:
        dead = np.isin(np.arange(CLASSES), killed)
        assert set(seeds) <= set(killed)
        assert legal(constraints, dead)


@settings(max_examples=25)
@given(constraint_sets(rectangles=False), classes)
def test_a_closure_fails_only_where_nothing_is_legal(constraints: ConstraintSet, seed: int) -> None:
    if closure(constraints, seed) is None:
        for choice in itertools.product((False, True), repeat=CLASSES):
            dead = np.array(choice)
            assert not (dead[seed] and legal(constraints, dead))
