"""What a run has at hand besides the model: samples, labels, runtime, seed, progress callback."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxprune.calibration.labels import Labels
from onnxprune.calibration.streams import Samples
from onnxprune.model.execution import is_heavy
from onnxprune.model.runtime import Runtime
from onnxprune.progress import Progress, silent


@dataclass(frozen=True)
class RunContext:
    """What every step of a run may use, the same from beginning to end.

    Attributes:
        samples: calibration samples; None without.
        labels: one for each sample, as the loss takes them; None without.
        runtime: onnxruntime providers and threads.
        seed: of everything random.
        progress: progress callback of long loops.
        measure_latency: time models for the report; None: unless their weights exceed 512 MB.
        force: whether a result may be handed out whose answers do not follow the original's.
    """

    samples: Samples | None = None
    labels: Labels | None = None
    runtime: Runtime = field(default_factory=Runtime)
    seed: int = 0
    progress: Progress[Any] = silent
    measure_latency: bool | None = None
    force: bool = False

    def measures_latency(self, model: ir.Model) -> bool:
        """Whether latency is to be measured for the report.

        Args:
            model: the original.
        """
        return not is_heavy(model) if self.measure_latency is None else self.measure_latency
