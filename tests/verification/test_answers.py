"""Answers of models on samples, as metrics see them."""

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
from onnxprune.verification.answers import AnswerReader
from onnxprune.verification.measures import OutputKind

RUNTIME = Runtime(threads=1)
POINTS = np.arange(16, dtype=np.float32).reshape(8, 2) - 5


def network(body: str, inputs: str = "float[n,2] x", outputs: str = "float[n,2] y") -> ir.Model:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{ {body} }}'
    return ir.from_proto(parser.parse_model(text))


def reader(model, calibration=POINTS, **options):
    return AnswerReader(model, read_samples(calibration, input_specs(model)), RUNTIME, **options)


def test_arrays_of_all_samples_beside_those_of_the_original():
    answers = reader(network("y = Neg(x)")).of(network("y = Abs(x)"))
    assert np.array_equal(answers.reference["y"], -POINTS)
    assert np.array_equal(answers.outputs["y"], abs(POINTS))
    assert answers.numbers.tolist() == list(range(8))


def test_labels_are_those_of_the_samples_whatever_they_are():
    model = network("y = Neg(x)")
    _, held = divide(read_samples(POINTS, input_specs(model)))
    labels = [{"text": str(number)} for number in range(8)]
    answers = AnswerReader(model, held, RUNTIME, labels).of()
    assert answers.labels == [{"text": "3"}, {"text": "7"}]
    assert answers.alone(1).labels == [{"text": "7"}]
    with pytest.raises(InputError, match="3 labels for at least 8 samples"):
        AnswerReader(model, held, RUNTIME, labels[:3])


FOUND = """
    zero = Constant<value = float {0.0}>() m = Greater(x, zero) i = NonZero(m)
    t = Cast<to = 1>(i) y = Transpose(t)
"""


def test_outputs_whose_rows_are_no_samples_are_lists_of_one_array_for_each():
    model = network(FOUND, outputs="float[k,2] y")
    answers = reader(model).of()
    assert [len(rows) for rows in answers.outputs["y"]] == [int((row > 0).sum()) for row in POINTS]
    assert np.array_equal(answers.alone(5).outputs["y"][0], [[0, 0], [0, 1]])


def test_sequences_of_different_lengths_are_lists_without_the_axis_of_samples():
    feeds = [{"x": np.ones((1, length, 2), np.float32)} for length in (3, 5)]
    model = network("y = Neg(x)", "float[n,s,2] x", "float[n,s,2] y")
    answers = reader(model, feeds).of()
    assert [array.shape for array in answers.outputs["y"]] == [(3, 2), (5, 2)]


def test_token_ids_are_kept_beside_the_answers():
    model = network("y = Cast<to = 1>(x)", "int64[n,3] x", "float[n,3] y")
    ids = np.arange(12).reshape(4, 3)
    assert np.array_equal(reader(model, ids).of().inputs["x"], ids)
    assert reader(network("y = Neg(x)")).of().inputs == {}


def test_what_outputs_hold():
    model = network(
        "w = Constant<value = float[2,2] {1, 0, 0, 1}>() y = MatMul(x, w) z = Relu(x)",
        outputs="float[n,2] y, float[n,2] z",
    )
    measures = reader(model).of().measures
    assert {name: measure.kind for name, measure in measures.items()} == {
        "y": OutputKind.SCORES,
        "z": OutputKind.QUANTITIES,
    }
