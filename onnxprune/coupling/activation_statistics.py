"""In which order the units of every group go, and what their removal costs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.moments import Moments, Tap, collect
from onnxprune.calibration.streams import Samples
from onnxprune.coupling.analysis import Analysis
from onnxprune.coupling.trace import Coupling
from onnxprune.options import PruneOptions
from onnxprune.progress import Progress, silent


def statistics_of(
    analysis: Analysis, samples: Samples, options: PruneOptions, progress: Progress[Any] = silent
) -> dict[Tap, Moments]:
    """Moments of every activation that a consumer reads a group from."""
    taps = [tap_of(analysis.coupling, one) for group in analysis.groups for one in group.readings]
    return collect(analysis.model, taps, samples, options.runtime, progress)


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
    divisors = (one for one in range(1, count + 1) if count % one == 0)
    return next(p for p in divisors if np.array_equal(np.resize(lines[:p], lines.shape), lines))
