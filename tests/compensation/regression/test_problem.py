"""One layer's regression: what is fitted, what decides, and targets that move behind a Relu."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxprune.compensation.regression.gram import gram_of
from onnxprune.compensation.regression.problem import Half, HalfRows, Problem
from onnxprune.compensation.regression.targets import FlatParts

RELU = FlatParts(0.0, np.inf)
RELU6 = FlatParts(0.0, 1.5)


def halves(
    seed: int, count: int = 300, unknowns: int = 8, noise: float = 0.0
) -> tuple[Half, Half, NDArray[np.float64]]:
    """Fit, judge and the true weights."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((1, 4, unknowns))
    mixing = rng.standard_normal((unknowns, unknowns))
    found = []
    for _ in range(2):
        rows = (rng.standard_normal((count, 1, unknowns)) @ mixing).astype(np.float32)
        targets = np.einsum("rgd,god->rgo", rows, weight) + rng.standard_normal(4)
        targets += noise * rng.standard_normal(targets.shape)
        found.append(Half(rows, targets.astype(np.float32), np.zeros_like(targets, np.float32)))
    return found[0], found[1], weight


def without(*gone: int, unknowns: int = 8) -> NDArray[np.bool_]:
    kept = np.ones((1, unknowns), bool)
    kept[:, list(gone)] = False
    return kept


def behind(flat: FlatParts, half: Half, predicted: NDArray[np.float32]) -> NDArray[np.float64]:
    """What is lost behind the activation of a sum, row by row."""
    got, wanted = (
        np.clip(one + half.others, flat.low, flat.high) for one in (predicted, half.targets)
    )
    return (got - wanted).astype(np.float64)


def error(lost: NDArray[np.float64]) -> float:
    return float((lost**2).sum(axis=(1, 2)).mean())


def bound(flat: FlatParts, half: Half, predicted: NDArray[np.float32]) -> float:
    """What is minimised: the error, and where the original is not flat also what is below it."""
    total = half.targets + half.others
    on_flat = (total <= flat.low) | (total >= flat.high)
    return error(np.where(on_flat, behind(flat, half, predicted), predicted - half.targets))


def with_others(half: Half, seed: int) -> Half:
    """Something else is added before the activation."""
    others = np.random.default_rng(seed).standard_normal(half.targets.shape)
    return Half(half.rows, half.targets, others.astype(np.float32))


@settings(max_examples=25)
@given(seed=st.integers(0, 2**16), flat=st.sampled_from((RELU, RELU6)), alone=st.booleans())
def test_moving_targets_never_raise_the_error_behind_the_activation(
    seed: int, flat: FlatParts, alone: bool
) -> None:
    """A bound on it falls from round to round; what is chosen is no worse than least squares."""
    half, _, weight = halves(seed)
    half = half if alone else with_others(half, seed)
    kept, gram = without(1, 4, 6), gram_of(half.rows, half.targets)
    problems = [Problem(weight, half, half, flat, rounds) for rounds in range(6)]
    fitted = [one.fitted(gram, [half], kept, 1e-9) for one in problems]
    predicted = [one.predict(half.rows) for one in fitted if one is not None]
    assert len(predicted) == len(problems)
    bounds = [bound(flat, half, one) for one in predicted]
    for before, after in itertools.pairwise(bounds):
        assert after <= before * (1 + 1e-4)
    errors = [error(behind(flat, half, one)) for one in predicted]
    assert all(one <= limit * (1 + 1e-6) for one, limit in zip(errors, bounds, strict=True))
    chosen = [one.solve(kept, (1e-9,), both_halves=False) for one in (problems[0], problems[-1])]
    assert chosen[1].after <= chosen[0].after
    lost = behind(flat, half, chosen[1].solution.predict(half.rows))
    scale = half.targets.astype(np.float64).var(axis=0).sum()
    assert chosen[1].after == pytest.approx(error(lost) / scale, rel=1e-4)


