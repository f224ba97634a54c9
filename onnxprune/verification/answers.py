"""What models answer on samples: the outputs of all of them, as a metric sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.labels import Labels, take_labels
from onnxprune.calibration.streams import Numbered, Samples
from onnxprune.model.execution import open_session, run
from onnxprune.model.runtime import Runtime
from onnxprune.verification.measures import OutputMeasure, output_measures

Values: TypeAlias = "NDArray[Any] | list[Any]"
"""Of one output: [samples, ...], or one array for each sample where their shapes differ."""

_BATCH = 32  # samples per run
_MOST_TOKEN_AXES = 2  # of integer inputs that are kept: token ids, not images


@dataclass(frozen=True)
class Answers:
    """What a model answered, beside the original and the labels.

    Attributes:
        outputs: of the model that is judged, by name.
        reference: of the original on the same samples, by name.
        labels: of these samples; None without.
        measures: what the float outputs hold, by name.
        ragged: outputs that are lists of samples without the axis of samples.
        inputs: integer inputs of at most two axes, such as token ids, by name.
        numbers: which samples these are, int64 [samples].
    """

    outputs: Mapping[str, Values]
    reference: Mapping[str, Values]
    labels: Labels | None = None
    measures: Mapping[str, OutputMeasure] = field(default_factory=dict)
    ragged: frozenset[str] = frozenset()
    inputs: Mapping[str, Values] = field(default_factory=dict)
    numbers: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def pairs(self, name: str) -> Iterator[tuple[NDArray[Any], NDArray[Any], Labels | None]]:
        """The original's and the model's output with the axis of samples, and their labels.

        Args:
            name: of an output; nothing comes of those that are no arrays.

        Yields:
            all samples at once, or sample by sample where shapes differ; labels are None where
            arrays are not those of single samples.
        """
        wanted, got = self.reference[name], self.outputs[name]
        if isinstance(wanted, np.ndarray) and isinstance(got, np.ndarray):
            yield wanted, got, self.labels
            return
        known = self.labels is not None and len(wanted) == len(self.numbers)
        for place, (first, second) in enumerate(zip(wanted, got, strict=True)):
            labels = self.labels[place : place + 1] if known and self.labels is not None else None
            if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
                if name in self.ragged:
                    first, second = first[None], second[None]
                yield first, second, labels

    def alone(self, place: int) -> Answers:
        """The answers for one sample.

        Args:
            place: of the sample among these, from 0.
        """
        rows = slice(place, place + 1)
        count = len(self.numbers)

        def cut(values: Mapping[str, Values]) -> dict[str, Values]:
            return {n: value[rows] if len(value) == count else value for n, value in values.items()}

        return replace(
            self,
            outputs=cut(self.outputs),
            reference=cut(self.reference),
            labels=None if self.labels is None else self.labels[rows],
            inputs=cut(self.inputs),
            numbers=self.numbers[rows],
        )


@dataclass(frozen=True)
class _Run:
    """One model on all samples, feed by feed: sample numbers, and by name inputs and outputs."""

    numbers: list[NDArray[np.int64]] = field(default_factory=list)
    inputs: dict[str, list[Any]] = field(default_factory=dict)
    outputs: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def rows(self) -> list[int]:
        """Samples in each feed."""
        return [len(numbers) for numbers in self.numbers]


class AnswerReader:
    """Runs models on the same samples, and puts their answers beside those of the original.

    Where the first axis of an output does not count samples (detections, say), or shapes differ
    between samples, every sample is run by itself and the output is a list with one array for each
    sample: without the first axis where that counts samples. Where the model fixes its batches, or
    inputs have no common first axis, it is one array for each feed.

    Args:
        original: the reference.
        samples: what to run on.
        runtime: how to run.
        labels: of all samples that these are a part of; None without.

    Attributes:
        numbers: of the samples, int64 [samples].
        labels: of these samples; None without.

    Raises:
        InputError: when there are fewer labels than samples.
    """

    def __init__(
        self, original: ir.Model, samples: Samples, runtime: Runtime, labels: Labels | None = None
    ) -> None:
        self._samples, self._runtime = samples, runtime
        self._singly = False
        self._reference = self._run(original)
        rows = self._reference.rows
        if not all(_stacks(parts, rows) for parts in self._reference.outputs.values()):
            self._singly = True
            self._reference = self._run(original)
        self.numbers = np.concatenate(self._reference.numbers)
        self.labels = None if labels is None else take_labels(labels, self.numbers)
        outputs = self._reference.outputs
        places = range(len(self._reference.numbers))
        self._measures = output_measures(
            original, [{name: parts[place] for name, parts in outputs.items()} for place in places]
        )

    def of(self, model: ir.Model | None = None) -> Answers:
        """Run a model with the same interface; without one the answers are the original's."""
        wanted = self._reference
        got = wanted if model is None else self._run(model)
        outputs, reference, ragged = {}, {}, set()
        for name, parts in wanted.outputs.items():
            others = got.outputs[name]
            reference[name], outputs[name] = _together(parts, others, wanted.rows)
            if outputs[name] is not others and isinstance(outputs[name], list):
                ragged.add(name)
        inputs = {
            name: _together(parts, parts, wanted.rows)[0] for name, parts in wanted.inputs.items()
        }
        return Answers(
            outputs, reference, self.labels, self._measures, frozenset(ragged), inputs, self.numbers
        )

    def _run(self, model: ir.Model) -> _Run:
        session = open_session(model, self._runtime)
        done = _Run()
        for numbers, feed in self._feeds():
            done.numbers.append(numbers)
            for name, array in feed.items():
                if array.dtype.kind in "iu" and array.ndim <= _MOST_TOKEN_AXES:
                    done.inputs.setdefault(name, []).append(array)
            for name, value in run(session, feed).items():
                done.outputs.setdefault(name, []).append(value)
        return done

    def _feeds(self) -> Iterator[Numbered]:
        axes = self._samples.axes
        for numbers, feed in self._samples.numbered(1 if self._singly else _BATCH):
            rows = axes.rows(feed)
            if not self._singly or axes.fixed or rows is None or rows == 1:
                yield numbers, feed
                continue
            for row in range(rows):
                cut = slice(row, row + 1)
                yield numbers[cut], axes.cut(feed, cut)


def _together(first: list[Any], second: list[Any], rows: list[int]) -> tuple[Values, Values]:
    """The parts of two models, both as arrays, or both as lists."""
    if _stacks(first, rows) and _stacks(second, rows):
        return np.concatenate(first), np.concatenate(second)
    if _counts(first, rows) and _counts(second, rows):
        return [row for part in first for row in part], [row for part in second for row in part]
    return first, second


def _stacks(parts: list[Any], rows: list[int]) -> bool:
    """Whether parts are arrays of samples that go into one array."""
    return _counts(parts, rows) and all(part.shape[1:] == parts[0].shape[1:] for part in parts)


def _counts(parts: list[Any], rows: list[int]) -> bool:
    """Whether the first axis of each part counts samples."""
    return all(
        isinstance(part, np.ndarray) and part.ndim and len(part) == count
        for part, count in zip(parts, rows, strict=True)
    )
