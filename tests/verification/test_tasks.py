"""Metrics by name: what they give on answers whose value is known."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import InputError
from onnxprune.model.outputs import ScoreLayout
from onnxprune.verification.answers import Answers
from onnxprune.verification.measures import OutputKind, OutputMeasure
from onnxprune.verification.metrics import METRICS, read_metric

RNG = np.random.default_rng(0)
SCORES, QUANTITIES = OutputKind.SCORES, OutputKind.QUANTITIES


def value(metric, reference, outputs, kind=SCORES, labels=None, **more):
    """A metric's value for the output y of original and model; or for several outputs by name."""
    if not isinstance(reference, dict):
        reference, outputs = {"y": reference}, {"y": outputs}
    floats = [n for n, v in reference.items() if not np.issubdtype(v[0].dtype, np.integer)]
    more = {"measures": {name: OutputMeasure(name, kind) for name in floats}} | more
    numbers = np.arange(len(next(iter(reference.values()))))
    return read_metric(metric).value(Answers(outputs, reference, labels, numbers=numbers, **more))


FORMS = {
    "agreement": RNG.normal(size=(20, 4)),
    "kappa": RNG.normal(size=(20, 4)),
    "r2": RNG.normal(size=(20, 4)),
    "topk": RNG.normal(size=(20, 9)),
    "iou": RNG.normal(size=(6, 3, 8, 8)),
    "retrieval": RNG.normal(size=(20, 4)),
}


@pytest.mark.parametrize("metric", FORMS)
def test_the_original_scores_100_and_another_model_less(metric):
    array = FORMS[metric]
    assert METRICS[metric].unit == "%"
    assert value(metric, array, array) == pytest.approx(100)
    assert value(metric, array, RNG.normal(size=array.shape)) < 70


@pytest.mark.parametrize("metric", FORMS)
def test_what_does_not_fit_is_said_with_the_shapes(metric):
    with pytest.raises(InputError, match=rf"the metric {metric} .*y \[1, 1\]"):
        value(metric, np.ones((1, 1)), np.ones((1, 1)), QUANTITIES)


RARE = np.eye(2)[np.array([0] * 95 + [1] * 5)]
ALWAYS = np.eye(2)[np.zeros(100, int)]


def test_a_model_that_always_says_the_same_agrees_and_has_no_kappa():
    assert value("agreement", RARE, ALWAYS) == 95
    assert value("kappa", RARE, ALWAYS) == 0
    with pytest.raises(InputError, match="decides the same everywhere"):
        value("kappa", ALWAYS, RARE)


def test_decisions_of_several_outputs_are_averaged():
    outputs = {"a": RARE, "b": RARE[:, 1].astype(np.int64)}
    other = {"a": RARE, "b": np.zeros(100, np.int64)}
    assert value("agreement", outputs, other) == pytest.approx((100 + 95) / 2)


def test_decisions_of_another_shape_agree_nowhere():
    wanted = [np.eye(3)[[0, 1]], np.eye(3)[[2]]]
    got = [np.eye(3)[[0]], np.eye(3)[[2]]]
    assert value("agreement", wanted, got) == pytest.approx(100 / 3)


def test_the_mean_at_each_place_scores_no_r2():
    array = RNG.normal(size=(20, 4)) + 100
    mean = np.broadcast_to(array.mean(axis=0), array.shape)
    assert value("r2", array, mean, QUANTITIES) == pytest.approx(0)
    assert value("r2", array, array * np.nan, QUANTITIES) == -1e6


def test_boxes_count_where_the_original_sees_something():
    scores = np.zeros((10, 100, 2))
    scores[:, :98, 0] = scores[:, 98:, 1] = 1
    boxes = RNG.normal(size=(10, 100, 4))
    got = boxes.copy()
    got[:, 98:] = boxes[:, 98:].mean(axis=0)
    reference = {"scores": scores, "boxes": boxes}
    measures = {
        "scores": OutputMeasure("scores", SCORES, logs=False),
        "boxes": OutputMeasure("boxes", QUANTITIES, rows_of="scores"),
    }
    found = value("r2", reference, reference | {"boxes": got}, measures=measures)
    # the scores do not vary, so that only boxes count; the two with objects weigh half
    assert found == pytest.approx(50, abs=10)


def test_right_answers_among_the_best_five():
    scores = np.tile(np.arange(10.0), (4, 1))
    assert value("topk", scores, scores, labels=np.array([5, 9, 4, 0])) == 50
    assert value("topk", scores, -scores) == 0
    with pytest.raises(InputError, match="whole numbers"):
        value("topk", scores, scores, labels=["a", "b", "c", "d"])


