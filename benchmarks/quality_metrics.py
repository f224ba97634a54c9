"""How well a pruned model still does the work of a subject of `quality.py`.

A `Measure` gets what the original and what the pruned model answer to the test samples (a tuple of
one array for each output, the first axis counts samples) and the test file as a mapping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from quality_feeds import LABELS, RATE

Outputs: TypeAlias = tuple[Any, ...]
Measure: TypeAlias = Callable[[Outputs, Outputs, Mapping[str, Any]], dict[str, float]]

FACE, SAME, FOUND = 0.7, 0.3, 0.5
"""Score above which an anchor is a face, overlap from which on two boxes are one face, and overlap
above which a face of the original counts as found."""


def classes(wanted: Outputs, got: Outputs, samples: Mapping[str, Any]) -> dict[str, float]:
    """`class_metrics` of the last output."""
    return class_metrics(_last(wanted), _last(got), samples[LABELS])


def embeddings(wanted: Outputs, got: Outputs, samples: Mapping[str, Any]) -> dict[str, float]:
    """`embedding_metrics` of the last output."""
    return embedding_metrics(_last(wanted), _last(got))


def class_maps(wanted: Outputs, got: Outputs, samples: Mapping[str, Any]) -> dict[str, float]:
    """`map_metrics` of the last output, scores [n, classes, height, width]."""
    return map_metrics(_last(wanted).argmax(1), _last(got).argmax(1), samples[LABELS])


def voices(wanted: Outputs, got: Outputs, samples: Mapping[str, Any]) -> dict[str, float]:
    """`rate_metrics` of the last output, one probability for each sample."""
    answers = (_last(outputs)[:, 0] > 0.5 for outputs in (wanted, got))
    return rate_metrics(*answers, samples[LABELS] == 1, samples[RATE])


def detections(wanted: Outputs, got: Outputs, samples: Mapping[str, Any]) -> dict[str, float]:
    """`face_metrics` of two outputs, scores [n, anchors, 2] and boxes [n, anchors, 4]."""
    first, second = (
        [faces(scores[:, 1], boxes) for scores, boxes in zip(*outputs, strict=True)]
        for outputs in (wanted, got)
    )
    return face_metrics(first, second)


def _last(outputs: Outputs) -> Any:
    return outputs[-1].astype(np.float64)


def class_metrics(wanted: Any, got: Any, labels: Any) -> dict[str, float]:
    """Accuracy, agreement with the original, and KL(original || pruned)."""
    first, second = log_probabilities(wanted), log_probabilities(got)
    best = got.argmax(1)
    return {
        "accuracy": float((best == labels).mean()),
        "agreement": float((best == wanted.argmax(1)).mean()),
        "kl": float((np.exp(first) * (first - second)).sum(1).mean()),
    }


def log_probabilities(scores: Any) -> Any:
    """Of logits, or of probabilities where a model ends in them."""
    if (scores >= 0).all() and np.allclose(scores.sum(1), 1, atol=1e-4):
        return np.log(np.maximum(scores, 1e-12))
    shifted = scores - scores.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def embedding_metrics(wanted: Any, got: Any) -> dict[str, float]:
    """Mean cosine to the original, and how often the nearest other sample is the same one.

    `neighbour`: samples and those they are compared with all embedded by the pruned model;
    `retrieval`: compared with an index that the original made.
    """
    first, second = (
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (wanted, got)
    )
    true = nearest(first, first)
    return {
        "cosine": float((first * second).sum(1).mean()),
        "neighbour": float((nearest(second, second) == true).mean()),
        "retrieval": float((nearest(second, first) == true).mean()),
    }


def nearest(vectors: Any, index: Any) -> Any:
    """Place in the index of the most similar vector at another place, for unit vectors [n, d]."""
    similar = vectors @ index.T
    np.fill_diagonal(similar, -np.inf)
    return similar.argmax(1)


def map_metrics(wanted: Any, got: Any, truth: Any) -> dict[str, float]:
    """Mean intersection over union of the true classes, and pixels that agree with the original.

    The maps hold class numbers, int [n, height, width]. Intersections and unions are of all pixels
    of all maps together.
    """
    share = []
    for number in np.unique(truth):
        true, found = truth == number, got == number
        share.append((true & found).sum() / (true | found).sum())
    return {"iou": float(np.mean(share)), "agreement": float((got == wanted).mean())}


def rate_metrics(wanted: Any, got: Any, labels: Any, rates: Any) -> dict[str, float]:
    """Accuracy and agreement with the original of yes or no, bool [n], for each sampling rate."""
    figures = {}
    for rate in np.unique(rates):
        mine = rates == rate
        figures[f"accuracy_{rate}"] = float((got == labels)[mine].mean())
        figures[f"agreement_{rate}"] = float((got == wanted)[mine].mean())
    return figures


def face_metrics(wanted: list[Any], got: list[Any]) -> dict[str, float]:
    """F1 of the found faces against those of the original, and how many are found.

    Args:
        wanted: for each image the original's boxes, float [faces, 4], highest scores first.
        got: the same of the pruned model.
    """
    again = sum(map(found_again, wanted, got))
    faces_wanted, faces_got = sum(map(len, wanted)), sum(map(len, got))
    return {"f1": 2 * again / max(faces_wanted + faces_got, 1), "faces": faces_got, "again": again}


def faces(scores: Any, boxes: Any) -> Any:
    """Boxes left by non-maximum suppression, float [faces, 4], highest scores first.

    Args:
        scores: of being a face, float [anchors].
        boxes: left, top, right and bottom of each anchor, float [anchors, 4].
    """
    order = np.argsort(-scores)
    order = order[scores[order] > FACE]
    boxes = boxes[order]
    apart = overlaps(boxes, boxes) < SAME
    kept = np.ones(len(boxes), bool)
    for place in range(len(boxes)):
        if kept[place]:
            kept[place + 1 :] &= apart[place, place + 1 :]
    return boxes[kept]


def found_again(wanted: Any, got: Any) -> int:
    """How many boxes have a partner: each in turn takes the one that covers it best."""
    if not len(got):
        return 0
    covered = overlaps(wanted, got)
    count = 0
    for row in covered:
        best = row.argmax()
        if row[best] > FOUND:
            count += 1
            covered[:, best] = -1  # taken
    return count


def overlaps(first: Any, second: Any) -> Any:
    """Intersection over union of all pairs of boxes, float [boxes of first, boxes of second]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    return common / (areas[0][:, None] + areas[1] - common + 1e-9)
