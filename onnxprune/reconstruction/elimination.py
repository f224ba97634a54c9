"""Which units a reader misses least when it may be solved anew: block optimal brain surgeon.

A reader computes y = W x. Units own blocks of the unknowns x. With P = (H + lam I)^-1 over the
unknowns that are left, removing block J and solving W anew raises the mean squared error by exactly

    E_J = tr(W_J K_J W_J')        K_J = (P_JJ)^-1

    W <- W - W_J K_J P_J.         P <- P - P_.J K_J P_J.

Scores of several readers of one unit add up, each divided by the variance of the reader's output.
Taking the cheapest unit again and again gives the order of removal and the error at every width in
one go. Wide groups lose several units at a time, between which scores are not refreshed; their
common error, which is exact, is then shared out in proportion to their scores.

Source: METHODS.md 2.3; Hassibi & Stork 1993; Frantar & Alistarh 2022; Kurtic et al. 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["SMALLEST", "Elimination", "Reader", "eliminate"]

SMALLEST = 1e-30
"""Smallest variance that errors are divided by."""

_SHARE_AT_ONCE = 32


@dataclass(frozen=True)
class Reader:
    """A regression whose unknowns belong to units.

    Attributes:
        weight: float64 [O, D].
        covariance: of the unknowns, float64 [D, D].
        unit: unit of each unknown, -1 where it is not the group's: [D].
        variance: variance of the output, summed over outputs.
        stream: the same of the sum that the output enters.
    """

    weight: NDArray[np.float64]
    covariance: NDArray[np.float64]
    unit: NDArray[np.int64]
    variance: float
    stream: float


class Elimination:
    """One reader while its units go.

    Args:
        reader: the reader.
        ridge: share of the mean diagonal that is added to the covariance.
    """

    def __init__(self, reader: Reader, ridge: float) -> None:
        self._weight = reader.weight.copy()
        square = reader.covariance.copy()
        largest = float(np.abs(square).max(initial=0.0))
        square[np.diag_indices_from(square)] += (
            ridge * float(np.trace(square)) / max(len(square), 1) + 1e-10 * largest + 1e-30
        )
        self._inverse = np.linalg.inv(square)
        units, inverse = np.unique(reader.unit, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(inverse))[:-1])
        self._columns = {
            int(unit): part for unit, part in zip(units, parts, strict=True) if unit >= 0
        }

    def scores(self, size: int) -> NDArray[np.float64]:
        """Error that each unit left would cost alone: float [size], 0 for those gone or absent."""
        result = np.zeros(size)
        by_length: dict[int, list[int]] = {}
        for unit, columns in self._columns.items():
            by_length.setdefault(len(columns), []).append(unit)
        for units in by_length.values():
            columns = np.stack([self._columns[unit] for unit in units])
            blocks = self._inverse[columns[:, :, None], columns[:, None]]
            weights = self._weight[:, columns].transpose(1, 0, 2)
            squares = weights.swapaxes(1, 2) @ weights
            result[units] = np.einsum("uij,uji->u", np.linalg.inv(blocks), squares)
        return np.maximum(result, 0.0)

    def remove(self, units: Iterable[int]) -> float:
        """Remove units together and return how much the error rises."""
        parts = [self._columns.pop(unit) for unit in units if unit in self._columns]
        if not parts:
            return 0.0
        gone = np.concatenate(parts)
        weight, rows = self._weight[:, gone].copy(), self._inverse[gone].copy()
        spread = np.linalg.solve(rows[:, gone], rows)
        inner = np.linalg.solve(rows[:, gone], weight.T)
        self._weight -= weight @ spread
        self._inverse -= rows.T @ spread
        self._weight[:, gone] = 0.0
        self._inverse[gone] = 0.0
        self._inverse[:, gone] = 0.0
        return max(float(np.einsum("do,od->", inner, weight)), 0.0)


def eliminate(
    readers: Sequence[Reader], size: int, least: int, ridge: float
) -> tuple[list[list[int]], NDArray[np.float64]]:
    """Take the cheapest units of a free group again and again.

    Args:
        readers: those who read it.
        size: number of units.
        least: how many stay.
        ridge: see `Elimination`.

    Returns:
        units in the order of their removal, each in a list of its own, and what each step adds to
        the error of each reader: float [steps, readers].
    """
    running = [Elimination(reader, ridge) for reader in readers]
    alive = np.ones(size, bool)
    order: list[list[int]] = []
    rises: list[NDArray[np.float64]] = []
    while (left := int(alive.sum())) > least:
        total = np.zeros(size)
        for reader, one in zip(readers, running, strict=True):
            total += one.scores(size) / max(reader.variance, SMALLEST)
        total[~alive] = np.inf
        count = min(max(left // _SHARE_AT_ONCE, 1), left - least)
        units = [int(unit) for unit in np.argsort(total, kind="stable")[:count]]
        alive[units] = False
        order += [[unit] for unit in units]
        shares = total[units] + SMALLEST
        rises += list(np.outer(shares / shares.sum(), [one.remove(units) for one in running]))
    return order, np.array(rises).reshape(len(order), len(readers))
