"""The loss and its slopes as the graph gives them, against numpy and against differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from helpers.oracle import ONE_THREAD
from helpers.reducing import graph, weights

from onnxprune.distillation.losses import DistillationLoss, Feature
from onnxprune.distillation.student import Student
from onnxprune.distillation.teacher import Teacher, with_variance
from onnxprune.model.load import load
from onnxprune.verification.divergence import AS_QUANTITIES, TEMPERATURE, distribution_spread
from onnxprune.verification.measures import output_measures
from onnxprune.verification.row_weights import RowWeights

ROWS, WIDTH = 12, 4
_STENCIL = ((-2, 1), (-1, -8), (1, 8), (2, -1))


@dataclass
class Lesson:
    """A student, a teacher of the same shape, and what the student reads."""

    proto_of: Any
    x: np.ndarray
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        student, teacher = (load(self.proto_of(seed)).model for seed in (0, 1))
        plain = [Feature(name) for name in self.features]
        feed = {"x": self.x}
        _, values = Teacher(teacher, plain, ONE_THREAD).run(feed)
        compared = with_variance(plain, [values])
        self.outputs, self.values = Teacher(teacher, compared, ONE_THREAD).run(feed)
        self.teacher: ir.Model = teacher
        self.loss = DistillationLoss(student, teacher, [self.outputs], compared)
        self.variances = {feature.name: feature.variance for feature in compared}
        self.student = Student(student, self.loss, feed, ONE_THREAD, np.random.default_rng(0))
        self.answers = Teacher(student, compared, ONE_THREAD)
        self.model = student

    def run(self, values: Any = None) -> tuple[float, float, dict[str, np.ndarray]]:
        targets = self.loss.feed(self.outputs, self.values, ROWS)
        feed = {"x": self.x}
        return self.student.gradients(feed, targets, values or self.student.values)

    def check_slopes(self) -> None:
        """Gradients of all weights are differences of the loss itself."""
        values = self.student.values
        *_, found = self.run()
        for name, gradient in found.items():
            wanted = np.zeros(gradient.size)
            for place in range(gradient.size):
                for shift, factor in _STENCIL:
                    moved = values[name].copy()
                    moved.reshape(-1)[place] += shift * 1e-2
                    wanted[place] += factor * sum(self.run({**values, name: moved})[:2]) / 0.12
            most = float(np.abs(wanted).max())
            assert most > 1e-3, "a gradient of zero shows nothing"
            slack = {"rtol": 2e-2, "atol": 5e-3 * most}
            np.testing.assert_allclose(gradient.reshape(-1), wanted, **slack, err_msg=name)


def lesson(body: str, signature: str, shapes: dict[str, Any], features: Any = ()) -> Lesson:
    def proto_of(seed: int) -> Any:
        return graph(signature, body, {n: v / 2 for n, v in weights(seed, **shapes).items()})

    x = np.random.default_rng(5).standard_normal((ROWS, WIDTH)).astype(np.float32)
    return Lesson(proto_of, x, tuple(features))


def logs(scores: np.ndarray) -> np.ndarray:
    scores = scores.astype(np.float64) / TEMPERATURE
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


def taught(made: Lesson, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """An output of the teacher and of the student, weights of its rows, and its spread."""
    measures = output_measures(made.teacher, [made.outputs])
    shares = RowWeights(measures, [made.outputs]).of(name, made.outputs)
    answer = made.answers.run({"x": made.x})[0][name]
    wanted = made.outputs[name]
    decides = measures[name].kind.name != "QUANTITIES"
    spread = distribution_spread(measures[name], [wanted], shares) if decides else 1.0
    return wanted, answer, shares, spread


def divergence(wanted: np.ndarray, got: np.ndarray) -> np.ndarray:
    """T^2 KL of each row of scores."""
    first, second = logs(wanted), logs(got)
    return TEMPERATURE**2 * (np.exp(first) * (first - second)).sum(axis=-1)


def squared(wanted: np.ndarray, got: np.ndarray, shares: np.ndarray) -> float:
    """Squared error over the variance around the mean of each column."""
    around = ((wanted - shares @ wanted) ** 2).sum(axis=1)
    return float(shares @ ((got - wanted) ** 2).sum(axis=1) / (shares @ around))


OUT = "(float[N, 4] x) => (float[N, 3] y)"
HIDDEN = "h = MatMul(x, a) r = Tanh(h) "
SHAPES = {"a": (WIDTH, 6), "b": (6, 3)}


@pytest.mark.parametrize("last", ["y = Softmax(s)", "y = LogSoftmax(s)"])
def test_class_scores_are_compared_as_distributions_at_a_temperature(last: str) -> None:
    made = lesson(f"{HIDDEN} s = MatMul(r, b) {last}", OUT, SHAPES)
    wanted, answer, shares, spread = taught(made, "y")
    if last.startswith("y = Softmax"):
        wanted, answer = np.log(wanted), np.log(answer)
    assert made.run()[0] == pytest.approx(shares @ divergence(wanted, answer) / spread, rel=1e-3)
    made.check_slopes()


def test_what_a_linear_layer_gives_is_a_tenth_of_quantities_too() -> None:
    made = lesson(f"{HIDDEN} y = MatMul(r, b)", OUT, SHAPES)
    wanted, answer, shares, spread = taught(made, "y")
    of_scores = shares @ divergence(wanted, answer) / spread
    expected = of_scores + AS_QUANTITIES * squared(wanted, answer, shares)
    assert made.run()[0] == pytest.approx(expected, rel=1e-3)
    made.check_slopes()


def test_probabilities_are_compared_each_with_its_complement() -> None:
    made = lesson(f"{HIDDEN} s = MatMul(r, b) y = Sigmoid(s)", OUT, SHAPES)
    wanted, answer, shares, spread = taught(made, "y")
    both = [
        np.stack([np.log(1 - each), np.log(each)], axis=-1).reshape(-1, 2)
        for each in (wanted.astype(np.float64), answer.astype(np.float64))
    ]
    assert made.run()[0] == pytest.approx(shares @ divergence(*both) / spread, rel=1e-3)
    made.check_slopes()


def test_quantities_are_compared_by_their_squared_error() -> None:
    made = lesson(f"{HIDDEN} s = MatMul(r, b) y = Tanh(s)", OUT, SHAPES)
    wanted, answer, shares, _ = taught(made, "y")
    assert made.run()[0] == pytest.approx(squared(wanted, answer, shares), rel=1e-3)
    made.check_slopes()


def test_a_single_number_for_each_sample() -> None:
    made = lesson(
        f"{HIDDEN} y = MatMul(r, b)", OUT.replace("3] y", "1] y"), {**SHAPES, "b": (6, 1)}
    )
    wanted, answer, shares, _ = taught(made, "y")
    assert made.run()[0] == pytest.approx(squared(wanted, answer, shares), rel=1e-3)
    made.check_slopes()


def test_boxes_count_where_the_teacher_sees_an_object() -> None:
    body = f"""{HIDDEN} p = MatMul(r, b) boxes = Reshape(p, fours) c = MatMul(r, d)
        l = Reshape(c, threes) scores = Sigmoid(l)"""
    signature = "(float[N, 4] x) => (float[N, 5, 4] boxes, float[N, 5, 3] scores)"
    base = weights(0, a=(WIDTH, 6), b=(6, 20), d=(6, 15))
    extents = np.tile(np.array([0, 0, 6, 6], np.float32), 5)

    def proto_of(seed: int) -> Any:
        other = weights(seed, **{name: value.shape for name, value in base.items()})
        values = {n: (v + 0.3 * other[n]) / 2 for n, v in base.items()}
        shapes = {"fours": np.array([0, 5, 4]), "threes": np.array([0, 5, 3]), "e": extents}
        shifted = body.replace("boxes = Reshape(p,", "q = Add(p, e) boxes = Reshape(q,")
        return graph(signature, shifted, {**values, **shapes})

    x = np.random.default_rng(5).standard_normal((ROWS, WIDTH)).astype(np.float32)
    made = Lesson(proto_of, x)
    measure = output_measures(made.teacher, [made.outputs])["boxes"]
    assert measure.boxes is not None
    wanted, answer, shares, _ = taught(made, "boxes")
    seen = (made.outputs["scores"] >= 0.5).any(axis=-1).reshape(-1)
    assert 0 < seen.sum() < seen.size
    assert ((shares > 0) == seen).all()
    apart = (answer.astype(np.float64) - wanted).reshape(-1, 4) ** 2 / measure.box_units(wanted)
    scores, given, weight, spread = taught(made, "scores")
    both = [
        np.stack([np.log(1 - each), np.log(each)], axis=-1).reshape(-1, 2)
        for each in (scores.astype(np.float64), given.astype(np.float64))
    ]
    of_scores = weight @ divergence(*both) / spread
    # outputs are averaged
    expected = (shares @ apart.sum(axis=1) + of_scores) / 2
    assert made.run()[0] == pytest.approx(expected, rel=1e-3)
    made.check_slopes()


def test_features_are_compared_over_their_variance() -> None:
    made = lesson(f"{HIDDEN} y = MatMul(r, b)", OUT, SHAPES, ["h", "r"])
    theirs = made.answers.run({"x": made.x})[1]
    apart = [
        np.mean((theirs[name].astype(np.float64) - made.values[name]) ** 2) / made.variances[name]
        for name in ("h", "r")
    ]
    alone = lesson(f"{HIDDEN} y = MatMul(r, b)", OUT, SHAPES, ["h"]).run()[1]
    # features together count the same however many there are
    weight = alone / apart[0]
    assert made.run()[1] == pytest.approx(weight * np.mean(apart), rel=1e-3)
    made.check_slopes()


def test_rows_of_a_feature_that_no_answer_depends_on_count_nothing() -> None:
    """Such as padding: features are there for the answers."""
    body = f"{HIDDEN} g = MatMul(x, c) open = Relu(g) passed = Mul(r, open) y = MatMul(passed, b)"
    made = lesson(body, OUT, {**SHAPES, "c": (WIDTH, 1)}, ["r"])
    theirs = made.answers.run({"x": made.x})[1]["r"].astype(np.float64)
    apart = np.mean((theirs - made.values["r"]) ** 2, axis=1) / made.variances["r"]
    gate = made.x @ made.student.values["c"]
    alive = gate[:, 0] > 0
    assert 0 < alive.sum() < ROWS
    every = lesson(f"{HIDDEN} y = MatMul(r, b)", OUT, SHAPES, ["r"])
    others = every.answers.run({"x": every.x})[1]["r"].astype(np.float64)
    weight = every.run()[1] / (np.mean((others - every.values["r"]) ** 2) / every.variances["r"])
    assert made.run()[1] == pytest.approx(weight * np.mean(apart[alive]), rel=1e-3)
    made.check_slopes()


def test_a_teacher_is_at_no_distance_from_itself() -> None:
    for last in ("y = MatMul(r, b)", "s = MatMul(r, b) y = Softmax(s)"):
        body = f"{HIDDEN} {last}"
        proto = graph(OUT, body, weights(**SHAPES))
        x = np.random.default_rng(5).standard_normal((ROWS, WIDTH)).astype(np.float32)
        made = Lesson(lambda seed, proto=proto: proto, x, ("r",))
        outputs, features, gradients = made.run()
        assert outputs == pytest.approx(0, abs=1e-5)
        assert features == pytest.approx(0, abs=1e-9)
        assert all(np.abs(gradient).max() < 1e-5 for gradient in gradients.values())


def test_classes_that_are_masked_take_no_part() -> None:
    mask = np.array([0, 0, -np.inf], np.float32)

    def proto_of(seed: int) -> Any:
        values = {n: v / 2 for n, v in weights(seed, **SHAPES).items()}
        return graph(
            OUT, f"{HIDDEN} s = MatMul(r, b) m = Add(s, c) y = Softmax(m)", {**values, "c": mask}
        )

    x = np.random.default_rng(5).standard_normal((ROWS, WIDTH)).astype(np.float32)
    made = Lesson(proto_of, x)
    loss, _, gradients = made.run()
    wanted, answer, shares, spread = taught(made, "y")
    kept = [np.log(each[:, :2]) for each in (wanted, answer)]
    assert loss == pytest.approx(shares @ divergence(*kept) / spread, rel=1e-3)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    assert np.abs(gradients["b"][:, 2]).max() < 1e-6
    assert np.abs(gradients["b"][:, :2]).max() > 1e-3


def test_gradients_of_labels_come_in_beside_the_teacher_or_alone() -> None:
    x = np.random.default_rng(5).standard_normal((ROWS, WIDTH)).astype(np.float32)
    feed = {"x": x}
    student, teacher = (
        load(graph(OUT, f"{HIDDEN} s = MatMul(r, b) y = Softmax(s)", weights(seed, **SHAPES))).model
        for seed in (0, 1)
    )
    known, _ = Teacher(teacher, [], ONE_THREAD).run(feed)
    slopes = np.random.default_rng(6).standard_normal((ROWS, 3))
    found = {}
    for name, options in {
        "teacher": {},
        "both": {"labelled": True},
        "labels": {"labelled": True, "taught": False},
    }.items():
        loss = DistillationLoss(student, teacher, [known], **options)
        trained = Student(student, loss, feed, ONE_THREAD, np.random.default_rng(0))
        targets = loss.feed(known, {}, ROWS)
        if options:
            answers = trained.outputs(feed, trained.values)
            targets |= loss.given({"s": slopes}, answers)
        found[name] = trained.gradients(feed, targets, trained.values)
    for name, both in found["both"][2].items():
        apart = [found[each][2][name] for each in ("teacher", "labels")]
        np.testing.assert_allclose(both, sum(apart), rtol=1e-4, atol=1e-5)
    # behind the softmax: that of the weights is r^T of the slopes, in units of the teacher's spread
    hidden = np.tanh(x @ weights(0, **SHAPES)["a"])
    alone = found["labels"][2]["b"]
    wanted = hidden.T @ slopes
    np.testing.assert_allclose(alone * (wanted / alone).mean(), wanted, rtol=1e-3, atol=1e-4)
    assert found["labels"][0] == 0


def test_parts_of_a_batch_are_averaged_to_the_whole() -> None:
    made = lesson(f"{HIDDEN} y = MatMul(r, b)", OUT, SHAPES, ["h"])
    whole = made.run()
    halves = []
    for rows in (slice(0, 6), slice(6, 12)):
        outputs = {name: array[rows] for name, array in made.outputs.items()}
        values = {name: array[rows] for name, array in made.values.items()}
        targets = made.loss.feed(outputs, values, 6)
        halves.append(made.student.gradients({"x": made.x[rows]}, targets, made.student.values))
    assert sum(half[0] for half in halves) / 2 == pytest.approx(whole[0], rel=1e-4)
    assert sum(half[1] for half in halves) / 2 == pytest.approx(whole[1], rel=1e-4)
    for name, gradient in whole[2].items():
        mean = (halves[0][2][name] + halves[1][2][name]) / 2
        np.testing.assert_allclose(mean, gradient, rtol=1e-3, atol=1e-5)
