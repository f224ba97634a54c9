"""Eliminating units on paper: errors are those of solving anew, the order is greedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxprune.compensation.regression.elimination import Elimination, Reader, eliminate


def reader(seed: int, units: Sequence[int], outputs: int = 3, scale: float = 1.0) -> Reader:
    """A random regression; `units` says which unit each unknown belongs to."""
    rng = np.random.default_rng(seed)
    size = len(units)
    rows = rng.standard_normal((4 * size, size)) @ rng.standard_normal((size, size))
    weight = scale * rng.standard_normal((outputs, size))
    covariance = np.cov(rows.T, bias=True).reshape(size, size)
    variance = float(np.einsum("od,de,oe->", weight, covariance, weight))
    return Reader(weight, covariance, np.array(units), variance, variance)


def true_error(one: Reader, gone: Sequence[int], ridge: float) -> float:
    """Least (W' - W)(H + lam)(W' - W)' over weights that are zero for the units gone."""
    square = one.covariance.copy()
    square += np.eye(len(square)) * ridge * np.trace(square) / len(square)
    dead = np.isin(one.unit, gone)
    weight = np.zeros_like(one.weight)
    right = one.weight @ square[:, ~dead]
    weight[:, ~dead] = np.linalg.solve(square[np.ix_(~dead, ~dead)], right.T).T
    lost = weight - one.weight
    return float(np.einsum("od,de,oe->", lost, square, lost))


UNITS = {
    "one unknown each": [0, 1, 2, 3, 4],
    "blocks": [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4],
    "interleaved, of different size": [0, 1, 2, 0, 3, 4, 1, 1, 2, 4],
    "others in between": [-1, 0, 1, -1, 2, 3, 4, -1],
}


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0])
def test_errors_add_up_to_that_of_solving_anew(name: str, ridge: float) -> None:
    one = reader(3, UNITS[name])
    running = Elimination.of(one, ridge)
    total, gone = 0.0, list[int]()
    for units in ([2], [0, 4], [3]):
        if len(units) == 1:
            score = running.scores(5)[units[0]]
            rise = running.remove(units)
            assert rise == pytest.approx(score, rel=1e-6)
        else:
            rise = running.remove(units)
        total += rise
        gone += units
        assert total == pytest.approx(true_error(one, gone, ridge), rel=1e-6)
    assert not running.scores(5)[gone].any()


