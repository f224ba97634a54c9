"""Second moments of a regression, and the regression: ridge towards given weights, with a bias.

For rows x [D] and targets y [O] of each group::

    H = E[x x'] - mu mu'      G = E[y x'] - E[y] mu'
    W = (G + lam W0) (H_SS + lam I)^-1        b = E[y] - W mu_S         over the kept unknowns S

lam = ridge * mean diagonal of H_SS. lam -> infinity gives W0 without its removed columns: a badly
conditioned problem degrades to plain removal. Sums are kept in float64, products of at most 16,384
rows are formed in float32 around the mean, so that unknowns with a large mean keep their variance.
Source: Kwon et al. 2022 (fast post-training pruning), for the target.

The inverse goes by way of the Cholesky factor: H = L L', so H^-1 = X' X with X = L^-1. In four
parts, twice::

    L = [L1   0 ]    X = [X1               0 ]    X'X = [X1'X1 + Y'Y   Y'X2 ]
        [L21  L2]        [Y = -X2 L21 X1   X2]          [X2'Y          X2'X2]

It takes half the operations of `numpy.linalg.inv`, nearly all of them in products of matrices.
Source: Golub & Van Loan, Matrix Computations, 4.2; Du Croz & Higham 1992 (stability).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


_CHUNK = 16384
_LARGEST_GROWTH = 50.0


@dataclass(frozen=True)
class Weighted:
    """Rows of a regression.

    Attributes:
        rows: float32 [rows, g, D].
        targets: float32 [rows, g, O].
        weights: how much each row counts, float32 [rows]; None for all alike.
    """

    rows: NDArray[np.float32]
    targets: NDArray[np.float32]
    weights: NDArray[np.float32] | None = None

    @property
    def count(self) -> float:
        """Sum of the weights."""
        return len(self.rows) if self.weights is None else float(self.weights.sum(dtype=float))


@dataclass(frozen=True)
class Gram:
    """Sums over rows, float64; g groups, D unknowns, O outputs.

    Attributes:
        count: sum of the weights of the rows, their number where all count alike.
        x: [g, D].
        xx: [g, D, D].
        y: [g, O].
        xy: [g, D, O].
        yy: squares of the targets, [g, O].
    """

    count: float
    x: NDArray[np.float64]
    xx: NDArray[np.float64]
    y: NDArray[np.float64]
    xy: NDArray[np.float64]
    yy: NDArray[np.float64]

    def __add__(self, other: Gram) -> Gram:
        """Sums over the rows of both."""
        return Gram(
            self.count + other.count,
            self.x + other.x,
            self.xx + other.xx,
            self.y + other.y,
            self.xy + other.xy,
            self.yy + other.yy,
        )

    def with_targets(self, parts: Sequence[Weighted]) -> Gram:
        """The same rows with other targets.

        Args:
            parts: rows and their targets, in as many parts as there are; all rows of these sums.
        """
        xy, y, yy = _with_targets(self.x, self.count, parts)
        return Gram(self.count, self.x, self.xx, y, xy, yy)

    def with_bias(self, weight: NDArray[np.float64]) -> Solution:
        """Given weights with the bias that keeps the mean of the targets."""
        seen = np.einsum("god,gd->go", weight, self.x / self.count)
        return Solution(weight, self.y / self.count - seen)

    def covariance(self) -> NDArray[np.float64]:
        """Covariance of the unknowns, [g, D, D]."""
        mean = self.x / self.count
        return self.xx / self.count - mean[:, :, None] * mean[:, None]

    def cross_covariance(self) -> NDArray[np.float64]:
        """Covariance of unknowns and targets, [g, D, O]."""
        mean = self.x / self.count
        return self.xy / self.count - mean[:, :, None] * (self.y / self.count)[:, None]

    def error(self, solution: Solution) -> float:
        """Mean squared error of a prediction, summed over groups and outputs."""
        weight, bias = solution.weight, solution.bias
        linear = weight @ self.xx
        squares = np.einsum("god,god->go", linear, weight)
        crossed = np.einsum("god,gdo->go", weight, self.xy)
        along_x = np.einsum("god,gd->go", weight, self.x)
        total = self.yy + squares - 2 * crossed + 2 * bias * (along_x - self.y)
        return float((total / self.count + bias**2).sum())


@dataclass(frozen=True)
class Solution:
    """Weights and bias of a regression: float64 [g, O, D] and [g, O]."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def predict(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply to rows: float32 [rows, g, D] -> [rows, g, O]."""
        matrix = self.weight.astype(np.float32).swapaxes(1, 2)
        made = rows.swapaxes(0, 1) @ matrix + self.bias[:, None].astype(np.float32)
        return made.swapaxes(0, 1)

    def towards(self, other: Solution, stride: float) -> Solution:
        """Go from here to another solution: 0 stays, 1 arrives, more goes beyond."""
        return Solution(
            self.weight + stride * (other.weight - self.weight),
            self.bias + stride * (other.bias - self.bias),
        )

    def finite(self) -> bool:
        """Whether every number is finite."""
        return bool(np.isfinite(self.weight).all() and np.isfinite(self.bias).all())


def gram_of(
    rows: NDArray[np.float32],
    targets: NDArray[np.float32],
    weights: NDArray[np.float32] | None = None,
) -> Gram:
    """Sum over rows.

    Args:
        rows: [rows, g, D].
        targets: [rows, g, O].
        weights: how much each row counts, [rows]; None for all alike.
    """
    part = Weighted(rows, targets, weights)
    x, xx = _input_sums(rows, weights)
    xy, y, yy = _with_targets(x, part.count, [part])
    return Gram(part.count, x, xx, y, xy, yy)


