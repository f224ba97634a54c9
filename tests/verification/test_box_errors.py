"""How well boxes follow: by their size, where the original sees an object."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.verification.box_errors import BoxErrors, boxes_followed
from onnxprune.verification.measures import BoxForm, OutputKind, OutputMeasure

SCORES = OutputMeasure("scores", OutputKind.SCORES, logs=False)
BOXES = OutputMeasure("boxes", OutputKind.QUANTITIES, rows_of="scores", boxes=BoxForm.CORNERS)
MEASURES = {"scores": SCORES, "boxes": BOXES}
RNG = np.random.default_rng(0)
FACE = np.arange(50) < 2


def outputs(samples: int = 4) -> dict[str, Any]:
    scores = np.stack(samples * [np.where(FACE[:, None], [0.1, 0.9], [0.9, 0.1])])
    places, sizes = RNG.random((samples, 50, 2)), 0.1 + RNG.random((samples, 50, 2))
    return {"scores": scores, "boxes": np.concatenate([places, places + sizes], axis=-1)}


def moved(original: dict[str, Any], share: float, where: Any) -> dict[str, Any]:
    """Boxes off by a share of their width and height."""
    boxes = original["boxes"]
    sizes = np.tile(boxes[..., 2:] - boxes[..., :2], 2)
    return original | {"boxes": np.where(where[:, None], boxes + share * sizes, boxes)}


@pytest.mark.parametrize(("share", "followed"), [(0, 1), (0.1, 0.75), (0.2, 0), (0.4, -3)])
def test_boxes_that_overlap_by_half_do_not_follow(share: float, followed: float) -> None:
    original = outputs()
    other = moved(original, share, FACE)
    assert boxes_followed(BOXES, MEASURES, original, other) == pytest.approx(followed)


def test_boxes_without_an_object_do_not_count() -> None:
    original = outputs()
    assert boxes_followed(BOXES, MEASURES, original, moved(original, 3.0, ~FACE)) == 1


def test_batches_are_one() -> None:
    original = outputs(6)
    other = moved(original, 0.1, np.arange(50) < 1)
    errors = BoxErrors(BOXES, MEASURES)
    for rows in (slice(0, 2), slice(2, 6)):
        errors.add(*({n: a[rows] for n, a in each.items()} for each in (original, other)))
    assert errors.r_squared == pytest.approx(1 - 0.25 / 2)


def test_values_that_are_no_numbers_are_infinitely_far() -> None:
    original = outputs()
    other = original | {"boxes": original["boxes"] * np.nan}
    assert boxes_followed(BOXES, MEASURES, original, other) == -np.inf


def test_nothing_can_be_told_where_there_is_no_object() -> None:
    original = outputs()
    original["scores"] = original["scores"][:, ::-1] * 0 + [0.9, 0.1]
    assert boxes_followed(BOXES, MEASURES, original, original) is None
