"""What pruning cost: the outputs of two models side by side on samples."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.calibration.parts import numbered
from onnxprune.calibration.statistics import BATCH
from onnxprune.model.runtime import open_session, run
from onnxprune.progress import silent
from onnxprune.verification.worst import WorstSample, WorstSamples

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from onnxprune.calibration.samples import Samples
    from onnxprune.model.runtime import Runtime
    from onnxprune.progress import Progress

__all__ = ["OutputComparison", "WorstSample", "compare_outputs"]


@dataclass(frozen=True)
class OutputComparison:
    """One output of two models over all samples.

    Attributes:
        output: its name.
        cosine: mean cosine similarity per sample; None for integer outputs.
        relative_error: Frobenius norm of the difference over that of the original; None for
            integer outputs.
        agreement: fraction of samples with the same largest entry along the last axis (or, for
            integer outputs, of equal entries); None for outputs with one value per sample.
        worst: the samples on which the two disagree most, the worst first; none for integer
            outputs, and none on which the two are equal.
    """

    output: str
    cosine: float | None
    relative_error: float | None
    agreement: float | None
    worst: tuple[WorstSample, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


class _Sums:
    def __init__(self) -> None:
        self.cosine = self.difference = self.reference = 0.0
        self.samples = self.equal = self.choices = 0
        self.worst = WorstSamples()

    def add(self, numbers: NDArray[Any], before: NDArray[Any], after: NDArray[Any]) -> None:
        if before.dtype.kind in "iubOSU":
            self.equal += int((before == after).sum())
            self.choices += before.size
            return
        a = before.astype(np.float64).reshape(len(before) if before.ndim else 1, -1)
        b = after.astype(np.float64).reshape(a.shape)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        same = (a == b).all(axis=1)
        dots = (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0)
        self.cosine += float(np.where(same, 1.0, dots).sum())
        self.difference += float(((a - b) ** 2).sum())
        self.reference += float((a**2).sum())
        self.samples += len(a)
        if before.ndim > 1 and before.shape[-1] > 1:
            chosen = before.argmax(axis=-1) == after.argmax(axis=-1)
            self.equal += int(chosen.sum())
            self.choices += chosen.size
        self.worst.add(numbers, before, after)

    def finish(self, name: str) -> OutputComparison:
        measured = self.samples > 0
        scale = self.reference or 1.0
        return OutputComparison(
            output=name,
            cosine=self.cosine / self.samples if measured else None,
            relative_error=float(np.sqrt(self.difference / scale)) if measured else None,
            agreement=self.equal / self.choices if self.choices else None,
            worst=self.worst.found(),
        )


def compare_outputs(
    original: ir.Model,
    pruned: ir.Model,
    samples: Samples,
    runtime: Runtime,
    *,
    batches: int | None = None,
    progress: Progress[Any] = silent,
) -> list[OutputComparison]:
    """Run two models over samples and compare every tensor output.

    Args:
        original: the reference.
        pruned: a model with the same interface.
        samples: inputs.
        runtime: how to run.
        batches: stop after so many batches; None for all samples.
        progress: told about every batch.

    Raises:
        RuntimeFailure: when one of them does not run.
    """
    first, second = open_session(original, runtime), open_session(pruned, runtime)
    sums: dict[str, _Sums] = {}
    total = batches or (None if samples.count is None else -(-samples.count // BATCH))
    feeds = islice(numbered(samples, BATCH), batches)
    for numbers, feed in progress(feeds, "comparing outputs", total):
        before, after = run(first, feed), run(second, feed)
        for name, value in before.items():
            if isinstance(value, np.ndarray) and value.shape == np.shape(after[name]):
                sums.setdefault(name, _Sums()).add(numbers, value, np.asarray(after[name]))
    return [one.finish(name) for name, one in sums.items()]
