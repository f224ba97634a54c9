"""Making up for a removal on calibration samples, at full size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from onnxprune.calibration.moments import Moments, Tap
from onnxprune.calibration.streams import Samples


@dataclass(frozen=True)
class Calibration:
    """What the samples told.

    Attributes:
        samples: all of them.
        moments: activation statistics of every reading.
        feeds: the batches that layers are fitted on.
        labels: of what the samples came from, for gradients of a loss; None where they are drawn.
    """

    samples: Samples
    moments: Mapping[Tap, Moments]
    feeds: Sequence[Mapping[str, NDArray[Any]]] = ()
    labels: NDArray[Any] | None = None
