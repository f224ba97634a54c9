"""How good answers are, in one number: accuracy, agreement, cosine or a caller's metric."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from onnxprune import InputError
from onnxprune.calibration.samples import read_samples
from onnxprune.calibration.streams import divide
from onnxprune.model.inputs import input_specs
from onnxprune.model.runtime import Runtime
from onnxprune.verification.quality import QualityMeasure

POINTS = np.array([[1, 0], [0, 1], [3, 1], [1, 2], [2, 2.5], [5, 0], [0, 5], [4, 3]], np.float32)
LABELS = np.array([0, 1, 0, 1, 0, 0, 1, 0])
RUNTIME = Runtime(threads=1)


def network(body: str, inputs: str = "float[n,2] x", outputs: str = "float[n,2] y") -> ir.Model:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{ {body} }}'
    return ir.from_proto(parser.parse_model(text))


SCORES = network("w = Constant<value = float[2,2] {1, 0, 0, 1}>() y = MatMul(x, w)")
SWAPPED = network("w = Constant<value = float[2,2] {0, 1, 1, 0}>() y = MatMul(x, w)")
PLAIN = network("y = Relu(x)")
TURNED = network("w = Constant<value = float[2,2] {0, 1, 1, 0}>() z = MatMul(x, w) y = Relu(z)")


def measure(model=SCORES, **options):
    samples = read_samples({"x": POINTS}, input_specs(model))
    return QualityMeasure(model, samples, RUNTIME, **options)


def test_accuracy_in_percent_and_its_drop_in_points():
    found = measure(labels=LABELS).of(SWAPPED)
    assert (found.measure, found.original, found.result) == ("accuracy", 87.5, 12.5)
    assert found.drop == 75
    assert (found.samples, found.held_out) == (8, False)
    assert found.to_dict()["drop"] == 75


def test_labels_belong_to_the_samples_that_are_kept_out():
    _, held = divide(read_samples({"x": POINTS}, input_specs(SCORES)))
    wrong = 1 - LABELS
    wrong[3::4] = LABELS[3::4]
    found = QualityMeasure(SCORES, held, RUNTIME, labels=wrong, held_out=True).of(SCORES)
    assert (found.original, found.samples, found.held_out) == (100, 2, True)


def test_without_labels_decisions_are_compared_beyond_chance():
    found = measure().of(SWAPPED)
    assert (found.measure, found.original, found.result) == ("kappa", 100, 0)


def test_a_model_that_always_says_the_same_is_worth_nothing():
    """Five of eight answers of the original are the first class."""
    always = network("w = Constant<value = float[2,2] {0, 0, 0, 0}>() y = MatMul(x, w)")
    assert measure().of(always).result == 0


def test_without_labels_quantities_are_compared_with_their_mean():
    found = measure(PLAIN).of(TURNED)
    spread = ((POINTS - POINTS.mean(0)) ** 2).sum()
    assert (found.measure, found.original) == ("r2", 100)
    assert found.result == pytest.approx(
        100 * max(1 - ((POINTS - POINTS[:, ::-1]) ** 2).sum() / spread, 0)
    )


def test_the_worst_output_counts():
    two = "float[n,2] y, float[n,2] z"
    body = "w = Constant<value = float[2,2] {{0, 1, 1, 0}}>() z = Relu(x) y = {}"
    first = network(body.format("Relu(x)"), outputs=two)
    other = network(body.format("MatMul(x, w)"), outputs=two)
    alone = measure(PLAIN).of(TURNED)
    assert measure(first).of(other).result == alone.result


def test_a_single_sample_has_its_cosine():
    samples = read_samples({"x": POINTS[:1]}, input_specs(PLAIN))
    found = QualityMeasure(PLAIN, samples, RUNTIME).of(PLAIN)
    assert (found.measure, found.result) == ("cosine", pytest.approx(100))


def test_classes_that_come_as_numbers_are_answers_themselves():
    model = network("y = ArgMax<axis = 1, keepdims = 0>(x)", outputs="int64[n] y")
    other = network("y = ArgMin<axis = 1, keepdims = 0>(x)", outputs="int64[n] y")
    assert measure(model, labels=LABELS).of(other).original == 87.5
    assert measure(model).of(other).result == 0


def test_scores_of_every_place_of_an_image():
    model = network("y = Relu(x)", "float[n,2,3,3] x", "float[n,2,3,3] y")
    images = np.random.default_rng(0).random((4, 2, 3, 3), np.float32)
    samples = read_samples({"x": images}, input_specs(model))
    found = QualityMeasure(model, samples, RUNTIME, labels=images.argmax(1)).of(model)
    assert found.result == 100


def test_a_metric_sees_all_outputs_and_labels():
    def largest(outputs, labels):
        assert outputs["y"].shape == (8, 2)
        return outputs["y"].max() + labels.sum()

    found = measure(labels=LABELS, metric=largest).of(SCORES)
    assert (found.measure, found.result) == ("largest", 8.0)


def raising(outputs, labels):
    raise KeyError("depth")


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (raising, "raising raised KeyError"),
        (lambda outputs, labels: float("nan"), "gave nan"),
        (lambda outputs, labels: None, "TypeError"),
        (lambda outputs, labels: outputs["y"], "TypeError"),
    ],
)
def test_a_metric_that_fails_is_named(metric, words):
    with pytest.raises(InputError, match=words):
        measure(metric=metric)


def test_labels_that_fit_no_output_are_refused():
    with pytest.raises(InputError, match=r"labels of shape \[8, 3\] fit no output \(y \[8, 2\]\)"):
        measure(labels=np.zeros((8, 3), np.int64))


def test_an_output_that_broke_is_worth_nothing():
    broken = network("zero = Constant<value = float {0.0}>() z = Div(x, zero) y = Relu(z)")
    assert measure(PLAIN).of(broken).result == 0
