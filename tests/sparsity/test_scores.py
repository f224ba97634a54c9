"""What weights are worth, within a layer and between layers."""

from __future__ import annotations

import numpy as np

from onnxprune.sparsity.inputs import InputMoments
from onnxprune.sparsity.patterns import Pattern
from onnxprune.sparsity.scores import layer_amounts, shares_of_output, weight_scores


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
    low, high = np.full((2, 4), 1.0), np.full((2, 12), 2.0)
    amounts = layer_amounts([low, high], Pattern(), 0.5)
    # 16 of 32 go: all 8 of the low layer, which keeps 5 % at least, and 8 of the 24 others
    np.testing.assert_allclose(amounts, [0.95, 1 / 3])
