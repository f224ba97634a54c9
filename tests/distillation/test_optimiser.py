"""Adam as it is written down, and how its rate goes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxprune.distillation.optimiser import Adam, Schedule

FIRST, SECOND, RATE = 0.9, 0.999, 0.01


def test_steps_are_those_of_adam() -> None:
    rng = np.random.default_rng(0)
    start = rng.standard_normal((3, 2)).astype(np.float32)
    adam = Adam({"w": start})
    value, m, v = start.astype(np.float64), 0.0, 0.0
    for count in range(1, 11):
        gradient = rng.standard_normal((3, 2)).astype(np.float32)
        adam.step({"w": gradient}, RATE)
        m = FIRST * m + (1 - FIRST) * gradient
        v = SECOND * v + (1 - SECOND) * gradient.astype(np.float64) ** 2
        value -= RATE * (m / (1 - FIRST**count)) / np.sqrt(v / (1 - SECOND**count))
    np.testing.assert_allclose(adam.values["w"], value, rtol=1e-4, atol=1e-6)


def test_a_first_step_is_as_long_as_the_rate_however_steep_it_is() -> None:
    adam = Adam({"w": np.zeros(3, np.float32)})
    adam.step({"w": np.array([1e-4, -1.0, 1e4], np.float32)}, RATE)
    np.testing.assert_allclose(adam.values["w"], [-RATE, RATE, -RATE], rtol=1e-4)


def test_what_was_given_and_weights_without_a_gradient_stay() -> None:
    given = {"w": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    adam = Adam(given)
    before = adam.values["w"]
    adam.step({"w": np.ones(2, np.float32)}, RATE)
    assert (given["w"] == 1).all()
    assert (adam.values["b"] == 1).all()
    # a check-point that was kept does not move on
    assert (before == 1).all()
    assert adam.values["w"].dtype == np.float32


def test_a_gradient_of_nothing_moves_nothing() -> None:
    adam = Adam({"w": np.ones(2, np.float32)})
    adam.step({"w": np.zeros(2, np.float32)}, RATE)
    assert (adam.values["w"] == 1).all()


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
