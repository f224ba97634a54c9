"""How well boxes follow the original's where these hold an object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.verification.measures import OutputMeasure
from onnxprune.verification.row_weights import are_objects, decided_rows


def boxes_followed(
    measure: OutputMeasure,
    measures: Mapping[str, OutputMeasure],
    original: Mapping[str, Any],
    other: Mapping[str, Any],
) -> float | None:
    """R squared of boxes, see `BoxErrors`; None where a batch of outputs does not say.

    Args:
        measure: of the output of boxes.
        measures: of all outputs.
        original: outputs by name, [samples, ...].
        other: those of another model.
    """
    names = (measure.name, measure.rows_of)
    arrays = [each[name] for each in (original, other) for name in names]
    if not all(isinstance(array, np.ndarray) and array.dtype != object for array in arrays):
        return None
    if original[measure.name].shape[:-1] != original[measure.rows_of].shape[:-1]:
        return None
    errors = BoxErrors(measure, measures)
    errors.add(original, other)
    return errors.r_squared


class BoxErrors:
    """Squared errors of boxes, summed up batch by batch.

    Args:
        measure: of the output of boxes.
        measures: of all outputs.
    """

    def __init__(self, measure: OutputMeasure, measures: Mapping[str, OutputMeasure]) -> None:
        self._measure, self._measures = measure, measures
        self._sums: dict[int, float] = {}
        self._counts: dict[int, int] = {}

    def add(self, original: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]) -> None:
        """Take in the outputs of a batch."""
        name = self._measure.name
        classes = decided_rows(self._measure, self._measures, original)
        assert classes is not None
        apart = self._measure.plain_rows(original[name]) - self._measure.plain_rows(other[name])
        errors = (apart**2 / self._measure.box_units(original[name])).sum(axis=1)
        errors = np.where(np.isfinite(errors), errors, np.inf)
        for number in np.unique(classes).tolist():
            mine = classes == number
            self._sums[number] = self._sums.get(number, 0.0) + float(errors[mine].sum())
            self._counts[number] = self._counts.get(number, 0) + int(mine.sum())

    @property
    def r_squared(self) -> float | None:
        """1 for equal boxes, 0 where they overlap by about half; None where none has an object."""
        classes = np.array(list(self._counts), np.int64)
        counts = np.array(list(self._counts.values()), np.int64)
        some = are_objects(self._measures[self._measure.rows_of], classes, counts)
        if not some.any():
            return None
        return 1 - float(np.array(list(self._sums.values()))[some].sum() / counts[some].sum())
