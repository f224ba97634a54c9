"""What a run has at hand besides the model: samples, labels, runtime, seed, progress callback."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from onnxprune.calibration.streams import Samples
from onnxprune.model.runtime import Runtime
from onnxprune.progress import Progress, silent


@dataclass(frozen=True)
class RunContext:
    """What every step of a run may use, the same from beginning to end.

    Attributes:
        samples: calibration samples; None without.
        labels: one for each sample, [samples, ...]; None without.
        runtime: onnxruntime providers and threads.
        seed: of everything random.
        progress: progress callback of long loops.
    """

    samples: Samples | None = None
    labels: NDArray[Any] | None = None
    runtime: Runtime = field(default_factory=Runtime)
    seed: int = 0
    progress: Progress[Any] = silent
