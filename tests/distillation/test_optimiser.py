"""Orthogonalised momentum and Adam as they are written down, and how the rate goes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxprune.distillation.optimiser import Optimiser, Schedule, orthogonalised

FIRST, SECOND, RATE = 0.9, 0.999, 0.01


def test_steps_are_those_of_adam() -> None:
    rng = np.random.default_rng(0)
    start = rng.standard_normal((3, 2)).astype(np.float32)
    optimiser = Optimiser({"w": start})
    value, m, v = start.astype(np.float64), 0.0, 0.0
    for count in range(1, 11):
        gradient = rng.standard_normal((3, 2)).astype(np.float32)
        optimiser.step({"w": gradient}, RATE)
        m = FIRST * m + (1 - FIRST) * gradient
        v = SECOND * v + (1 - SECOND) * gradient.astype(np.float64) ** 2
        value -= RATE * (m / (1 - FIRST**count)) / np.sqrt(v / (1 - SECOND**count))
    np.testing.assert_allclose(optimiser.values["w"], value, rtol=1e-4, atol=1e-6)


def test_a_first_step_is_as_long_as_the_rate_however_steep_it_is() -> None:
    optimiser = Optimiser({"w": np.zeros(3, np.float32)})
    optimiser.step({"w": np.array([1e-4, -1.0, 1e4], np.float32)}, RATE)
    np.testing.assert_allclose(optimiser.values["w"], [-RATE, RATE, -RATE], rtol=1e-4)


@pytest.mark.parametrize("shape", [(6, 4), (4, 30), (5, 5)])
def test_singular_values_become_about_one(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    result = orthogonalised(matrix)
    sizes = np.diag(left.T @ result @ right.T)
    assert ((sizes > 0.6) & (sizes < 1.3)).all()
    rest = left.T @ result @ right.T - np.diag(sizes)
    assert np.abs(rest).max() < 1e-3


def test_a_step_of_a_matrix_is_as_large_as_one_of_adam() -> None:
    start = np.zeros((16, 8, 3, 3), np.float32)
    optimiser = Optimiser({"w": start}, ["w"])
    gradient = np.random.default_rng(0).standard_normal(start.shape).astype(np.float32)
    for _ in range(2):
        optimiser.step({"w": 1e3 * gradient}, RATE)
    size = float(np.sqrt(np.mean(np.square(optimiser.values["w"])))) / 2
    assert 0.1 * RATE < size < RATE
    directions = np.linalg.svd(optimiser.values["w"].reshape(16, -1), compute_uv=False)
    assert directions.max() < 2.5 * directions.min()


def test_what_was_given_and_weights_without_a_gradient_stay() -> None:
    given = {"w": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    optimiser = Optimiser(given)
    before = optimiser.values["w"]
    optimiser.step({"w": np.ones(2, np.float32)}, RATE)
    assert (given["w"] == 1).all()
    assert (optimiser.values["b"] == 1).all()
    # a check-point that was kept does not move on
    assert (before == 1).all()
    assert optimiser.values["w"].dtype == np.float32


def test_a_gradient_of_nothing_moves_nothing() -> None:
    optimiser = Optimiser({"w": np.ones(2, np.float32)})
    optimiser.step({"w": np.zeros(2, np.float32)}, RATE)
    assert (optimiser.values["w"] == 1).all()


@pytest.mark.parametrize("steps", [2, 30, 300, 3000])
def test_the_rate_rises_and_then_falls_along_a_cosine(steps: int) -> None:
    schedule = Schedule(RATE, steps)
    rates = [schedule.at(step) for step in range(steps)]
    top = int(np.argmax(rates))
    assert max(rates) <= RATE
    rising, falling = np.diff(rates[: top + 1]), np.diff(rates[top:])
    assert (rising > 0).all()
    assert (falling < 0).all()
    assert top <= steps / 2
    last = 0.5 * (1 + math.cos(math.pi * (steps - 1) / steps))
    assert rates[-1] == pytest.approx(RATE * last)
