"""The samples on which two models disagree most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WorstSample", "WorstSamples"]

_SAMPLES = 8
_ENTRIES = 10


@dataclass(frozen=True)
class WorstSample:
    """What two models make of one sample.

    Attributes:
        index: number of the sample, from 0, in the calibration data as it was given.
        relative_error: norm of the difference over that of the original's output.
        differing: fraction of answers (largest entries along the last axis) that differ; None for
            outputs with one value per sample.
        answers: the answer of original and result, where a sample has one answer.
        original: the first entries of the original's output.
        result: the same entries of the result's.
    """

    index: int
    relative_error: float
    differing: float | None
    answers: tuple[int, int] | None
    original: tuple[float, ...]
    result: tuple[float, ...]


class WorstSamples:
    """Keeps the few worst of any number of samples.

    Different answers are worse than any error; among these, and without answers, the error decides.
    """

    def __init__(self) -> None:
        self._kept: list[WorstSample] = []

    def add(self, numbers: NDArray[Any], before: NDArray[Any], after: NDArray[Any]) -> None:
        """Look at a batch.

        Args:
            numbers: of the samples, int [rows].
            before: the original's output, float; first axis = samples, else the batch is one.
            after: the result's, of the same shape.
        """
        if not before.ndim or len(before) != len(numbers):
            numbers, before, after = numbers[:1], before[None], after[None]
        if not len(numbers) or not before.size:
            return
        a, b = (one.astype(np.float64).reshape(len(numbers), -1) for one in (before, after))
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.linalg.norm(a - b, axis=1)
            scale = np.linalg.norm(a, axis=1)
            errors = np.nan_to_num(apart / np.where(scale > 0, scale, 1.0), nan=np.inf)
        errors[(a == b).all(axis=1)] = 0.0
        differing = _differing(before, after)
        weight = np.zeros(len(errors)) if differing is None else differing
        worst = np.lexsort((-errors, -weight))[:_SAMPLES]
        found = [
            WorstSample(
                index=int(numbers[row]),
                relative_error=float(errors[row]),
                differing=None if differing is None else float(differing[row]),
                answers=_answers(before[row], after[row]),
                original=tuple(a[row, :_ENTRIES].tolist()),
                result=tuple(b[row, :_ENTRIES].tolist()),
            )
            for row in worst.tolist()
            if errors[row] > 0
        ]
        self._kept = sorted([*self._kept, *found], key=_badness)[:_SAMPLES]

    def found(self) -> tuple[WorstSample, ...]:
        """The worst samples, the worst first."""
        return tuple(self._kept)


def _badness(one: WorstSample) -> tuple[float, float, int]:
    return -(one.differing or 0.0), -one.relative_error, one.index


def _differing(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.float64] | None:
    """Fraction of each sample's answers that differ."""
    if before.ndim < 2 or before.shape[-1] < 2:
        return None
    apart = before.argmax(axis=-1) != after.argmax(axis=-1)
    fractions: NDArray[np.float64] = apart.reshape(len(before), -1).mean(axis=1)
    return fractions


def _answers(before: NDArray[Any], after: NDArray[Any]) -> tuple[int, int] | None:
    if before.ndim != 1 or len(before) < 2:
        return None
    return int(before.argmax()), int(after.argmax())
