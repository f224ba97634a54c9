"""Moments and the regression on them, against numpy's lstsq on the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.compensation.regression.gram import (
    Gram,
    MomentSums,
    Regression,
    Solution,
    Weighted,
    gram_of,
)

Rows = NDArray[np.float32]
COUNT, GROUPS, UNKNOWNS, OUTPUTS = 200, 2, 7, 3


def rows_and_targets(seed: int = 0, mean: float = 0.0) -> tuple[Rows, Rows]:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((GROUPS, UNKNOWNS, UNKNOWNS))
    rows = np.einsum("rgd,gde->rge", rng.standard_normal((COUNT, GROUPS, UNKNOWNS)), mixing) + mean
    truth = rng.standard_normal((GROUPS, OUTPUTS, UNKNOWNS))
    targets = np.einsum("rgd,god->rgo", rows, truth) + rng.standard_normal((COUNT, GROUPS, OUTPUTS))
    return rows.astype(np.float32), (targets + 5).astype(np.float32)


def kept_unknowns() -> NDArray[np.bool_]:
    kept = np.ones((GROUPS, UNKNOWNS), bool)
    kept[0, 2] = kept[1, [0, 5]] = False
    return kept


def by_lstsq(
    rows: Rows, targets: Rows, towards: NDArray[np.float64], kept: NDArray[np.bool_], pull: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights and bias of one group: the ridge as further rows, the bias as a column of ones."""
    x = rows[:, kept].astype(np.float64)
    count = len(x)
    root = np.sqrt(pull * count)
    left = np.block(
        [[x, np.ones((count, 1))], [root * np.eye(x.shape[1]), np.zeros((x.shape[1], 1))]]
    )
    right = np.concatenate([targets.astype(np.float64), root * towards[:, kept].T])
    found = np.linalg.lstsq(left, right, rcond=None)[0]
    weight = np.zeros_like(towards)
    weight[:, kept] = found[:-1].T
    return weight, found[-1]


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0, 1e3])
def test_the_regression_is_lstsq_with_a_ridge_towards_the_weights_and_a_free_bias(
    ridge: float,
) -> None:
    rows, targets = rows_and_targets(mean=2.0)
    towards = np.random.default_rng(1).standard_normal((GROUPS, OUTPUTS, UNKNOWNS))
    kept = kept_unknowns()
    gram = gram_of(rows, targets)
    solution = Regression(gram, towards, kept, ridge).solve(gram)
    assert solution is not None
    for group in range(GROUPS):
        x = rows[:, group][:, kept[group]].astype(np.float64)
        pull = ridge * x.var(axis=0).mean()
        weight, bias = by_lstsq(
            rows[:, group], targets[:, group], towards[group], kept[group], pull
        )
        np.testing.assert_allclose(solution.weight[group], weight, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(solution.bias[group], bias, rtol=2e-4, atol=2e-3)
    assert not solution.weight[~np.broadcast_to(kept[:, None], solution.weight.shape)].any()


def test_an_endless_ridge_is_plain_removal_with_the_mean_folded_in() -> None:
    rows, targets = rows_and_targets()
    towards = np.random.default_rng(1).standard_normal((GROUPS, OUTPUTS, UNKNOWNS))
    gram = gram_of(rows, targets)
    solution = Regression(gram, towards, kept_unknowns(), 1e9).solve(gram)
    assert solution is not None
    masked = towards * kept_unknowns()[:, None]
    np.testing.assert_allclose(solution.weight, masked, atol=1e-6)
    np.testing.assert_allclose(solution.bias, gram.with_bias(masked).bias, atol=1e-5)
    mean = solution.predict(rows).mean(axis=0)
    np.testing.assert_allclose(mean, targets.mean(axis=0), atol=1e-4)


def test_sums_of_parts_are_those_of_the_whole() -> None:
    rows, targets = rows_and_targets(mean=3.0)
    whole, parts = gram_of(rows, targets), gram_of(rows[:70], targets[:70])
    parts = parts + gram_of(rows[70:], targets[70:])
    for name in ("count", "x", "xx", "y", "xy", "yy"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-5)


def test_targets_that_move_change_what_depends_on_them() -> None:
    rows, targets = rows_and_targets()
    rows -= rows.mean(axis=0)
    whole, doubled = gram_of(rows, targets), gram_of(rows, targets * 2)
    several = [Weighted(rows[:70], targets[:70]), Weighted(rows[70:], targets[70:])]
    for moved in ([Weighted(rows, targets)], several):
        other = whole.with_moved(moved)
        for name in ("xy", "y"):
            wanted = getattr(doubled, name)
            np.testing.assert_allclose(getattr(other, name), wanted, rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(other.xx, whole.xx)


def test_covariances_are_those_of_the_rows() -> None:
    rows, targets = rows_and_targets(mean=1.0)
    gram = gram_of(rows, targets)
    for group in range(GROUPS):
        both = np.concatenate([rows[:, group], targets[:, group]], axis=1).astype(np.float64)
        whole = np.cov(both.T, bias=True)
        np.testing.assert_allclose(
            gram.covariance()[group], whole[:UNKNOWNS, :UNKNOWNS], rtol=1e-4, atol=1e-4
        )
        np.testing.assert_allclose(
            gram.cross_covariance()[group], whole[:UNKNOWNS, UNKNOWNS:], rtol=1e-4, atol=1e-3
        )


def test_the_error_is_that_of_the_rows() -> None:
    rows, targets = rows_and_targets(mean=1.0)
    rng = np.random.default_rng(2)
    solution = Solution(rng.standard_normal((GROUPS, OUTPUTS, UNKNOWNS)), rng.random((GROUPS, 3)))
    squares = (solution.predict(rows) - targets).astype(np.float64) ** 2
    wanted = squares.sum(axis=(1, 2)).mean()
    assert gram_of(rows, targets).error(solution) == pytest.approx(wanted, rel=1e-4)


def test_a_large_mean_does_not_hide_the_variance() -> None:
    """Products are formed in single precision: 30,000 +- 1 squared has no digits left for the 1."""
    rng = np.random.default_rng(0)
    rows = (3e4 + rng.standard_normal((5000, 1, 3))).astype(np.float32)
    weight = np.array([[[1.0, -2.0, 0.5]]])
    targets = (np.einsum("rgd,god->rgo", rows.astype(np.float64), weight) - 1e4).astype(np.float32)
    gram = gram_of(rows, targets)
    np.testing.assert_allclose(gram.covariance()[0], np.cov(rows[:, 0].T, bias=True), atol=1e-3)
    kept = np.ones((1, 3), bool)
    solution = Regression(gram, np.zeros_like(weight) + 1, kept, 1e-9).solve(gram)
    assert solution is not None
    np.testing.assert_allclose(solution.weight, weight, atol=1e-2)


def test_weights_that_blow_up_are_no_solution() -> None:
    """Two unknowns are the same but for a trace that the target wants a million times of."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal(1000)
    trace = rng.standard_normal(1000)
    rows = np.stack([first, first + 1e-3 * trace], axis=1)[:, None].astype(np.float32)
    targets = (rows[:, :, 1:] - rows[:, :, :1]) * 1e6
    gram, kept = gram_of(rows, targets), np.ones((1, 2), bool)
    assert Regression(gram, np.ones((1, 1, 2)), kept, 1e-12).solve(gram) is None
    assert Regression(gram, np.ones((1, 1, 2)), kept, 1e3).solve(gram) is not None


def test_numbers_that_are_none_are_no_solution() -> None:
    rows, targets = rows_and_targets()
    targets[3, 1, 2] = np.nan
    gram = gram_of(rows, targets)
    kept, towards = kept_unknowns(), np.ones((GROUPS, OUTPUTS, UNKNOWNS))
    assert Regression(gram, towards, kept, 1e-3).solve(gram) is None


def test_nothing_kept_leaves_the_mean_of_the_targets() -> None:
    rows, targets = rows_and_targets()
    gram: Gram = gram_of(rows, targets)
    none = np.zeros((GROUPS, UNKNOWNS), bool)
    solution = Regression(gram, np.ones((GROUPS, OUTPUTS, UNKNOWNS)), none, 1e-3).solve(gram)
    assert solution is not None
    assert not solution.weight.any()
    np.testing.assert_allclose(solution.bias, targets.mean(axis=0), rtol=1e-5)


def test_the_covariance_of_many_small_parts_is_that_of_all_rows() -> None:
    rows, _ = rows_and_targets(mean=2.0)
    sums = MomentSums()
    for start in range(0, COUNT, 3):
        sums.add(rows[start : start + 3])
    for group, covariance in enumerate(sums.covariance()):
        wanted = np.cov(rows[:, group].astype(np.float64).T, bias=True)
        np.testing.assert_allclose(covariance, wanted, rtol=1e-4, atol=1e-4)
