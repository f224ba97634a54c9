"""Which views of samples are more of the same to a teacher.

A view is as good as another sample where the teacher's features have the same mean: of feature b,
averaged over places, with channels c and deviation s_c over samples,

    d = mean over b and c of ((mean'_c - mean_c) / s_c)^2

With N samples of the same kind it is about 2 / N. Mirrored photographs pass, mirrored digits do
not: no label is needed to tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.augment import suits, viewed
from onnxprune.distillation.pool import Part
from onnxprune.distillation.teacher import Teacher

_APART = 0.01
"""Distance that is of no account."""
_SMALLEST = 1e-6

CHOSEN = ("flip", "splice")
"""Views that are looked at."""


def fitting_views(
    teacher: Teacher, parts: Sequence[Part], rng: np.random.Generator
) -> tuple[str, ...]:
    """Choose views.

    Args:
        teacher: of at least one feature.
        parts: samples.
        rng: draws views.

    Returns:
        names of views.
    """
    plain = _means(teacher, [part.feed for part in parts])
    count = sum(part.rows for part in parts)
    chosen = []
    for view in CHOSEN:
        if not suits(view, parts[0].feed):
            continue
        feeds = [viewed(part.feed, view, rng) for part in parts]
        if _distance(plain, _means(teacher, feeds)) <= _APART + 2 / count:
            chosen.append(view)
    return tuple(chosen)


def _means(
    teacher: Teacher, feeds: Sequence[Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[np.float64]]:
    """Features averaged over places, [samples, channels] each."""
    parts: dict[str, list[NDArray[np.float64]]] = {}
    for feed in feeds:
        for name, array in teacher.run(feed)[1].items():
            places = range(2, array.ndim) if array.ndim > 3 else range(1, array.ndim - 1)
            mean = array.mean(axis=tuple(places), dtype=np.float64)
            parts.setdefault(name, []).append(mean)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _distance(
    plain: Mapping[str, NDArray[np.float64]], other: Mapping[str, NDArray[np.float64]]
) -> float:
    apart = []
    for name, array in plain.items():
        moved = other[name].mean(axis=0) - array.mean(axis=0)
        apart.append(np.mean((moved / (array.std(axis=0) + _SMALLEST)) ** 2))
    return float(np.mean(apart))
