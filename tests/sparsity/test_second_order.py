"""Second-order elimination: what is left makes up for what goes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.sparsity.patterns import Pattern, parse_pattern
from onnxprune.sparsity.second_order import sparse_weights


def problem(inputs: int, outputs: int = 6) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights, and the covariance of strongly correlated inputs."""
    rng = np.random.default_rng(inputs)
    mixed = rng.standard_normal((inputs, inputs)) @ np.diag(np.linspace(0.1, 3, inputs))
    return rng.standard_normal((outputs, inputs)), mixed @ mixed.T / inputs


def error(lost: NDArray[np.float64], covariance: NDArray[np.float64]) -> float:
    return float(np.einsum("od,de,oe->", lost, covariance, lost))


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8", "2x1", "1x4", "3x8"])
@pytest.mark.parametrize("inputs", [16, 300])
def test_zeros_lie_as_the_pattern_says_and_cost_less_than_magnitudes(
    pattern: str, inputs: int
) -> None:
    weight, covariance = problem(inputs)
    how = parse_pattern(pattern)
    made = sparse_weights(weight, covariance, how, 0.5)
    again = how.mask((made != 0).astype(float), 0.5)
    np.testing.assert_array_equal(made != 0, again)
    plain = weight * how.mask(np.abs(weight), 0.5)
    assert error(weight - made, covariance) < 0.8 * error(weight - plain, covariance)


def test_what_stays_behind_the_one_that_goes_is_the_least_squares_solution() -> None:
    weight, covariance = problem(6, outputs=1)
    made = sparse_weights(weight, covariance, Pattern(), 1 / 6, damping=0.0)
    (gone,) = np.flatnonzero(made[0] == 0)
    kept = [one for one in range(6) if one > gone]
    fixed = [one for one in range(6) if one < gone]
    right = (covariance @ weight[0] - covariance[:, fixed] @ weight[0][fixed])[kept]
    wanted = np.linalg.solve(covariance[np.ix_(kept, kept)], right)
    np.testing.assert_allclose(made[0][kept], wanted, rtol=1e-6)


def test_inputs_that_never_change_break_nothing() -> None:
    weight, covariance = problem(12)
    covariance[3] = covariance[:, 3] = 0
    assert np.isfinite(sparse_weights(weight, covariance, Pattern(), 0.5)).all()
    assert np.isfinite(sparse_weights(weight, np.zeros((12, 12)), Pattern(), 0.5)).all()
