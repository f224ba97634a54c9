"""Second moments of a regression, and the regression: ridge towards given weights, with a bias.

For rows x [D] and targets y [O] of each group::

    H = E[x x'] - mu mu'      G = E[y x'] - E[y] mu'
    W = (G + lam W0) (H_SS + lam I)^-1        b = E[y] - W mu_S         over the kept unknowns S

lam = ridge * mean diagonal of H_SS. lam -> infinity gives W0 without its removed columns: a badly
conditioned problem degrades to plain removal. Rows are gone through in blocks that fit in the
cache: products within a block are formed in float32 around a mean, so that unknowns with a large
mean keep their variance, and blocks are summed in float64. Of a product x x' BLAS computes half.
Source: Kwon et al. 2022 (fast post-training pruning), for the target.

The inverse goes by way of the Cholesky factor: H = L L', so H^-1 = X' X with X = L^-1. In four
parts, twice::

    L = [L1   0 ]    X = [X1               0 ]    X'X = [X1'X1 + Y'Y   Y'X2 ]
        [L21  L2]        [Y = -X2 L21 X1   X2]          [X2'Y          X2'X2]

It takes half the operations of `numpy.linalg.inv`, nearly all of them in products of matrices.
Source: Golub & Van Loan, Matrix Computations, 4.2; Du Croz & Higham 1992 (stability).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

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


_BLOCK = 2048
_LARGEST_GROWTH = 50.0


def blocks(count: int) -> Iterator[slice]:
    """Cut rows into blocks that stay in the cache while something is done with them."""
    return (slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK))


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

    def with_moved(self, parts: Iterable[Weighted]) -> Gram:
        """The same rows with targets that have moved; squares of targets stay what they were.

        Args:
            parts: all rows and how far their targets have moved. Unknowns have a mean of about
                zero.
        """
        xy, y = self.xy.copy(), self.y.copy()
        for part in parts:
            moved = _columns(part.targets)
            moved = moved if part.weights is None else moved * part.weights
            y += moved.sum(axis=2)
            xy += _columns(part.rows) @ moved.swapaxes(1, 2)
        return replace(self, xy=xy, y=y)

    def of(self, unknowns: NDArray[np.bool_]) -> Gram:
        """The same of some unknowns, bool [D], of the only group."""
        x, xy = self.x[:, unknowns], self.xy[:, unknowns]
        return replace(self, x=x, xx=self.xx[:, unknowns][:, :, unknowns], xy=xy)

    def with_bias(self, weight: NDArray[np.float64]) -> Solution:
        """Given weights with the bias that keeps the mean of the targets."""
        seen = np.einsum("god,gd->go", weight, self.x / self.count)
        return Solution(weight, self.y / self.count - seen)

    def variance(self) -> float:
        """Variance of the targets, summed over groups and outputs."""
        return float((self.yy / self.count - (self.y / self.count) ** 2).sum())

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
        return Linear(self).predict(rows)

    def towards(self, other: Solution, stride: float) -> Solution:
        """Go from here to another solution: 0 stays, 1 arrives, more goes beyond."""
        return Solution(
            self.weight + stride * (other.weight - self.weight),
            self.bias + stride * (other.bias - self.bias),
        )

    def whole(
        self, unknowns: NDArray[np.bool_], outputs: NDArray[np.bool_], middle: NDArray[np.float64]
    ) -> Solution:
        """The same for a whole layer.

        Args:
            unknowns: those this is over, bool [g, D]; weights of others are zero.
            outputs: those it gives, bool [g, O].
            middle: what the unknowns were taken apart from, [g, D].
        """
        weight = np.zeros((*outputs.shape, unknowns.shape[1]))
        bias = np.zeros(outputs.shape)
        weight[outputs[:, :, np.newaxis] & unknowns[:, np.newaxis]] = self.weight.ravel()
        bias[outputs] = self.bias.ravel()
        return Solution(weight, bias - np.einsum("god,gd->go", weight, middle))

    def finite(self) -> bool:
        """Whether every number is finite."""
        return bool(np.isfinite(self.weight).all() and np.isfinite(self.bias).all())


class Linear:
    """A solution in single precision, to be applied to many blocks of rows."""

    def __init__(self, solution: Solution) -> None:
        self._weight = solution.weight.astype(np.float32)
        self._bias = solution.bias.astype(np.float32)

    def predict(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply to rows: float32 [rows, g, D] -> [rows, g, O], in memory as the rows are."""
        if rows.strides[0] < rows.strides[2]:
            made = self._weight @ rows.transpose(1, 2, 0)
            made += self._bias[:, :, np.newaxis]
            return made.transpose(2, 0, 1)
        made = rows.swapaxes(0, 1) @ self._weight.swapaxes(1, 2)
        made += self._bias[:, np.newaxis]
        return made.swapaxes(0, 1)


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
    inputs = _InputSums(_columns(rows, slice(_BLOCK)))
    made = _TargetSums(rows.shape[1:], _mean(_columns(targets, slice(_BLOCK))))
    for block in blocks(len(rows)):
        counting = None if weights is None else weights[block]
        apart = inputs.add(_columns(rows, block), counting)
        made.add(apart, _columns(targets, block), counting)
    return made.around(inputs.count, *inputs.totals(), inputs.middle)


