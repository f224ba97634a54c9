"""How far models are from the original, on the samples that judge trials."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from onnxprune.calibration.statistics import BATCH
from onnxprune.model.execution import Execution
from onnxprune.verification.divergence import divergence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from onnxprune.model.runtime import Runtime
    from onnxprune.ready import Ready

__all__ = ["Judge", "judging_feeds"]

_BATCHES = 8


class Judge:
    """Compares models with one original, whose outputs are computed once.

    Args:
        original: the reference.
        feeds: what all models run on, at least one batch.
        runtime: how they are run.
    """

    def __init__(
        self,
        original: ir.Model,
        feeds: Sequence[Mapping[str, NDArray[Any]]],
        runtime: Runtime,
    ) -> None:
        self._original = original
        self._feeds = feeds
        self._runtime = runtime
        self._wanted = Execution(original, runtime).run_all(feeds)

    def divergence(self, model: ir.Model) -> float:
        """Divergence of a model with the same interface; see `verification.divergence`.

        Raises:
            RuntimeFailure: when onnxruntime refuses the model.
        """
        got = Execution(model, self._runtime).run_all(self._feeds)
        return divergence(self._original, list(zip(self._wanted, got, strict=True)))


def judging_feeds(ready: Ready) -> list[Mapping[str, NDArray[Any]]]:
    """Every second batch that is in memory, else of the first samples; the only one where it is.

    Raises:
        CalibrationError: for unusable samples.
    """
    feeds = list(ready.measured.feeds) if ready.measured is not None else []
    if not feeds and ready.samples is not None:
        feeds = list(islice(ready.samples.batches(BATCH), _BATCHES))
    return feeds[1::2] or feeds
