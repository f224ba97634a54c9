"""How good a model's answers are, in one number that is higher for better ones.

* With a metric: the value of that function of the outputs (and labels).
* With labels: accuracy, the percentage of samples whose greatest score is at the label.
* Without: percentage of the original's answers that stay. Class scores - what a Softmax gives, or a
  linear layer - are compared by the place of their greatest entry (agreement), other outputs by
  the cosine to the original's (100 for equal ones). Several outputs are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.streams import Samples, numbered
from onnxprune.errors import InputError, typed_line
from onnxprune.model.execution import open_session, run
from onnxprune.model.outputs import gives_scores, output_producer
from onnxprune.model.runtime import Runtime

_BATCH = 32  # samples per run


@dataclass(frozen=True)
class Quality:
    """How good original and result are.

    Attributes:
        measure: accuracy, agreement or cosine, or the name of the metric function.
        original: of the original.
        result: of the result, in the same unit.
        samples: how many it was measured on.
        held_out: whether nothing was fitted or chosen on these.
    """

    measure: str
    original: float
    result: float
    samples: int
    held_out: bool

    @property
    def drop(self) -> float:
        """How much was lost, in the unit of the measure."""
        return self.original - self.result

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "drop": self.drop}


class QualityMeasure:
    """Measures models on the same samples.

    Args:
        original: the reference.
        samples: what to run on.
        runtime: how to run.
        labels: int [count, ...] of all samples that these are a part of; None without.
        metric: takes all outputs {name: array [samples, ...]} and their labels (None without),
            gives a number; None for the measures above.
        held_out: whether the samples are used for nothing else.

    Raises:
        InputError: when labels do not fit the samples or outputs, or the metric fails.
    """

    def __init__(
        self,
        original: ir.Model,
        samples: Samples,
        runtime: Runtime,
        *,
        labels: NDArray[Any] | None = None,
        metric: Callable[..., Any] | None = None,
        held_out: bool = False,
    ) -> None:
        self._samples, self._runtime = samples, runtime
        self._metric, self._held_out = metric, held_out
        self._wanted, numbers = self._outputs(original)
        self.count = len(numbers)
        if labels is not None and numbers.max(initial=-1) >= len(labels):
            raise InputError(
                f"{len(labels)} labels for at least {int(numbers.max()) + 1} samples; "
                "give one for each"
            )
        self._labels = None if labels is None else labels[numbers]
        self._scores = {
            value.name or "": gives_scores(output_producer(value))
            for value in original.graph.outputs
        }
        self._name, self._original = self._measured(self._wanted)

    def of(self, model: ir.Model) -> Quality:
        """Measure a model with the same interface.

        Raises:
            InputError: when the metric fails.
        """
        name, result = self._measured(self._outputs(model)[0])
        return Quality(name, self._original, result, self.count, self._held_out)

    def _outputs(self, model: ir.Model) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
        """All outputs of all samples, and the numbers of these."""
        session = open_session(model, self._runtime)
        batches: dict[str, list[Any]] = {}
        numbers = []
        for places, feed in numbered(self._samples, _BATCH):
            numbers.append(places)
            for name, value in run(session, feed).items():
                batches.setdefault(name, []).append(value)
        return {name: _joined(parts) for name, parts in batches.items()}, np.concatenate(numbers)

    def _measured(self, outputs: Mapping[str, NDArray[Any]]) -> tuple[str, float]:
        if self._metric is not None:
            return self._by_metric(self._metric, outputs)
        if self._labels is not None:
            return "accuracy", 100 * _accuracy(outputs, self._labels)
        return self._by_original(outputs)

    def _by_metric(
        self, metric: Callable[..., Any], outputs: Mapping[str, NDArray[Any]]
    ) -> tuple[str, float]:
        name = str(getattr(metric, "__name__", "metric"))
        try:
            value = float(metric(dict(outputs), self._labels))
        except Exception as error:
            raise InputError(f"the metric {name} raised {typed_line(error)}") from error
        if not math.isfinite(value):
            raise InputError(f"the metric {name} gave {value}, expected a finite number")
        return name, value

    def _by_original(self, outputs: Mapping[str, NDArray[Any]]) -> tuple[str, float]:
        figures, kinds = [], set()
        for name, wanted in self._wanted.items():
            got = outputs[name]
            if not isinstance(wanted, np.ndarray) or wanted.dtype == object or not wanted.size:
                continue
            if wanted.shape != got.shape:
                figures.append(0.0)
            elif wanted.dtype.kind in "iub":
                figures.append(float((wanted == got).mean()))
                kinds.add("agreement")
            elif self._scores.get(name) and wanted.ndim > 1 and wanted.shape[-1] > 1:
                figures.append(float((wanted.argmax(-1) == got.argmax(-1)).mean()))
                kinds.add("agreement")
            else:
                figures.append(_cosine(wanted, got))
                kinds.add("cosine")
        if not figures:
            raise InputError("no output of the model can be compared; give a metric")
        return " and ".join(sorted(kinds)) or "agreement", 100 * float(np.mean(figures))


def _joined(parts: list[Any]) -> Any:
    """Batches of one output after another; flat where their shapes differ behind the first axis."""
    if not all(isinstance(part, np.ndarray) for part in parts):
        return np.array([None])
    if all(part.ndim and part.shape[1:] == parts[0].shape[1:] for part in parts):
        return np.concatenate(parts)
    return np.concatenate([part.reshape(-1) for part in parts])


def _accuracy(outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any]) -> float:
    """Share of labels met by the first output that has one answer, or scores, for each."""
    for value in outputs.values():
        if not isinstance(value, np.ndarray) or value.dtype == object:
            continue
        if value.dtype.kind in "iub" and value.shape == labels.shape:
            return float((value == labels).mean())
        for axis in (-1, 1):
            if value.ndim == labels.ndim + 1 and value.shape[axis] > 1:
                best = value.argmax(axis)
                if best.shape == labels.shape:
                    return float((best == labels).mean())
    shapes = ", ".join(f"{name} {list(np.shape(value))}" for name, value in outputs.items())
    raise InputError(
        f"labels of shape {list(labels.shape)} fit no output ({shapes}); expected scores with one "
        "axis more, or give a metric"
    )


def _cosine(wanted: NDArray[Any], got: NDArray[Any]) -> float:
    rows = len(wanted) if wanted.ndim > 1 else 1
    a, b = (array.astype(np.float64).reshape(rows, -1) for array in (wanted, got))
    if not np.isfinite(b[np.isfinite(a)]).all():
        return 0.0
    a, b = np.where(np.isfinite(a), a, 0.0), np.where(np.isfinite(b), b, 0.0)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = (a == b).all(axis=1)
    return float(np.where(same, 1.0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1)).mean())