class MomentSums:
    """First and second moments of rows that come in many small parts."""

    def __init__(self) -> None:
        self._waiting: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        self._rows = 0
        self._sums: _InputSums | None = None

    def add(self, rows: NDArray[np.float32], weights: NDArray[np.float32] | None = None) -> None:
        """Take in rows [rows, g, D] and how much each counts, [rows]; None for all alike."""
        self._waiting.append((rows, np.ones(len(rows), np.float32) if weights is None else weights))
        self._rows += len(rows)
        # a sum costs as much as the product of so many rows
        if self._rows >= min(_BLOCK, 2 * rows.shape[2]):
            self._sum_up()

    def covariance(self) -> NDArray[np.float64]:
        """Covariance of the unknowns, [g, D, D]; of no rows at all there is none."""
        self._sum_up()
        assert self._sums is not None
        mean = self._sums.x / self._sums.count
        return self._sums.xx / self._sums.count - mean[:, :, None] * mean[:, None]

    def _sum_up(self) -> None:
        if self._waiting:
            rows, weights = (
                parts[0] if len(parts) == 1 else np.concatenate(parts)
                for parts in zip(*self._waiting, strict=True)
            )
            self._waiting, self._rows = [], 0
            if self._sums is None:
                self._sums = _InputSums(_columns(rows, slice(_BLOCK)))
            for block in blocks(len(rows)):
                self._sums.add(_columns(rows, block), weights[block])


class _InputSums:
    """Sums over rows that hold no targets, of the unknowns apart from a middle.

    Args:
        columns: rows that a middle is taken of, [g, D, rows].

    Attributes:
        middle: float32 [g, D].
        count: sum of the weights.
        x: sums of the unknowns, [g, D].
        xx: of their products, [g, D, D].
    """

    def __init__(self, columns: NDArray[np.float32]) -> None:
        self.middle = _mean(columns)
        self.count = 0.0
        self.x = np.zeros(columns.shape[:2])
        self.xx = np.zeros((*columns.shape[:2], columns.shape[1]))

    def add(
        self, columns: NDArray[np.float32], weights: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Take in columns [g, D, rows] and how much each row counts; returns them apart."""
        apart = columns - self.middle[:, :, np.newaxis]
        if weights is None:
            self.x += apart.sum(axis=2)
            self.xx += apart @ apart.swapaxes(1, 2)
            self.count += columns.shape[2]
        else:
            roots = np.sqrt(weights)
            scaled = apart * roots
            self.x += scaled @ roots
            self.xx += scaled @ scaled.swapaxes(1, 2)
            self.count += float(weights.sum(dtype=np.float64))
        return apart

    def totals(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sums with the middle: x [g, D] and xx [g, D, D]."""
        middle = self.middle.astype(np.float64)
        # m d' + d m' + n m m' as one product, d being what is left of the sum around the middle m
        rest = self.x + self.count / 2 * middle
        square = self.xx + np.stack([middle, rest], axis=2) @ np.stack([rest, middle], axis=1)
        return self.x + self.count * middle, square


class _TargetSums:
    """Sums that hold targets.

    Args:
        shape: groups and unknowns.
        middle: what targets are taken apart from, float32 [g, O].
    """

    def __init__(self, shape: tuple[int, ...], middle: NDArray[np.float32]) -> None:
        self._middle = middle
        self._xy = np.zeros((*shape, middle.shape[1]))
        self._y = np.zeros(middle.shape)
        self._yy = np.zeros(middle.shape)

    def add(
        self, x: NDArray[np.float32], y: NDArray[np.float32], weights: NDArray[np.float32] | None
    ) -> None:
        """Take in columns of unknowns [g, D, rows] and of targets [g, O, rows]."""
        apart = y - self._middle[:, :, np.newaxis]
        scaled = apart if weights is None else apart * weights
        self._y += scaled.sum(axis=2)
        self._yy += np.einsum("gor,gor->go", scaled, apart)
        self._xy += x @ scaled.swapaxes(1, 2)

    def around(
        self,
        count: float,
        x: NDArray[np.float64],
        xx: NDArray[np.float64],
        left_out: NDArray[np.floating[Any]],
    ) -> Gram:
        """Put together with the sums of the unknowns.

        Args:
            count: sum of the weights.
            x: sums of the unknowns, [g, D].
            xx: of their products, [g, D, D].
            left_out: what the columns of unknowns that came were taken apart from, [g, D].
        """
        middle = self._middle.astype(np.float64)
        xy = self._xy + x[:, :, np.newaxis] * middle[:, np.newaxis]
        xy += left_out[:, :, np.newaxis] * self._y[:, np.newaxis]
        y = self._y + count * middle
        yy = self._yy + 2 * middle * self._y + count * middle**2
        return Gram(count, x, xx, y, xy, yy)


def _columns(rows: NDArray[np.float32], block: slice = slice(None)) -> NDArray[np.float32]:
    """Rows [rows, g, D] as columns [g, D, rows]."""
    return rows[block].transpose(1, 2, 0)


def _mean(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over the rows of columns [g, D, rows]."""
    mean: NDArray[np.float32] = columns.mean(axis=2, dtype=np.float64).astype(np.float32)
    return mean


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
