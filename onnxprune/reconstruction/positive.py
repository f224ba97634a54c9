"""The inverse of a symmetric positive definite matrix, by way of its Cholesky factor.

H = L L', so H^-1 = X' X with X = L^-1. In four parts, twice::

    L = [L1   0 ]    X = [X1               0 ]    X'X = [X1'X1 + Y'Y   Y'X2 ]
        [L21  L2]        [Y = -X2 L21 X1   X2]          [X2'Y          X2'X2]

It takes half the operations of `numpy.linalg.inv`, nearly all of them in products of matrices.
Source: Golub & Van Loan, Matrix Computations, 4.2; Du Croz & Higham 1992 (stability).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["positive_inverse"]

_SMALL = 256


def positive_inverse(square: NDArray[np.float64]) -> NDArray[np.float64]:
    """Invert a symmetric positive definite matrix.

    Args:
        square: float64 [n, n]; unchanged.

    Returns:
        float64 [n, n]; what `numpy.linalg.inv` gives where rounding has made it indefinite.
    """
    try:
        factor = np.asarray(np.linalg.cholesky(square), np.float64)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.inv(square))
    _invert_lower(factor)
    _square_lower(factor)
    return factor


def _invert_lower(factor: NDArray[np.float64]) -> None:
    """Invert a lower triangular matrix in place."""
    half = len(factor) // 2
    if len(factor) <= _SMALL:
        factor[...] = np.tril(np.linalg.inv(factor)) if len(factor) else factor
        return
    _invert_lower(factor[:half, :half])
    _invert_lower(factor[half:, half:])
    below = factor[half:, :half] @ factor[:half, :half]
    np.matmul(factor[half:, half:], below, out=factor[half:, :half])
    np.negative(factor[half:, :half], out=factor[half:, :half])


def _square_lower(factor: NDArray[np.float64]) -> None:
    """Put X'X in the place of a lower triangular X."""
    half = len(factor) // 2
    if len(factor) <= _SMALL:
        factor[...] = factor.T @ factor
        return
    below = factor[half:, :half].copy()
    np.matmul(factor[half:, half:].T, below, out=factor[half:, :half])
    factor[:half, half:] = factor[half:, :half].T
    _square_lower(factor[:half, :half])
    _square_lower(factor[half:, half:])
    factor[:half, :half] += below.T @ below
