"""Metrics of quality: functions of the user's, and by name those of the table `METRICS`.

A metric gives one number for the answers of a model on some samples, higher for better ones.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.calibration.scripts import FUNCTION, load_function
from onnxprune.errors import InputError, nearest, typed_line
from onnxprune.verification.answers import Answers
from onnxprune.verification.detections import mean_average_precision
from onnxprune.verification.tasks import (
    agreement,
    agreement_beyond_chance,
    followed_variation,
    negative_perplexity,
    overlap_of_maps,
    same_neighbour,
    top_answers,
)

_MOST_ALONE = 1000
"""Samples that a metric which failed is called with one by one, to name the one it fails on."""

PERCENT = "%"
"""The unit of a metric whose best value is 100."""

_PARAMETERS = "(outputs, reference, labels) or (outputs, labels)"


@dataclass(frozen=True)
class Metric:
    """A measure of quality.

    Attributes:
        name: what reports call it.
        value: its value for the answers on some samples, higher for better ones.
        unit: of the value: `PERCENT`, or empty for a unit of its own.
    """

    name: str
    value: Callable[[Answers], float]
    unit: str = ""


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("agreement", agreement, PERCENT),
        Metric("kappa", agreement_beyond_chance, PERCENT),
        Metric("r2", followed_variation, PERCENT),
        Metric("topk", top_answers, PERCENT),
        Metric("map", mean_average_precision, PERCENT),
        Metric("iou", overlap_of_maps, PERCENT),
        Metric("perplexity", negative_perplexity),
        Metric("retrieval", same_neighbour, PERCENT),
    )
}
"""Metrics by the name that users give."""


def read_metric(metric: Callable[..., Any] | Metric | str | None) -> Metric | None:
    """Find a metric.

    Args:
        metric: a name of `METRICS`, "module.py:function", a function of (outputs, reference,
            labels) or of (outputs, labels), or a metric; None for none.

    Raises:
        InputError: for an unknown name, a function that cannot be loaded, or other parameters.
    """
    if metric is None or isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric in METRICS:
            return METRICS[metric]
        if not FUNCTION.fullmatch(metric):
            raise InputError(
                f"unknown metric {metric!r}{nearest(metric, METRICS)}; a function of your own is "
                "module.py:function"
            )
        metric = load_function(metric, "metric")
    if not callable(metric):
        raise InputError(f"a metric is a name or a function of {_PARAMETERS}, not {metric!r}")
    name = str(getattr(metric, "__name__", type(metric).__name__))
    return Metric(name, _UserFunction(metric, name, sees_reference=_sees_reference(metric, name)))


def _sees_reference(function: Callable[..., Any], name: str) -> bool:
    """Whether a function takes the original's outputs too.

    A third parameter with a default is no reference, unless the second is called so: functions of
    outputs and labels may have settings.

    Raises:
        InputError: for other parameters.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C
        raise InputError(
            f"the metric {name} does not say which parameters it has; wrap it in a function of "
            f"{_PARAMETERS}"
        ) from None
    names = [*signature.parameters]
    two, three = _binds(signature, 2), _binds(signature, 3)
    ordered = names[1:3] != ["labels", "reference"]
    if not (two or three) or not ordered:
        raise InputError(f"the metric {name}{signature} is to be a function of {_PARAMETERS}")
    return three and (not two or names[1:2] == ["reference"])


def _binds(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


class _Failure(Exception):
    """A call of a metric that gave no number: what kind of failure it is, and in words."""

    def __init__(self, kind: object, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class _UserFunction:
    """A function of the user's as the value of a metric, whose failures name metric and sample."""

    function: Callable[..., Any]
    name: str
    sees_reference: bool

    def __call__(self, answers: Answers) -> float:
        """The function's value.

        Raises:
            InputError: when it raises, or gives no finite number.
        """
        try:
            return self._value(answers)
        except _Failure as failure:
            raise InputError(f"the metric {self.name} {self._place(answers, failure)}") from failure

    def _place(self, answers: Answers, failure: _Failure) -> str:
        """A failure in words, with the first sample for which the function fails alike alone."""
        count = len(answers.numbers)
        for place in range(min(count, _MOST_ALONE)) if count > 1 else ():
            try:
                self._value(answers.alone(place))
            except _Failure as alone:
                if alone.kind == failure.kind:
                    return f"{alone} (for sample {answers.numbers[place]} alone)"
        return f"{failure} (for {count} samples together)"

    def _value(self, answers: Answers) -> float:
        reference = (dict(answers.reference),) if self.sees_reference else ()
        try:
            result = self.function(dict(answers.outputs), *reference, answers.labels)
        except Exception as error:  # third-party code
            raise _Failure(type(error), f"raised {typed_line(error)}") from error
        try:
            value = float(result)
        except Exception as error:
            given = type(result).__name__
            message = f"gave {given}, expected a finite number ({typed_line(error)})"
            raise _Failure(given, message) from error
        if not math.isfinite(value):
            raise _Failure("infinite", f"gave {value}, expected a finite number")
        return value
