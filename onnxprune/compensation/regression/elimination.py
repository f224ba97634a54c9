"""Which units a reader misses least when it may be re-fitted: block optimal brain surgeon.

A reader computes y = W x. Units own blocks of the unknowns x. With P = (H + lam I)^-1 over the
unknowns that are left, removing block J and solving W anew raises the mean squared error by exactly

    E_J = tr(W_J K_J W_J')        K_J = (P_JJ)^-1

    W <- W - W_J K_J P_J.         P <- P - P_.J K_J P_J.

Scores of several readers of one unit add up, each divided by the variance of the reader's output.
Taking the cheapest unit again and again gives the order of removal and the error at every width in
one go. Wide groups lose several units at a time, between which scores are not refreshed; their
common error, which is exact, is then shared out in proportion to their scores.

Source: Hassibi & Stork 1993 (OBS); Frantar & Alistarh 2022 (OBC); Kurtic et al. 2023 (ZipLM).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.compensation.regression.gram import positive_inverse

SMALLEST = 1e-30
"""Smallest variance that errors are divided by."""

_SHARE_AT_ONCE = 32
_ROWS_AT_ONCE = 512
_LEAST_LEFT = 0.85


@dataclass(frozen=True)
class Reader:
    """A regression whose unknowns belong to units.

    Attributes:
        weight: float64 [O, D].
        covariance: of the unknowns, float64 [D, D].
        unit: unit of each unknown, -1 where it is not the group's: [D].
        variance: variance of the output, summed over outputs.
        stream: the same of the sum that the output enters.
        loss: increase of the divergence for each unit of error; None where it is not known.
    """

    weight: NDArray[np.float64]
    covariance: NDArray[np.float64]
    unit: NDArray[np.int64]
    variance: float
    stream: float
    loss: float | None = None


class Elimination:
    """One reader while its units go.

    Args:
        weight: its weights, float64 [O, D].
        inverse: of the covariance of its unknowns, float64 [D, D]; overwritten.
        unit: unit of each unknown, -1 where it is not the group's: [D].
    """

    def __init__(
        self, weight: NDArray[np.float64], inverse: NDArray[np.float64], unit: NDArray[np.int64]
    ) -> None:
        # unknowns along the first axis, so that those of one unit are rows
        self._weight = np.array(weight.T, order="C")  # a copy even where that is its layout
        self._inverse = inverse
        self._rows = _rows_of_units(unit)
        self._left = np.ones(len(inverse), bool)

    @classmethod
    def of(cls, reader: Reader, ridge: float) -> Elimination:
        """Start with a reader; `ridge` is the share of its mean variance that is added to each."""
        square = reader.covariance.copy()
        largest = float(np.abs(square).max(initial=0.0))
        square[np.diag_indices_from(square)] += (
            ridge * float(np.trace(square)) / max(len(square), 1) + 1e-10 * largest + 1e-30
        )
        return cls(reader.weight, positive_inverse(square), reader.unit)

    def scores(self, size: int) -> NDArray[np.float64]:
        """Error that each unit left would cost alone: float [size], 0 for those gone or absent."""
        result = np.zeros(size)
        by_length: dict[int, list[int]] = {}
        for unit, rows in self._rows.items():
            by_length.setdefault(len(rows), []).append(unit)
        for units in by_length.values():
            rows = np.stack([self._rows[unit] for unit in units])
            blocks = self._inverse[rows[:, :, None], rows[:, None]]
            weights = self._weight[rows]
            squares = weights @ weights.swapaxes(1, 2)
            result[units] = np.einsum("uij,uji->u", np.linalg.inv(blocks), squares)
        return np.maximum(result, 0.0)

    def remove(self, units: Iterable[int]) -> float:
        """Remove units together and return how much the error rises."""
        parts = [self._rows.pop(unit) for unit in units if unit in self._rows]
        if not parts:
            return 0.0
        removed = np.concatenate(parts)
        weight, rows = self._weight[removed], self._inverse[removed]
        inner = np.linalg.inv(rows[:, removed])
        spread = inner @ rows
        self._weight -= spread.T @ weight
        for start in range(0, len(self._inverse), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            self._inverse[part] -= rows[:, part].T @ spread
        self._left[removed] = False
        if self._left.mean() < _LEAST_LEFT:
            self._shrink()
        return max(float(np.einsum("do,do->", inner @ weight, weight)), 0.0)

    def _shrink(self) -> None:
        """Drop the unknowns that were removed."""
        left = np.flatnonzero(self._left)
        self._weight, self._inverse = self._weight[left], self._inverse[np.ix_(left, left)]
        place = np.cumsum(self._left) - 1
        self._rows = {unit: place[rows] for unit, rows in self._rows.items()}
        self._left = np.ones(len(left), bool)


def eliminate(
    readers: Sequence[Reader], size: int, least: int, ridge: float
) -> tuple[list[list[int]], NDArray[np.float64]]:
    """Take the cheapest units of a free group again and again.

    Args:
        readers: those who read it.
        size: number of units.
        least: how many stay.
        ridge: see `Elimination.of`.

    Returns:
        units in the order of their removal, each in a list of its own, and what each step adds to
        the error of each reader: float [steps, readers].
    """
    running = [Elimination.of(reader, ridge) for reader in readers]
    return cheapest_first(running, [reader.variance for reader in readers], size, least)


def cheapest_first(
    running: Sequence[Elimination], variances: Sequence[float], size: int, least: int
) -> tuple[list[list[int]], NDArray[np.float64]]:
    """The same for readers that are prepared, with the variance of the output of each."""
    alive = np.ones(size, bool)
    order: list[list[int]] = []
    rises: list[NDArray[np.float64]] = []
    while (left := int(alive.sum())) > least:
        total = np.zeros(size)
        for variance, reader in zip(variances, running, strict=True):
            total += reader.scores(size) / max(variance, SMALLEST)
        total[~alive] = np.inf
        count = min(max(left // _SHARE_AT_ONCE, 1), left - least)
        units = [int(unit) for unit in np.argsort(total, kind="stable")[:count]]
        alive[units] = False
        order += [[unit] for unit in units]
        shares = total[units] + SMALLEST
        rises += list(np.outer(shares / shares.sum(), [reader.remove(units) for reader in running]))
    return order, np.array(rises).reshape(len(order), len(running))


def _rows_of_units(unit: NDArray[np.int64]) -> dict[int, NDArray[np.intp]]:
    units, inverse = np.unique(unit, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(inverse))[:-1])
    return {int(unit): part for unit, part in zip(units, parts, strict=True) if unit >= 0}
