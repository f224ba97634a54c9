"""What a loss asks of the outputs, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from helpers.oracle import parse
from numpy.typing import NDArray

from onnxprune.errors import InputError
from onnxprune.gradients.losses import Head, LossGradient, heads_of
from onnxprune.model.load import load
from onnxprune.model.outputs import ScoreLayout

SCORES = Head("y", "y", scores=True)
QUANTITY = Head("y", "y", scores=False)


def gradient(head: Head, output: NDArray[Any], labels: Any = None, loss: Any = None) -> Any:
    asked = LossGradient([head], loss, np.random.default_rng(0))
    found = asked.of({"y": output}, None if labels is None else np.asarray(labels))
    return found[head.tensor]


def softmax(scores: NDArray[Any]) -> NDArray[Any]:
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def model(body: str, opset: int = 18) -> ir.Model:
    text = f"""<ir_version: 8, opset_import: ["": {opset}]>
        g (float[N, 3] x) => (float[N, 3] y) {{ {body} }}"""
    return load(parse(text)).model


def test_cross_entropy_is_probability_minus_label() -> None:
    scores = np.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    wanted = softmax(scores) - np.eye(3)[[1, 0]]
    np.testing.assert_allclose(gradient(SCORES, scores, [1, 0]), wanted)


def test_the_gradient_is_taken_before_a_softmax_however_its_result_is_handed_on() -> None:
    (head,) = heads_of(model("a = Exp(x) p = Softmax(a) y = Identity(p)"), None)
    assert (head.tensor, head.scores, head.probability) == ("a", True, "Softmax")
    given = softmax(np.array([[1.0, 2.0, 0.5]]))
    np.testing.assert_allclose(gradient(head, given, [2]), given - np.eye(3)[[2]])


def test_channels_of_a_convolution_are_the_classes_of_each_place() -> None:
    scores = np.random.default_rng(0).standard_normal((2, 3, 4))
    labels = np.array([[0, 1, 2, 0], [2, 2, 1, 0]])
    head = Head("y", "y", scores=True, layout=ScoreLayout(axis=1))
    wanted = softmax(np.moveaxis(scores, 1, -1)) - np.eye(3)[labels]
    np.testing.assert_allclose(gradient(head, scores, labels), np.moveaxis(wanted, -1, 1))


def test_the_loss_that_suits_an_output_is_the_default() -> None:
    (linear,) = heads_of(model("y = MatMul(x, x)"), None)
    (other,) = heads_of(model("y = Tanh(x)"), None)
    assert linear.scores
    assert not other.scores
    assert not heads_of(model("y = MatMul(x, x)"), "mse")[0].scores
    assert heads_of(model("y = Tanh(x)"), "cross-entropy")[0].scores


def test_squared_error_is_the_distance_from_the_target() -> None:
    output = np.array([[1.0], [3.0]])
    np.testing.assert_allclose(gradient(QUANTITY, output, [0.5, 4.0]), [[0.5], [-1.0]])


def test_classes_are_drawn_from_the_models_own_probabilities_at_temperature_2() -> None:
    """Their gradients have the mean zero, and the Fisher information as covariance."""
    scores = np.array([0.3, 1.5, -0.5])
    p = softmax(scores / 2)
    found = gradient(SCORES, np.tile(scores, (40_000, 1)))
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.01)
    np.testing.assert_allclose(np.cov(found.T), (np.diag(p) - np.outer(p, p)) / 4, atol=0.003)


def test_targets_are_drawn_around_the_output_in_units_of_its_deviation() -> None:
    output = 5 * np.random.default_rng(1).standard_normal((20_000, 2)) + 7
    found = gradient(QUANTITY, output)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.01)
    np.testing.assert_allclose(found.std(axis=0), 1 / output.std(), rtol=0.03)


def test_a_function_of_losses_is_differentiated() -> None:
    def loss(outputs: Any, labels: Any) -> Any:
        return ((outputs["y"] - labels[:, None]) ** 4).sum(axis=1)

    output, labels = np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([0.5, 1.0])
    wanted = 4 * (output - labels[:, None]) ** 3
    np.testing.assert_allclose(gradient(QUANTITY, output, labels, loss), wanted, rtol=1e-4)


def test_a_function_may_give_the_gradients_itself() -> None:
    output = np.ones((2, 3))
    found = gradient(QUANTITY, output, loss=lambda outputs, labels: {"y": 2 * outputs["y"]})
    np.testing.assert_array_equal(found, 2 * output)


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (lambda outputs, labels: 1 / 0, "raised ZeroDivisionError"),
        (lambda outputs, labels: outputs["y"], "expected one loss for each of 2 samples"),
        (lambda outputs, labels: {"z": outputs["y"]}, "names and shapes of outputs"),
    ],
)
def test_a_function_that_is_no_loss_is_told_so(loss: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        gradient(QUANTITY, np.ones((2, 3)), loss=loss)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [([0, 1, 2], "fit no output"), ([0, 3], "3 classes"), ([0.5, 1.0], "fit no output")],
)
def test_labels_that_do_not_fit_are_named(labels: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        gradient(SCORES, np.ones((2, 3)), labels)