def test_what_can_be_made_up_for_is() -> None:
    """An unknown that is a sum of two others."""
    fit, judge, weight = halves(0)
    for half in (fit, judge):
        half.rows[:, :, 3] = half.rows[:, :, 0] - 2 * half.rows[:, :, 5]
        half.targets[...] = np.einsum("rgd,god->rgo", half.rows, weight) + 1
    outcome = Problem(weight, fit, judge, None, 0).solve(without(3), (1e-9,), both_halves=True)
    assert outcome.solved
    assert outcome.before > 0.01
    assert outcome.after < 1e-8
    np.testing.assert_allclose(outcome.solution.bias, 1, atol=1e-3)
    wanted = weight.copy()
    wanted[:, :, 0] += weight[:, :, 3]
    wanted[:, :, 5] -= 2 * weight[:, :, 3]
    wanted[:, :, 3] = 0
    np.testing.assert_allclose(outcome.solution.weight, wanted, atol=1e-3)


def test_the_judging_half_chooses_the_ridge() -> None:
    """Twelve noisy rows for eight unknowns: a strong pull to the true weights is better."""
    fit, _, weight = halves(1, count=12, noise=3.0)
    _, judge, _ = halves(1, count=500)
    judge.targets[...] = np.einsum("rgd,god->rgo", judge.rows, weight)
    problem = Problem(weight, fit, judge, None, 0)
    alone = [problem.solve(without(2), (one,), both_halves=False).after for one in (1e-4, 10.0)]
    both = problem.solve(without(2), (1e-4, 10.0), both_halves=False)
    assert both.after == pytest.approx(min(alone))


def test_what_does_not_help_on_the_judging_half_is_thrown_away() -> None:
    """The halves want opposite things: old weights stay, with the mean of what is removed."""
    fit, judge, weight = halves(2, count=10)
    fit.targets[...] = -fit.targets
    outcome = Problem(weight, fit, judge, None, 0).solve(without(2), (1e-6,), both_halves=True)
    assert not outcome.solved
    assert outcome.after == outcome.before
    np.testing.assert_array_equal(outcome.solution.weight, weight * without(2)[:, None])
    given_ = outcome.solution.predict(fit.rows).mean(axis=0)
    np.testing.assert_allclose(given_, fit.targets.mean(axis=0), atol=1e-4)


def test_an_error_that_is_no_number_is_no_improvement() -> None:
    fit, judge, weight = halves(3)
    judge.targets[0, 0, 0] = np.nan
    outcome = Problem(weight, fit, judge, None, 0).solve(without(2), (1e-6,), both_halves=True)
    assert not outcome.solved


def test_in_the_end_both_halves_are_fitted() -> None:
    fit, judge, weight = halves(4, count=40, noise=0.5)
    kept = without(2)
    one = Problem(weight, fit, judge, None, 0).solve(kept, (1e-3,), both_halves=True)
    whole = HalfRows(80)
    for half in (fit, judge):
        whole.add(half)
    joint = Problem(weight, whole.whole(), judge, None, 0).solve(kept, (1e-3,), both_halves=False)
    np.testing.assert_allclose(one.solution.weight, joint.solution.weight, rtol=1e-3, atol=1e-3)
    assert len(whole.whole().rows) == 80


def test_a_relu_lets_a_layer_forget_how_negative_it_was() -> None:
    """What is below zero may stay there, so the error behind the Relu falls."""
    _, judge, weight = halves(5, count=600)
    fit, _, _ = halves(5, count=600)
    kept = without(1, 4)
    plain = Problem(weight, fit, judge, RELU, 0).solve(kept, (1e-6,), both_halves=False)
    moved = Problem(weight, fit, judge, RELU, 8).solve(kept, (1e-6,), both_halves=False)
    assert moved.after < 0.95 * plain.after


@pytest.mark.parametrize("flat", [None, RELU])
@pytest.mark.parametrize("both", [False, True])
def test_sums_that_are_known_already_change_nothing(flat: FlatParts | None, both: bool) -> None:
    fit, judge, weight = halves(6, noise=0.5)
    problem = Problem(weight, fit, judge, flat, 3)
    known = problem.solve(
        without(2), (1e-3, 0.1), both_halves=both, grams=(fit.gram(), judge.gram())
    )
    fresh = problem.solve(without(2), (1e-3, 0.1), both_halves=both)
    np.testing.assert_allclose(known.solution.weight, fresh.solution.weight, rtol=1e-6)
    assert known.after == pytest.approx(fresh.after, rel=1e-4)
