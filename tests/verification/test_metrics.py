"""Metrics: functions of the user's by their parameters, and what is said where they fail."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import InputError
from onnxprune.verification.answers import Answers
from onnxprune.verification.metrics import read_metric

WANTED = np.array([[3.0, 1.0], [0.0, 2.0], [5.0, 4.0]])
GOT = np.array([[3.0, 1.0], [2.0, 0.0], [5.0, 4.0]])


def answers(outputs=GOT, reference=WANTED, labels=None, **more):
    count = len(next(iter(outputs.values())) if isinstance(outputs, dict) else outputs)
    outputs, reference = (
        values if isinstance(values, dict) else {"y": values} for values in (outputs, reference)
    )
    return Answers(outputs, reference, labels, numbers=4 * np.arange(count) + 3, **more)


def of_three(outputs, reference, labels):
    return float((outputs["y"].argmax(1) == reference["y"].argmax(1)).sum())


def of_two(outputs, labels):
    return float(outputs["y"].sum() + sum(labels))


def with_a_setting(outputs, labels, scale=10):
    return scale * len(labels)


def without_labels(outputs, reference, labels=None):
    assert reference["y"] is WANTED
    return labels


class Counting:
    def __call__(self, outputs, reference, labels):
        return of_three(outputs, reference, labels)


@pytest.mark.parametrize(
    ("function", "value"),
    [(of_three, 2), (of_two, 21), (with_a_setting, 30), (without_labels, 7), (Counting(), 2)],
)
def test_parameters_say_whether_a_function_sees_the_original(function, value):
    labels = 7 if function is without_labels else [1, 2, 3]
    assert read_metric(function).value(answers(labels=labels)) == value


@pytest.mark.parametrize(
    "function",
    [
        lambda outputs: 1,
        lambda: 1,
        lambda outputs, reference, labels, more: 1,
        lambda outputs, *, labels: 1,
        lambda outputs, labels, reference: 1,
        max,
    ],
)
def test_other_parameters_are_refused_with_those_that_are_allowed(function):
    with pytest.raises(InputError, match=r"\(outputs, reference, labels\) or \(outputs, labels\)"):
        read_metric(function)


def test_unknown_names_come_with_the_way_to_a_function():
    with pytest.raises(InputError, match=r"unknown metric 'kapa'.*module.py:function"):
        read_metric("kapa")
    with pytest.raises(InputError, match="a metric is a name or a function"):
        read_metric(7)


def test_functions_in_files(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def mine(outputs, reference, labels):\n    return 5\n")
    metric = read_metric(f"{path}:mine")
    assert (metric.name, metric.unit, metric.value(answers())) == ("mine", "", 5)
    with pytest.raises(InputError, match="no function 'other'"):
        read_metric(f"{path}:other")


def fails_for_negative(outputs, reference, labels):
    if (outputs["y"] < 0).any():
        raise ValueError("a depth below zero")
    return 1.0


def infinite_for_negative(outputs, reference, labels):
    return np.inf if (outputs["y"] < 0).any() else 1.0


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (fails_for_negative, r"raised ValueError: a depth below zero \(for sample 7 alone\)"),
        (infinite_for_negative, r"gave inf, expected a finite number \(for sample 7 alone\)"),
    ],
)
def test_the_sample_that_a_metric_fails_on_is_named(metric, words):
    outputs = np.array([[1.0, 1.0], [-1.0, 0.0], [-2.0, 0.0]])
    with pytest.raises(InputError, match=f"the metric {metric.__name__} {words}"):
        read_metric(metric).value(answers(outputs))


def fails_for_several(outputs, reference, labels):
    return 1 / (len(outputs["y"]) == 1)


def test_a_metric_that_fails_for_no_sample_alone():
    with pytest.raises(InputError, match=r"ZeroDivisionError.*for 3 samples together"):
        read_metric(fails_for_several).value(answers())


@pytest.mark.parametrize("value", [None, "much", [1, 2], np.zeros(3)])
def test_what_is_no_number_is_named(value):
    kind = type(value).__name__
    with pytest.raises(InputError, match=f"the metric <lambda> gave {kind}, expected a finite"):
        read_metric(lambda outputs, labels: value).value(answers())
