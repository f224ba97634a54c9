"""What weights are worth, within a layer and between layers."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.passes.sparsity.patterns import Pattern
from onnxprune.passes.sparsity.scores import (
    InputMoments,
    layer_amounts,
    shares_of_output,
    weight_scores,
)


def test_wanda_weighs_weights_with_the_size_of_their_input() -> None:
    weight = np.array([[[3.0, -1.0]]])
    moments = InputMoments(np.array([[0.0, 0.0]]), np.array([[1.0, 16.0]]))
    np.testing.assert_allclose(weight_scores(weight, None), [[[3, 1]]])
    np.testing.assert_allclose(weight_scores(weight, moments), [[[3, 4]]])


def test_between_layers_the_scale_of_a_layer_does_not_count() -> None:
    weight = np.random.default_rng(0).standard_normal((1, 4, 5))
    moments = InputMoments(np.zeros((1, 5)), np.ones((1, 5)))
    np.testing.assert_allclose(
        shares_of_output(weight, moments), shares_of_output(100 * weight, moments)
    )


def test_one_threshold_for_all_layers() -> None:
    low, high = np.full((2, 20), 1.0), np.full((2, 60), 2.0)
    # 80 of 160 go: 38 of the 40 of the low layer, which keeps 5 %, and 42 of the 120 others
    assert layer_amounts([low, high], Pattern(), 0.5) == [38 / 40, 42 / 120]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), st.floats(0.01, 0.99))
def test_as_many_go_as_were_asked_for_and_no_layer_is_emptied(
    sizes: list[int], amount: float
) -> None:
    scores = [10.0**n * np.arange(size)[np.newaxis] for n, size in enumerate(sizes)]
    amounts = layer_amounts(scores, Pattern(), amount)
    gone = [share * size for share, size in zip(amounts, sizes, strict=True)]
    assert all(round(one) < size for one, size in zip(gone, sizes, strict=True))
    # what layers keep whatever is asked for may be more than what is left to ask for
    can_go = sum(size - math.ceil(size * min(0.05, 1 - amount)) for size in sizes)
    assert round(sum(gone)) == min(round(amount * sum(sizes)), can_go)
