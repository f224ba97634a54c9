"""Mean average precision of detectors in the forms in which detectors answer."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import InputError
from onnxprune.verification.answers import Answers
from onnxprune.verification.metrics import METRICS

RNG = np.random.default_rng(0)
SAMPLES, ANCHORS = 6, 40
LOW = RNG.random((SAMPLES, ANCHORS, 2)) * 0.8
BOXES = np.concatenate([LOW, LOW + 0.05 + 0.1 * RNG.random((SAMPLES, ANCHORS, 2))], axis=2)
SCORES = np.zeros((SAMPLES, ANCHORS, 3))
SCORES[:, :3, 1], SCORES[:, 3:5, 2] = 0.9, 0.8
SCORES[..., 0] = 1 - SCORES.sum(axis=2)
"""Three objects of class 1 and two of class 2 in each sample, everything else is background."""


def value(reference, outputs=None, labels=None):
    answers = Answers(reference, reference, labels, numbers=np.arange(SAMPLES))
    if outputs is not None:
        answers = Answers(outputs, reference, labels, numbers=np.arange(SAMPLES))
    return METRICS["map"].value(answers)


def selected(scores, boxes, columns=(1, 2)):
    """What a graph with non-maximum suppression gives: some boxes with a score and a class."""
    best = scores[..., list(columns)]
    order = np.argsort(-best.max(axis=2), axis=1)[:, :10]
    rows = np.arange(len(scores))[:, None]
    classes = np.array(columns)[best.argmax(axis=2)]
    return boxes[rows, order], best.max(axis=2)[rows, order], classes[rows, order]


def forms(scores, boxes):
    """The same detections in every form."""
    chosen, best, classes = selected(scores, boxes)
    low, high = boxes[..., :2], boxes[..., 2:]
    centred = np.concatenate([(low + high) / 2, high - low], axis=2)
    sure = [row >= 0.5 for row in best]
    return {
        "anchors": {"s": scores, "b": boxes},
        "sigmoid": {"b": boxes, "s": scores[..., 1:]},
        "classes first": {"b": boxes, "s": scores.transpose(0, 2, 1)},
        "centres": {"b": centred, "s": scores},
        "axis between": {"b": boxes[:, :, None], "s": scores},
        "half": {"b": boxes.astype(np.float16), "s": scores.astype(np.float16)},
        "selected": {"b": chosen, "s": best, "c": classes.astype(np.float32)},
        "one output": {"d": np.concatenate([chosen, best[..., None], classes[..., None]], axis=2)},
        "lists": {
            "b": [row[kept] for row, kept in zip(chosen, sure, strict=True)],
            "c": [row[kept] for row, kept in zip(classes, sure, strict=True)],
            "s": [row[kept] for row, kept in zip(best, sure, strict=True)],
        },
    }


FORMS = forms(SCORES, BOXES)


@pytest.mark.parametrize("form", FORMS)
def test_the_original_finds_what_it_finds(form):
    assert value(FORMS[form]) == pytest.approx(100)


@pytest.mark.parametrize("form", FORMS)
def test_objects_that_are_not_found_any_more(form):
    """One of three objects of class 1 is lost, and both of class 2."""
    worse = SCORES.copy()
    worse[:, 2:5] = [1, 0, 0]
    assert value(FORMS[form], forms(worse, BOXES)[form]) == pytest.approx(100 * (2 / 3) / 2)


def test_a_model_that_always_says_background_finds_nothing():
    empty = np.broadcast_to([1.0, 0, 0], SCORES.shape)
    assert (SCORES.argmax(axis=2) == empty.argmax(axis=2)).mean() > 0.85
    assert value(FORMS["anchors"], {"s": empty, "b": BOXES}) == 0


def test_boxes_elsewhere_are_wrong():
    moved = BOXES + np.array([0.5, 0, 0.5, 0])
    assert value(FORMS["anchors"], {"s": SCORES, "b": moved}) < 10


def test_something_that_is_not_there_counts_by_its_score():
    """False ones with the largest scores stand before 18 right ones of class 1, one a sample."""
    more = SCORES.copy()
    more[:, 10] = [0.05, 0.95, 0]
    assert value(FORMS["anchors"], {"s": more, "b": BOXES}) == pytest.approx(
        (100 * 18 / 24 + 100) / 2
    )


def test_boxes_of_one_object_count_once():
    scores, boxes = SCORES.copy(), BOXES.copy()
    scores[:, 20:23], boxes[:, 20:23] = scores[:, :3] * [1, 0.9, 1] + [0.09, 0, 0], boxes[:, :3]
    assert value(FORMS["anchors"], {"s": scores, "b": boxes}) == pytest.approx(100)


TRUTH = [{"boxes": BOXES[n, :5].tolist(), "classes": [1, 1, 1, 2, 2]} for n in range(SAMPLES)]


@pytest.mark.parametrize(
    "labels",
    [
        TRUTH,
        [{"boxes": each["boxes"], "labels": each["classes"]} for each in TRUTH],
        [[[*b, c] for b, c in zip(e["boxes"], e["classes"], strict=True)] for e in TRUTH],
    ],
)
def test_labels(labels):
    assert value(FORMS["anchors"], labels=labels) == pytest.approx(100)
    fewer = [*labels[:-1], [] if isinstance(labels[0], list) else {"boxes": [], "classes": []}]
    assert value(FORMS["anchors"], labels=fewer) < 100


def test_labels_of_the_only_class():
    scores = np.stack([1 - SCORES[..., 1], SCORES[..., 1]], axis=2)
    boxes = [sample[:3] for sample in BOXES]
    assert value({"s": scores, "b": BOXES}, labels=boxes) == pytest.approx(100)
    assert value({"s": SCORES[..., 1:2], "b": BOXES}, labels=boxes) == pytest.approx(100)
    with pytest.raises(InputError, match="a class for each box"):
        value(FORMS["anchors"], labels=boxes)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"s": SCORES}, r"boxes \[samples, anchors, 4\].*s \[40, 3\]"),
        ({"s": SCORES * 20 - 10, "b": BOXES}, "s has the shape of scores .* between -10 and 10"),
        ({"s": SCORES, "b": BOXES - 2 * LOW.mean(axis=2, keepdims=True) - 1}, None),
        ({"s": SCORES, "b": RNG.normal(size=BOXES.shape)}, "neither corners nor centres"),
        ({"s": SCORES * 0.4 + [0.6, 0, 0], "b": BOXES}, "finds nothing .*largest .* is 0.36"),
        ({"s": BOXES / 2, "b": BOXES}, "both have four columns"),
    ],
)
def test_outputs_that_are_no_detections(outputs, words):
    if words is None:  # corners may be anywhere
        assert value(outputs) == pytest.approx(100)
        return
    with pytest.raises(InputError, match=words):
        value(outputs)


@pytest.mark.parametrize("label", ["a cat", {"cats": 3}, [[1, 2, 3]], {"boxes": [[1, 2]]}, 7])
def test_labels_that_are_no_boxes(label):
    with pytest.raises(InputError, match="one label for each sample"):
        value(FORMS["anchors"], labels=[label] * SAMPLES)
