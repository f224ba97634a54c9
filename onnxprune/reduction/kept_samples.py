"""Samples that belong to some classes, by what a classifier says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.calibration.feeds import batch_rows
from onnxprune.calibration.statistics import BATCH
from onnxprune.model.execution import Execution

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir
    from numpy.typing import NDArray

    from onnxprune.calibration.samples import Samples
    from onnxprune.model.runtime import Runtime

__all__ = ["KeptSamples", "samples_of"]

_LEAST = 64


@dataclass(frozen=True)
class KeptSamples:
    """A classifier that sorts samples.

    Attributes:
        classifier: the model, ready to run.
        output: name of its scores [samples, classes].
        kept: the classes whose samples are wanted.
    """

    classifier: Execution
    output: str
    kept: NDArray[np.int64]

    def of(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The samples of a feed whose best class is a kept one; arrays may have no rows."""
        best = self.classifier.run(feed)[self.output].argmax(axis=1)
        wanted = np.isin(best, self.kept)
        return {name: array[wanted] for name, array in feed.items()}


def samples_of(
    model: ir.Model, output: str, kept: NDArray[np.int64], samples: Samples, runtime: Runtime
) -> KeptSamples | None:
    """Sort samples by a classifier.

    Args:
        model: the classifier; must not change afterwards.
        output: its scores [samples, classes].
        kept: classes whose samples are wanted.
        samples: all there are.
        runtime: how to run the model.

    Returns:
        None where too few samples would be left, or where the model or a feed lets none be taken
        out.
    """
    if any(isinstance((spec.shape or (0,))[0], int) for spec in samples.specs):
        return None
    found = KeptSamples(Execution(model, runtime), output, kept)
    left = 0
    for feed in samples.batches(BATCH):
        if batch_rows(feed, samples.specs) is None:
            return None
        left += len(next(iter(found.of(feed).values())))
    return found if left >= _LEAST else None
