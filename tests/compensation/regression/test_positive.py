"""The inverse of a positive definite matrix is numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.compensation.regression.gram import positive_inverse


@pytest.mark.parametrize("size", [0, 1, 2, 256, 257, 600])
@pytest.mark.parametrize("ridge", [1e-6, 1.0])
def test_the_inverse_is_numpys(size: int, ridge: float) -> None:
    """With half as many rows as unknowns: without the ridge there is no inverse."""
    rows = np.random.default_rng(size).standard_normal((size // 2, size))
    square = rows.T @ rows / max(size, 1) + ridge * np.eye(size)
    before = square.copy()
    found, wanted = positive_inverse(square), np.linalg.inv(square)
    np.testing.assert_allclose(found, wanted, atol=1e-8 / ridge)
    np.testing.assert_array_equal(square, before)
