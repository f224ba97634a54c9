"""Zeros one input after another, every other weight making up for them: optimal brain surgeon.

For weights W [O, D] that minimise a quadratic with curvature H (the covariance of the inputs), and
H^-1 = U' U with U upper triangular, from left to right::

    q_j = w_j if it stays, else 0;   e = (w_j - q_j) / U_jj;   W[:, j:] -= e U[j, j:]

U_jj^2 is the j-th diagonal entry of the inverse without the inputs before j, so that a weight costs
w^2 / U_jj^2 when the ones behind it are free to make up for it. Which ones go is decided for
`_COLUMNS` inputs at a time, on the weights as they are by then.

Source: Frantar & Alistarh 2023 (SparseGPT), algorithm 1; METHODS.md 2.3 for the score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxprune.reconstruction.positive import positive_inverse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnxprune.sparsity.patterns import Pattern

__all__ = ["sparse_weights"]

_COLUMNS = 128
_DAMPING = 1e-2


def sparse_weights(
    weight: NDArray[np.float64],
    covariance: NDArray[np.float64],
    pattern: Pattern,
    amount: float,
    damping: float = _DAMPING,
) -> NDArray[np.float64]:
    """Set weights to zero and move what they did to others.

    Args:
        weight: [outputs, inputs], where the error is smallest.
        covariance: of the inputs, [inputs, inputs].
        pattern: where zeros may lie.
        amount: share of zeros.
        damping: what is added to the covariance, as a share of its mean diagonal.

    Returns:
        [outputs, inputs].
    """
    upper = _factor(covariance, damping)
    weight = weight.copy()
    outputs, inputs = weight.shape
    # no block lies in two runs
    columns = max(_COLUMNS // pattern.columns, 1) * pattern.columns
    for start in range(0, inputs, columns):
        end = min(start + columns, inputs)
        run = slice(start, end)
        pivots = np.diagonal(upper)[run]
        stays = pattern.mask((weight[:, run] / pivots) ** 2, amount)
        lost = np.zeros((outputs, end - start))
        for place in range(end - start):
            column = start + place
            if pattern.kept is not None and place % pattern.columns == 0:
                ahead = slice(place, place + pattern.columns)
                scores = (weight[:, run][:, ahead] / pivots[ahead]) ** 2
                stays[:, ahead] = pattern.mask(scores, amount)
            gone = np.where(stays[:, place], 0.0, weight[:, column])
            lost[:, place] = gone / pivots[place]
            weight[:, column:end] -= np.outer(lost[:, place], upper[column, column:end])
            weight[~stays[:, place], column] = 0.0
        weight[:, end:] -= lost @ upper[run, end:]
    return weight


def _factor(covariance: NDArray[np.float64], damping: float) -> NDArray[np.float64]:
    """U with U' U = H^-1."""
    square = covariance.copy()
    mean = float(np.trace(square)) / len(square)
    square[np.diag_indices_from(square)] += damping * mean + 1e-30
    inverse = positive_inverse(square)
    return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T, np.float64)
