"""Successive halving: who is tried at all, who goes on, and what is told of those that left."""

from __future__ import annotations

import math

import pytest

from onnxprune.allocation.candidates import Candidate
from onnxprune.allocation.halving import difference, distinct, going_on, on_one_scale
from onnxprune.coupling.cut import Removal


def removing(name: str, **units: range) -> Candidate:
    return Candidate(name, Removal({group: tuple(each) for group, each in units.items()}))


@pytest.mark.parametrize(
    ("first", "second", "share"),
    [
        ({}, {}, 0.0),
        ({"a": range(4)}, {"a": range(4)}, 0.0),
        ({"a": range(4)}, {"a": range(3)}, 0.25),
        ({"a": range(2)}, {"b": range(2)}, 1.0),
        ({"a": range(3), "b": range(1)}, {"a": range(3)}, 0.25),
    ],
    ids=str,
)
def test_difference_is_the_share_of_units_that_only_one_removes(
    first: dict[str, range], second: dict[str, range], share: float
) -> None:
    removals = removing("x", **first).removal, removing("y", **second).removal
    assert difference(*removals) == share
    assert difference(*removals[::-1]) == share


def test_candidates_that_hardly_differ_are_tried_once() -> None:
    first, other = removing("first", a=range(100)), removing("other", a=range(90))
    equal, nearly = removing("equal", a=range(100)), removing("nearly", a=range(101))
    assert distinct([first, equal, other, nearly]) == [first, other]


FIELD = [removing(name, a=range(size)) for name, size in {"a": 1, "b": 2, "c": 3}.items()]


def test_the_best_go_on() -> None:
    found = {"a": 0.3, "b": 0.2, "c": 0.25}
    assert [each.name for each in going_on(FIELD, found, 2)] == ["b", "c"]
    assert [each.name for each in going_on(FIELD, found, 5)] == ["b", "c", "a"]


def test_who_is_far_behind_leaves_whatever_the_rank() -> None:
    assert [each.name for each in going_on(FIELD, {"a": 0.3, "b": 0.1, "c": 0.21}, 3)] == ["b"]


@pytest.mark.parametrize("level", [0.0, math.inf])
def test_candidates_that_cannot_be_told_apart_all_go_on(level: float) -> None:
    assert going_on(FIELD, dict.fromkeys("abc", level), 3) == FIELD


def test_rounds_are_told_on_the_scale_of_the_last() -> None:
    rounds = [{"a": 0.4, "b": 0.6, "c": math.inf, "d": 0.5}, {"a": 0.2, "d": 0.3}]
    told = on_one_scale("a", rounds)
    assert told == pytest.approx({"a": 0.2, "b": 0.3, "c": math.inf, "d": 0.3})


def test_the_winner_is_told_as_the_best_even_if_it_was_not_at_first() -> None:
    told = on_one_scale("b", [{"a": 0.2, "b": 0.3, "c": 0.25}, {"a": 0.2, "b": 0.1}])
    assert told["b"] == 0.1
    assert min(told.values()) == 0.1


@pytest.mark.parametrize("level", [0.0, math.inf])
def test_nothing_is_told_of_ratios_that_there_are_not(level: float) -> None:
    assert on_one_scale("a", [{"a": level, "b": math.inf}]) == {"a": level, "b": math.inf}
