"""Statistics of the activations through which groups are read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.moments import Moments, Tap, collect
from onnxprune.coupling.analysis import Analysis
from onnxprune.coupling.trace import Coupling


def statistics_of(analysis: Analysis, context: RunContext) -> dict[Tap, Moments]:
    """Moments, over the samples, of every activation that a consumer reads a group from.

    Args:
        analysis: the model and its groups.
        context: samples, which have to be there, runtime and progress callback.
    """
    assert context.samples is not None
    taps = [
        tap_of(analysis.coupling, reading)
        for group in analysis.groups
        for reading in group.readings
    ]
    return collect(analysis.model, taps, context.samples, context.runtime, context.progress)


def tap_of(coupling: Coupling, reading: Any) -> Tap:
    """Where the statistics of a reading are taken: at the consumer's own input."""
    rank = len(coupling.tensors[reading.consumer.tensor].shape)
    if 0 not in reading.axes:
        return Tap(reading.consumer.tensor, reading.axes, rank)
    lines = np.moveaxis(reading.units, reading.axes.index(0), 0)
    return Tap(reading.consumer.tensor, reading.axes, rank, len(lines), _period(lines))


def _period(lines: NDArray[np.int64]) -> int:
    """After how many entries of axis 0 the same come again."""
    count = len(lines)
    divisors = (length for length in range(1, count + 1) if count % length == 0)
    return next(d for d in divisors if np.array_equal(np.resize(lines[:d], lines.shape), lines))