def test_without_a_ridge_the_error_is_the_mean_squared_error_of_the_best_weights() -> None:
    """On rows, by numpy's lstsq."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((60, 6)) @ rng.standard_normal((6, 6))
    rows -= rows.mean(axis=0)
    weight = rng.standard_normal((2, 6))
    one = Reader(weight, rows.T @ rows / 60, np.arange(6), 1.0, 1.0)
    running = Elimination.of(one, 0.0)
    error = running.remove([1, 4]) + running.remove([2])
    left = rows[:, [0, 3, 5]]
    wanted = rows @ weight.T
    rest = wanted - left @ np.linalg.lstsq(left, wanted, rcond=None)[0]
    assert error == pytest.approx((rest**2).sum(axis=1).mean(), rel=1e-6)


def cheapest(readers: Sequence[Reader], gone: list[int], size: int, ridge: float) -> int:
    """The unit whose removal raises the sum of relative errors least, by trying all of them."""

    def total(units: list[int]) -> float:
        return sum(true_error(one, units, ridge) / one.variance for one in readers)

    left = [unit for unit in range(size) if unit not in gone]
    return min(left, key=lambda unit: total([*gone, unit]))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**16), name=st.sampled_from(sorted(UNITS)), readers=st.integers(1, 3))
def test_the_order_is_greedy_over_all_readers(seed: int, name: str, readers: int) -> None:
    scales = (1.0, 100.0, 0.01)
    several = [
        reader(seed + i, UNITS[name if i == 0 else "one unknown each"], scale=scales[i])
        for i in range(readers)
    ]
    order, rises = eliminate(several, 5, 0, 1e-3)
    assert rises.shape == (5, readers)
    gone: list[int] = []
    for step, rise in zip(order, rises, strict=True):
        assert step == [cheapest(several, gone, 5, 1e-3)]
        before = [true_error(one, gone, 1e-3) for one in several]
        gone += step
        after = [true_error(one, gone, 1e-3) for one in several]
        wanted = np.subtract(after, before)
        np.testing.assert_allclose(rise, wanted, rtol=1e-5, atol=1e-9 * max(after))


def test_readers_count_alike_whatever_the_size_of_their_outputs() -> None:
    quiet, loud = reader(0, [0, 1, 2, 3]), reader(1, [0, 1, 2, 3], scale=1000.0)
    louder = Reader(loud.weight * 50, loud.covariance, loud.unit, loud.variance * 2500, 1.0)
    assert eliminate([quiet, loud], 4, 0, 1e-3)[0] == eliminate([quiet, louder], 4, 0, 1e-3)[0]


def test_units_that_nobody_reads_go_first_and_for_nothing() -> None:
    order, rises = eliminate([reader(0, [0, 1, 3])], 5, 1, 1e-3)
    assert [units[0] for units in order][:2] == [2, 4]
    assert len(order) == 4
    np.testing.assert_array_equal(rises[:2], 0)
    assert (rises[2:] > 0).all()


def test_wide_groups_lose_several_at_a_time_with_exact_errors_in_the_end() -> None:
    """130 units go four, three and two at a time, each still a step of its own."""
    one = reader(0, list(range(130)))
    order, rises = eliminate([one], 130, 30, 1e-3)
    assert [len(units) for units in order] == [1] * 100
    assert len({units[0] for units in order}) == 100
    assert (rises >= 0).all()
    gone = [units[0] for units in order]
    for count in (4, 7, 100):  # ends of rounds
        wanted = true_error(one, gone[:count], 1e-3)
        assert rises[:count].sum() == pytest.approx(wanted, rel=1e-5)
    first = Elimination.of(one, 1e-3).scores(130)
    assert gone[:4] == np.argsort(first)[:4].tolist()


@pytest.mark.parametrize("least", [0, 1, 3, 5])
def test_as_many_stay_as_must(least: int) -> None:
    order, rises = eliminate([reader(0, UNITS["blocks"])], 5, least, 1e-3)
    assert len(order) == len(rises) == 5 - least


def test_the_reader_is_left_as_it_is() -> None:
    one = reader(0, UNITS["blocks"])
    weight, covariance = one.weight.copy(), one.covariance.copy()
    eliminate([one], 5, 0, 1e-3)
    np.testing.assert_array_equal(one.weight, weight)
    np.testing.assert_array_equal(one.covariance, covariance)


def test_units_that_are_the_same_cost_nothing_until_the_last_one() -> None:
    base = np.random.default_rng(0).standard_normal((100, 2))
    rows = base[:, [0, 1, 0, 0]]
    covariance: NDArray[np.float64] = np.cov(rows.T, bias=True)
    one = Reader(np.ones((1, 4)), covariance, np.arange(4), 1.0, 1.0)
    order, rises = eliminate([one], 4, 0, 1e-9)
    assert {units[0] for units in order[:2]} < {0, 2, 3}
    assert rises[:2].max() < 1e-6
    assert rises[2:].min() > 0.1


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_weight_of_a_reader_stays_as_it_is(order: Literal["C", "F"]) -> None:
    """The weight of a MatMul comes transposed; another curve of the group starts from it again."""
    subject = reader(5, UNITS["blocks"])
    subject = replace(subject, weight=np.array(subject.weight, order=order))
    before = subject.weight.copy()
    first = Elimination.of(subject, 1e-3).remove([1, 3])
    np.testing.assert_array_equal(subject.weight, before)
    assert Elimination.of(subject, 1e-3).remove([1, 3]) == first
