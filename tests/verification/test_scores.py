"""Kappa and R squared: how well answers follow, with a constant model as baseline."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.verification.scores import kappa, r_squared

RNG = np.random.default_rng(0)
FACES = np.arange(1000) < 7


def test_a_constant_answer_agrees_and_follows_nothing() -> None:
    never = np.zeros(1000, bool)
    assert (never == FACES).mean() > 0.99
    assert kappa(FACES, never) == pytest.approx(0)
    assert kappa(FACES, FACES) == 1


def test_kappa_of_cohen_1960() -> None:
    """The example of two judges: 0.49 of chance-corrected agreement."""
    table = np.array([[88, 14, 18], [10, 40, 10], [2, 6, 12]])
    first = np.repeat([0, 0, 0, 1, 1, 1, 2, 2, 2], table.reshape(-1))
    second = np.repeat([0, 1, 2] * 3, table.reshape(-1))
    assert kappa(first, second) == pytest.approx(0.4915, abs=1e-4)


def test_answers_that_the_reference_never_gives_are_wrong() -> None:
    assert kappa(np.array([0, 0, 1, 1]), np.array([5, 0, 1, 7])) == pytest.approx(1 / 3)


def test_nothing_can_be_told_where_the_reference_does_not_vary() -> None:
    assert kappa(np.zeros(5), np.zeros(5)) is None
    assert r_squared(np.ones((5, 2)), np.zeros((5, 2))) is None
    assert r_squared(np.ones((1, 2)), np.ones((1, 2))) is None


def test_the_mean_at_each_place_has_none() -> None:
    wanted = RNG.standard_normal((50, 3, 4)) + 10 * np.arange(4)
    always = np.broadcast_to(wanted.mean(axis=0), wanted.shape)
    assert r_squared(wanted, always) == pytest.approx(0, abs=1e-9)
    assert r_squared(wanted, wanted) == 1


@given(share=st.floats(0.0, 1.0))
def test_the_error_counts_squared(share: float) -> None:
    wanted = RNG.standard_normal((40, 3))
    mean = wanted.mean(axis=0)
    assert r_squared(wanted, mean + (1 - share) * (wanted - mean)) == pytest.approx(1 - share**2)


def test_what_is_no_number() -> None:
    wanted = RNG.standard_normal((5, 3))
    broken = wanted.copy()
    broken[2, 1] = np.nan
    assert r_squared(wanted, broken) == -np.inf
    assert r_squared(broken, wanted) == 1
