"""What models answer on samples: the outputs of all of them, as a metric sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.labels import Labels, take_labels
from onnxprune.calibration.streams import Numbered, Samples, numbered
from onnxprune.model.execution import open_session, run
from onnxprune.model.outputs import ScoreLayout, gives_scores, output_producer
from onnxprune.model.runtime import Runtime

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
        layouts: how class scores lie in the outputs that may hold them, by name.
        inputs: integer inputs of at most two axes, such as token ids, by name.
        numbers: which samples these are, int64 [samples].
    """

    outputs: Mapping[str, Values]
    reference: Mapping[str, Values]
    labels: Labels | None = None
    layouts: Mapping[str, ScoreLayout] = field(default_factory=dict)
    inputs: Mapping[str, Values] = field(default_factory=dict)
    numbers: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

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
        opset = original.opset_imports.get("", 1)
        producers = {value.name or "": output_producer(value) for value in original.graph.outputs}
        self._layouts = {
            name: ScoreLayout.of(producer, opset)
            for name, producer in producers.items()
            if gives_scores(producer)
        }

    def of(self, model: ir.Model | None = None) -> Answers:
        """Run a model with the same interface; without one the answers are the original's."""
        wanted = self._reference
        got = wanted if model is None else self._run(model)
        outputs, reference = {}, {}
        for name, parts in wanted.outputs.items():
            reference[name], outputs[name] = _together(parts, got.outputs[name], wanted.rows)
        inputs = {
            name: _together(parts, parts, wanted.rows)[0] for name, parts in wanted.inputs.items()
        }
        return Answers(outputs, reference, self.labels, self._layouts, inputs, self.numbers)

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
        for numbers, feed in numbered(self._samples, 1 if self._singly else _BATCH):
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
