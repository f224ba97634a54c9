"""How good a model's answers are, in one number that is higher for better ones.

* With a metric: the value of that function of the outputs, those of the original, and labels.
* With labels: accuracy, the percentage of samples whose greatest score is at the label.
* Without: how well the answers follow the original's, in percent: 100 for equal ones, 0 for a model
  that always answers the same. Decisions - of class scores and probabilities - have Cohen's kappa,
  quantities R squared around the mean at each place (`scores.py`). Where the original always
  decides the same, or does not vary, it is the share of equal decisions and the cosine. Boxes that
  were selected in the graph, as many as were found, have mean average precision. The worst of
  several outputs counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.labels import Labels, class_labels
from onnxprune.calibration.streams import Samples
from onnxprune.errors import InputError
from onnxprune.model.runtime import Runtime
from onnxprune.verification.answers import AnswerReader, Answers, Values
from onnxprune.verification.box_errors import boxes_followed
from onnxprune.verification.detections import mean_average_precision
from onnxprune.verification.measures import OutputMeasure
from onnxprune.verification.metrics import PERCENT, Metric, read_metric
from onnxprune.verification.scores import kappa, r_squared


@dataclass(frozen=True)
class Quality:
    """How good original and result are.

    Attributes:
        measure: accuracy, kappa, r2, agreement, cosine or map, or the name of the metric function.
        original: of the original.
        result: of the result, in the same unit.
        samples: how many it was measured on.
        held_out: whether nothing was fitted or chosen on these.
        unit: "%", or empty for a unit of the metric's own.
    """

    measure: str
    original: float
    result: float
    samples: int
    held_out: bool
    unit: str = PERCENT

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
        labels: of all samples that these are a part of; None without.
        metric: as `read_metric` takes it; None for the measures above.
        held_out: whether the samples are used for nothing else.

    Attributes:
        count: of samples.

    Raises:
        InputError: when labels do not fit the samples or outputs, or the metric fails.
    """

    def __init__(
        self,
        original: ir.Model,
        samples: Samples,
        runtime: Runtime,
        *,
        labels: Labels | None = None,
        metric: Callable[..., Any] | Metric | str | None = None,
        held_out: bool = False,
    ) -> None:
        self._metric, self._held_out = read_metric(metric), held_out
        if labels is not None and self._metric is None:
            labels = required_classes(labels)
        self._reader = AnswerReader(original, samples, runtime, labels)
        self.count = len(self._reader.numbers)
        _, self._original, _ = self._measured(self._reader.of())

    def of(self, model: ir.Model) -> Quality:
        """Measure a model with the same interface.

        Raises:
            InputError: when the metric fails.
        """
        name, result, unit = self._measured(self._reader.of(model))
        return Quality(name, self._original, result, self.count, self._held_out, unit)

    def _measured(self, answers: Answers) -> tuple[str, float, str]:
        """Name of the measure, value and unit."""
        if self._metric is not None:
            return self._metric.name, self._metric.value(answers), self._metric.unit
        if answers.labels is not None:
            return "accuracy", 100 * _accuracy(answers, np.asarray(answers.labels)), PERCENT
        return *_by_original(answers), PERCENT


def required_classes(labels: Labels) -> NDArray[np.int64]:
    """Labels as indices of classes, int64 [samples, ...].

    Raises:
        InputError: when they are something else; says which metric may take them.
    """
    classes = class_labels(labels)
    if classes is None:
        first = labels[0] if len(labels) else None
        kind = getattr(first, "dtype", type(first).__name__)
        raise InputError(
            f"labels: expected whole numbers, classes for accuracy, not {kind}; other labels need "
            "--metric: map for boxes, r2 for quantities, or a function of (outputs, reference, "
            "labels) as module.py:function"
        )
    return classes


def _by_original(answers: Answers) -> tuple[str, float]:
    """How well the answers follow the original's, in percent, and what that is called."""
    figures = []
    reference = {name: _joined(values) for name, values in answers.reference.items()}
    outputs = {name: _joined(values) for name, values in answers.outputs.items()}
    for key, wanted in reference.items():
        if not isinstance(wanted, np.ndarray) or wanted.dtype == object or not wanted.size:
            continue
        measure, got = answers.measures.get(key), outputs[key]
        if isinstance(answers.reference[key], list):
            figures.append(_by_sample(answers, key))
            continue
        share = None
        if measure is not None and measure.boxes is not None and wanted.shape == got.shape:
            share = boxes_followed(measure, answers.measures, reference, outputs)
        figures.append(
            _followed(wanted, got, measure) if share is None else (max(share, 0.0), "r2")
        )
    if not figures:
        raise InputError("no output of the model can be compared; give a metric")
    value, name = min(figures)
    return name, 100 * value


def _by_sample(answers: Answers, name: str) -> tuple[float, str]:
    """How well an output follows whose shape differs between samples, such as what was found."""
    try:
        return mean_average_precision(answers) / 100, "map"
    except InputError:
        pass
    shares = [
        _followed(wanted, got, answers.measures.get(name))[0] if wanted.size else 1.0
        for wanted, got in zip(answers.reference[name], answers.outputs[name], strict=True)
    ]
    return float(np.mean(shares)), "agreement"


def _followed(
    wanted: NDArray[Any], got: NDArray[Any], measure: OutputMeasure | None
) -> tuple[float, str]:
    """How well one output follows the original's, and what that is called."""
    if wanted.shape != got.shape:
        return 0.0, "agreement"
    first, second = wanted, got
    if measure is not None:
        if not np.isfinite(got[np.isfinite(wanted)]).all():
            return 0.0, "r2" if measure.decisions(wanted) is None else "kappa"
        decided, other = measure.decisions(wanted), measure.decisions(got)
        if decided is None or other is None:
            share = r_squared(wanted, got)
            return (_cosine(wanted, got), "cosine") if share is None else (max(share, 0.0), "r2")
        first, second = decided, other
    share = kappa(first, second)
    if share is None:
        return float((first == second).mean()), "agreement"
    return max(share, 0.0), "kappa"


def _joined(parts: Values) -> Any:
    """One array of an output; flat where the shapes of its parts differ behind the first axis."""
    if isinstance(parts, np.ndarray):
        return parts
    if not all(isinstance(part, np.ndarray) for part in parts):
        return np.array([None])
    if all(part.ndim and part.shape[1:] == parts[0].shape[1:] for part in parts):
        return np.concatenate(parts)
    return np.concatenate([part.reshape(-1) for part in parts])


def _accuracy(answers: Answers, labels: NDArray[Any]) -> float:
    """Share of labels met by the first output that has one answer, or scores, for each."""
    outputs = {name: _joined(values) for name, values in answers.outputs.items()}
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