def test_overlap_of_the_classes_that_the_original_answers():
    wanted, got = np.zeros((1, 2, 4), np.int64), np.zeros((1, 2, 4), np.int64)
    wanted[..., :2], got[..., :1] = 1, 1
    # class 1: 2 of 4 pixels; class 0: 4 of 6
    assert value("iou", wanted, got) == pytest.approx(100 * (2 / 4 + 4 / 6) / 2)
    scores = np.eye(5)[wanted].transpose(0, 3, 1, 2), np.eye(5)[got].transpose(0, 3, 1, 2)
    measures = {"y": OutputMeasure("y", SCORES, ScoreLayout(1))}
    assert value("iou", *scores, measures=measures) == pytest.approx(100 * (2 / 4 + 4 / 6) / 2)
    measures = {"y": OutputMeasure("y", QUANTITIES)}
    wide = [np.repeat(np.repeat(array, 4, 2), 4, 3) for array in scores]
    assert value("iou", *wide, measures=measures) == pytest.approx(100 * (2 / 4 + 4 / 6) / 2)


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_maps_of_one_channel_are_cut_at_a_half_or_for_scores_at_zero(scale):
    probabilities = RNG.random((2, 1, 8, 8))
    maps = probabilities if scale == 1 else scale * (probabilities - 0.5)
    shifted = maps.copy()
    shifted[0] = maps[0].min()
    part = (maps > (0.5 if scale == 1 else 0)).reshape(2, -1)
    ones = part[1].sum() / part.sum()
    zeros = (~part).sum() / ((~part).sum() + part[0].sum())
    assert value("iou", maps, shifted, QUANTITIES) == pytest.approx(50 * (ones + zeros))


def test_maps_against_labels_with_pixels_that_do_not_count():
    scores = np.eye(3)[np.array([[[0, 1], [2, 2]]])].transpose(0, 3, 1, 2)
    labels = np.array([[[0, 1], [1, 255]]], np.uint8)
    # 0: 1 of 1, 1: 1 of 2
    measures = {"y": OutputMeasure("y", SCORES, ScoreLayout(1))}
    assert value("iou", scores, scores, labels=labels, measures=measures) == 75
    assert value("iou", scores, scores, labels=[labels[0].tolist()], measures=measures) == 75
    with pytest.raises(InputError, match="of the size of the labels"):
        value("iou", scores, scores, labels=labels[:, :1], measures=measures)


IDS = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
MASK = np.ones_like(IDS)


def predicting(targets, share):
    """Probabilities of 4 tokens: the right one has a share, the others what is left."""
    rest = (1 - share) / 3
    return np.log(np.eye(4)[targets] * (share - rest) + rest)


def test_perplexity_of_the_next_input_is_negative():
    logits = np.concatenate([predicting(IDS[:, 1:], 0.5), RNG.normal(size=(2, 1, 4))], axis=1) + 7
    found = value("perplexity", logits, logits, inputs={"mask": MASK, "ids": IDS})
    assert found == pytest.approx(-2)
    assert METRICS["perplexity"].unit == ""


def test_perplexity_of_labels():
    labels = IDS.copy()
    labels[1] = -100
    logits = np.stack([predicting(IDS[0], 0.25), predicting(IDS[1], 0.9)])
    assert value("perplexity", logits, logits, labels=labels) == pytest.approx(-4)


def test_perplexity_of_sequences_of_different_lengths():
    parts = [predicting(np.array([1, 2]), 0.5), predicting(np.array([3, 3, 1]), 0.5)]
    ids = [np.array([0, 1]), np.array([2, 3, 3])]
    found = value("perplexity", parts, parts, inputs={"x": ids}, ragged=frozenset("y"))
    assert found == pytest.approx(-np.exp(-np.log([0.5, 0.5 / 3, 0.5]).mean()), rel=0.5)
    labels = [[1, 2], [3, 3, 1]]
    assert value("perplexity", parts, parts, labels=labels, ragged=frozenset("y")) == pytest.approx(
        -2
    )


def test_a_language_model_that_broke_has_a_perplexity_that_is_finite():
    logits = predicting(IDS, 0.5)
    found = value("perplexity", logits, logits * np.nan, labels=IDS)
    assert found == pytest.approx(-np.exp(700))


def test_perplexity_without_tokens():
    logits = predicting(IDS, 0.5)
    with pytest.raises(InputError, match="an integer input"):
        value("perplexity", logits, logits, inputs={"ids": IDS + 4})


def test_the_same_neighbour():
    points = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], float)
    moved = points.copy()
    moved[3] = [1, -0.1]
    # 3 has become a neighbour of 0, and 2 has lost it
    assert value("retrieval", points, moved) == 50
    tokens = np.repeat(points[:, None], 5, axis=1)
    assert value("retrieval", tokens, np.repeat(moved[:, None], 5, axis=1)) == 50
    assert value("retrieval", points, points, labels=[0, 0, 1, 0]) == 50
    with pytest.raises(InputError, match="one whole number"):
        value("retrieval", points, points, labels=["a", "b", "c", "d"])
    with pytest.raises(InputError, match="three samples"):
        value("retrieval", points[:2], points[:2])


def test_names_are_suggested():
    with pytest.raises(InputError, match="did you mean 'kappa'"):
        read_metric("kapa")
