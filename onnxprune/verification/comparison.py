"""The outputs of two models compared on samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.moments import BATCH
from onnxprune.calibration.streams import Samples
from onnxprune.model.execution import open_session, run
from onnxprune.model.runtime import Runtime
from onnxprune.progress import Progress, silent
from onnxprune.verification.box_errors import BoxErrors
from onnxprune.verification.measures import OutputMeasure, output_measures
from onnxprune.verification.scores import DecisionCounts, Variation


def relative_difference(reference: Any, other: Any, least: float = 0.0) -> float:
    """Largest absolute difference over the largest absolute reference value.

    Args:
        reference: an output: an array of any dtype, or a list or mapping of such (sequences, maps).
        other: the same output of another model.
        least: what an array is taken to reach at least.

    Returns:
        0 for equal values; for integers, booleans and strings the fraction of unequal entries;
        infinity when shapes differ or only one of the two is NaN or infinite somewhere.
    """
    if isinstance(reference, (list, tuple)):
        if not isinstance(other, (list, tuple)) or len(reference) != len(other):
            return np.inf
        differences = map(relative_difference, reference, other, [least] * len(reference))
        return max(differences, default=0.0)
    if isinstance(reference, dict):
        if not isinstance(other, dict) or reference.keys() != other.keys():
            return np.inf
        pairs = ((value, other[key]) for key, value in reference.items())
        return max((relative_difference(a, b, least) for a, b in pairs), default=0.0)
    return _array_difference(np.asarray(reference), np.asarray(other), least)


def largest_difference(
    reference: Mapping[str, Any], other: Mapping[str, Any], least: Mapping[str, float] | None = None
) -> float:
    """Largest `relative_difference` over all outputs of the reference.

    Args:
        reference: outputs by name.
        other: the same of another model.
        least: what some outputs are taken to reach at least.
    """
    known = least or {}
    return max(
        (
            relative_difference(value, other.get(name), known.get(name, 0.0))
            for name, value in reference.items()
        ),
        default=0.0,
    )


def _array_difference(
    reference: np.ndarray[Any, Any], other: np.ndarray[Any, Any], least: float
) -> float:
    if reference.shape != other.shape:
        return np.inf
    if reference.size == 0:
        return 0.0
    if reference.dtype.kind in "iubOSU":
        return float(np.mean(reference != other))
    first, second = reference.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(first)
    if not np.array_equal(finite, np.isfinite(second)):
        return np.inf
    if not np.array_equal(first[~finite], second[~finite], equal_nan=True):
        return np.inf
    if not finite.any():
        return 0.0
    scale = max(np.abs(first[finite]).max(), least)
    error = np.abs(first[finite] - second[finite]).max()
    return float(error / scale) if scale > 0 else float(error)


_SAMPLES = 8  # kept for each output
_ENTRIES = 10  # kept of each sample


@dataclass(frozen=True)
class WorstSample:
    """Outputs of two models for one sample.

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
        a, b = (array.astype(np.float64).reshape(len(numbers), -1) for array in (before, after))
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.linalg.norm(a - b, axis=1)
            scale = np.linalg.norm(a, axis=1)
            errors = np.nan_to_num(apart / np.where(scale > 0, scale, 1.0), nan=np.inf)
        errors[(a == b).all(axis=1)] = 0.0
        differing = _differing(before, after)
        weight = np.zeros(len(errors)) if differing is None else differing
        worst = np.lexsort((-errors, -weight))[:_SAMPLES]
        batch = [
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
        self._kept = sorted([*self._kept, *batch], key=_badness)[:_SAMPLES]

    def worst(self) -> tuple[WorstSample, ...]:
        """The worst samples, the worst first."""
        return tuple(self._kept)


def _badness(sample: WorstSample) -> tuple[float, float, int]:
    return -(sample.differing or 0.0), -sample.relative_error, sample.index


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


LEAST_KAPPA = 0.6
"""Kappa below which decisions no longer follow the original's: less than "substantial" agreement
(Landis & Koch 1977)."""

LEAST_R2 = 0.5
"""R squared below which quantities do not: less than half of the variance."""


@dataclass(frozen=True)
class OutputComparison:
    """One output of two models over all samples.

    Attributes:
        output: its name.
        cosine: mean cosine similarity per sample; None for integer outputs, and for outputs of one
            number for each sample.
        relative_error: Frobenius norm of the difference over that of the original; None for
            integer outputs.
        agreement: fraction of equal decisions, of class scores or probabilities, or of equal
            entries of integers; None for quantities.
        worst: the samples on which the two disagree most, the worst first; none for integer
            outputs, and none on which the two are equal.
        holds: what the output holds: "class scores", "probabilities", "quantities" or "integers".
        constant: agreement of the model that always gives the most frequent answer; None for
            quantities.
        kappa: Cohen's kappa of the decisions, 0 for that model and 1 for equal ones; None for
            quantities, and where the original always decides the same.
        r2: share of the variance around the mean at each place that the result follows, 0 for the
            model that always gives this mean; of boxes that hold an object 1 less the squared error
            over that at which they overlap by about half. None for integers, for a single sample,
            where the original does not vary, and where samples differ in shape behind the first
            axis.
        reshaped: share of the samples for which the output came out in another shape; they count as
            answers that do not follow at all.
    """

    output: str
    cosine: float | None
    relative_error: float | None
    agreement: float | None
    worst: tuple[WorstSample, ...] = ()
    holds: str = ""
    constant: float | None = None
    kappa: float | None = None
    r2: float | None = None
    reshaped: float = 0.0

    @property
    def follows(self) -> float | None:
        """Kappa of decisions, R squared of quantities; None where nothing can be told."""
        return self.r2 if self.agreement is None else self.kappa

    @property
    def collapsed(self) -> bool:
        """Whether the output no longer follows the original's."""
        least = LEAST_R2 if self.agreement is None else LEAST_KAPPA
        return self.follows is not None and self.follows < least

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


class _Sums:
    """Running sums of one output.

    Args:
        name: of the output.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._measure: OutputMeasure | None = None
        self._boxes: BoxErrors | None = None
        self._cosine = self._difference = self._reference = 0.0
        self._samples = self._width = 0
        self._seen = self._reshaped = 0
        self._decisions = DecisionCounts()
        self._variation = Variation()
        self._worst = WorstSamples()

    def add(
        self,
        numbers: NDArray[Any],
        original: Mapping[str, Any],
        other: Mapping[str, Any],
        measures: Mapping[str, OutputMeasure],
    ) -> None:
        """Take in the outputs of a batch."""
        before, after = original[self._name], other[self._name]
        self._seen += len(numbers)
        if before.shape != after.shape:
            self._reshaped += len(numbers)
        if before.shape != after.shape or not before.size:
            return
        if before.dtype.kind in "iubOSU":
            self._decisions.add(before, after)
            return
        self._add_rows(before, after)
        self._worst.add(numbers, before, after)
        self._measure = measures.get(self._name)
        if self._measure is None:
            return
        first, second = (self._measure.decisions(array) for array in (before, after))
        if first is not None and second is not None:
            self._decisions.add(first, second)
        if self._measure.boxes is not None:
            self._boxes = self._boxes or BoxErrors(self._measure, measures)
            self._boxes.add(original, other)

    def _add_rows(self, before: NDArray[Any], after: NDArray[Any]) -> None:
        a = before.astype(np.float64).reshape(len(before) if before.ndim else 1, -1)
        b = after.astype(np.float64).reshape(a.shape)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        same = (a == b).all(axis=1)
        dots = (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0)
        self._cosine += float(np.where(same, 1.0, dots).sum())
        self._difference += float(((a - b) ** 2).sum())
        self._reference += float((a**2).sum())
        self._samples += len(a)
        self._width = max(self._width, a.shape[1])
        self._variation.add(a, b)

    def finish(self) -> OutputComparison:
        measured = self._samples > 0
        scale = self._reference or 1.0
        reshaped = self._reshaped / max(self._seen, 1)
        r2 = (self._boxes or self._variation).r_squared
        if r2 is None and self._decisions.agreement is None and reshaped == 1:
            r2 = 0.0
        return OutputComparison(
            output=self._name,
            cosine=self._cosine / self._samples if self._width > 1 else None,
            relative_error=float(np.sqrt(self._difference / scale)) if measured else None,
            agreement=_less(self._decisions.agreement, reshaped),
            worst=self._worst.worst(),
            holds=self._measure.kind.value if self._measure is not None else "integers",
            constant=self._decisions.constant,
            kappa=_less(self._decisions.kappa, reshaped),
            r2=_less(r2, reshaped),
            reshaped=reshaped,
        )


def _less(figure: float | None, reshaped: float) -> float | None:
    """A figure over all samples, of which some came out in another shape and follow by 0."""
    return None if figure is None else figure * (1 - reshaped)


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
        progress: progress callback, called for every batch.

    Raises:
        RuntimeFailure: when one of them does not run.
    """
    first, second = open_session(original, runtime), open_session(pruned, runtime)
    sums: dict[str, _Sums] = {}
    measures: dict[str, OutputMeasure] = {}
    total = batches or (None if samples.count is None else -(-samples.count // BATCH))
    feeds = islice(samples.numbered(BATCH), batches)
    for numbers, feed in progress(feeds, "comparing outputs", total):
        before, after = run(first, feed), run(second, feed)
        if len(measures) < len(before):  # nothing can be told from an empty output
            measures = output_measures(original, [before]) | measures
        for name, value in before.items():
            if isinstance(value, np.ndarray) and isinstance(after[name], np.ndarray):
                sums.setdefault(name, _Sums(name)).add(numbers, before, after, measures)
    return [running.finish() for running in sums.values()]


def collapse_text(outputs: Iterable[OutputComparison]) -> str:
    """Which outputs no longer follow the original's, and by what figures; empty for none."""
    parts = []
    for output in outputs:
        if output.collapsed and output.follows is not None:
            figure = (
                f"kappa {output.follows:.2f}, at least {LEAST_KAPPA} is needed"
                if output.agreement is not None
                else f"R squared {output.follows:.2f}, at least {LEAST_R2} is needed"
            )
            constant = output.constant
            same = (
                f"; {output.agreement:.1%} of the answers are the same" if output.agreement else ""
            )
            beside = f", {constant:.1%} of a model that never looks" if constant and same else ""
            shapes = ""
            if output.reshaped:
                shapes = f"; {output.reshaped:.1%} of the samples come out in another shape"
            parts.append(f"{output.output!r} ({figure}{same}{beside}{shapes})")
    return ", ".join(parts)