class MomentSums:
    """First and second moments of rows that come in many small parts."""

    def __init__(self) -> None:
        self._waiting: list[NDArray[np.float32]] = []
        self._weights: list[NDArray[np.float32]] = []
        self._rows = 0
        self._count = 0.0
        self._sums: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def add(self, rows: NDArray[np.float32], weights: NDArray[np.float32] | None = None) -> None:
        """Take in rows [rows, g, D] and how much each counts, [rows]; None for all alike."""
        self._waiting.append(rows)
        self._weights.append(np.ones(len(rows), np.float32) if weights is None else weights)
        self._rows += len(rows)
        # a sum costs as much as the product of so many rows
        if self._rows >= min(_CHUNK, 2 * rows.shape[2]):
            self._sum_up()

    def covariance(self) -> NDArray[np.float64]:
        """Covariance of the unknowns, [g, D, D]; of no rows at all there is none."""
        self._sum_up()
        assert self._sums is not None
        mean = self._sums[0] / self._count
        return self._sums[1] / self._count - mean[:, :, None] * mean[:, None]

    def _sum_up(self) -> None:
        if self._waiting:
            weights = np.concatenate(self._weights)
            x, xx = _input_sums(np.concatenate(self._waiting), weights)
            if self._sums is not None:
                x, xx = self._sums[0] + x, self._sums[1] + xx
            self._sums = x, xx
            self._count += float(weights.sum(dtype=float))
            self._waiting, self._weights, self._rows = [], [], 0


def _scaled(rows: NDArray[np.float32], weights: NDArray[np.float32] | None) -> NDArray[np.float32]:
    return rows if weights is None else rows * weights[:, None, None]


def _input_sums(
    rows: NDArray[np.float32], weights: NDArray[np.float32] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums over rows [rows, g, D] that hold no targets: x [g, D] and xx [g, D, D]."""
    total = _scaled(rows, weights).sum(axis=0, dtype=np.float64)
    count = len(rows) if weights is None else float(weights.sum(dtype=float))
    middle = (total / max(count, 1e-30)).astype(np.float32)
    square = np.zeros((rows.shape[1], rows.shape[2], rows.shape[2]))
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        x = (rows[part] - middle).swapaxes(0, 1)
        if weights is not None:
            x = x * np.sqrt(weights[part])[:, None]
        square += x.swapaxes(1, 2) @ x
    # m d' + d m' + n m m' as one product, d being what is left of the sum around the mean m
    shift = middle.astype(np.float64)
    rest = total - count / 2 * shift
    square += np.stack([shift, rest], axis=2) @ np.stack([rest, shift], axis=1)
    return total, square


def _with_targets(
    x: NDArray[np.float64], count: float, parts: Sequence[Weighted]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Sums that hold targets: xy, y, yy; `x` is the sum of all rows, `count` of their weights."""
    y = np.asarray(
        sum(_scaled(part.targets, part.weights).sum(axis=0, dtype=np.float64) for part in parts)
    )
    yy = np.zeros_like(y)
    middle = (y / max(count, 1e-30)).astype(np.float32)
    xy = x[:, :, None] * middle.astype(np.float64)[:, None]
    for part in parts:
        scaled = _scaled(part.targets, part.weights)
        yy += np.einsum("rgo,rgo->go", scaled, part.targets, dtype=np.float64)
        for start in range(0, len(part.rows), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            apart = part.targets[chunk] - middle
            if part.weights is not None:
                apart = apart * part.weights[chunk, None, None]
            xy += part.rows[chunk].transpose(1, 2, 0) @ apart.swapaxes(0, 1)
    return xy, y, yy


class Regression:
    """A regression over the kept unknowns, for any number of targets.

    Args:
        gram: moments; only those of the unknowns matter here.
        towards: weights the ridge pulls to, [g, O, D].
        kept: bool [g, D].
        ridge: strength as a share of the mean diagonal of the covariance.

    Attributes:
        inverses: inverse of the covariance of the kept unknowns of each group, ridge included.
    """

    def __init__(
        self, gram: Gram, towards: NDArray[np.float64], kept: NDArray[np.bool_], ridge: float
    ) -> None:
        self._towards = towards
        self._kept = kept
        self._pulls: list[float] = []
        self.inverses: list[NDArray[np.float64]] = []
        for group, covariance in enumerate(gram.covariance()):
            square = covariance[np.ix_(kept[group], kept[group])]
            largest = float(np.abs(covariance).max(initial=0.0))
            pull = ridge * float(np.trace(square)) / max(len(square), 1) + 1e-12 * largest + 1e-30
            square[np.diag_indices_from(square)] += pull
            self._pulls.append(pull)
            self.inverses.append(positive_inverse(square))

    def solve(self, gram: Gram) -> Solution | None:
        """Solve for weights; those of removed unknowns are zero.

        Args:
            gram: moments, with the same unknowns.

        Returns:
            None when the weights blow up.
        """
        weight = np.zeros_like(self._towards)
        crossed = gram.cross_covariance()
        parts = zip(self._kept, self._pulls, self.inverses, strict=True)
        for group, (alive, pull, inverse) in enumerate(parts):
            right = crossed[group][alive] + pull * self._towards[group][:, alive].T
            weight[group][:, alive] = (inverse @ right).T
        solution = gram.with_bias(weight)
        largest = _LARGEST_GROWTH * max(float(np.abs(self._towards).max(initial=0)), 1e-12)
        sane = solution.finite() and np.abs(weight).max(initial=0) <= largest
        return solution if sane else None
