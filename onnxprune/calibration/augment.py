"""More calibration images from those there are, without labels: mirrored, and moved a little.

Both leave what a picture shows as it is for most tasks, not for all (letters, digits): the user has
to ask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.sample_axes import SampleAxes
from onnxprune.errors import InputError

_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_SHIFT = 0.125  # of height and width


def augmented(
    feed: Mapping[str, NDArray[Any]],
    axes: SampleAxes,
    views: Sequence[str],
    rng: np.random.Generator,
) -> dict[str, NDArray[Any]]:
    """Put views of a batch behind it.

    Args:
        feed: a batch; arrays [N, C, H, W] or [N, H, W, C] of floats are images, others are
            repeated as they are, those without samples are not.
        axes: where samples lie.
        views: names of `VIEWS`.
        rng: for random shifts.

    Raises:
        InputError: when there is no image among the inputs.
    """
    if not any(_is_image(array) for array in feed.values()):
        raise InputError("augmentation is for images: no input is a float array of four axes")
    made = [
        {name: VIEWS[v](array, rng) if _is_image(array) else array for name, array in feed.items()}
        for v in views
    ]
    return axes.joined([feed, *made])


def varied(
    feed: Mapping[str, NDArray[Any]], views: Sequence[str], rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """A batch with each image seen in another way: about half of them in each view that is named.

    Args:
        feed: a batch; see `augmented`.
        views: names of `VIEWS`.
        rng: chooses images, and draws.

    Raises:
        InputError: when there is no image among the inputs.
    """
    if not any(_is_image(array) for array in feed.values()):
        raise InputError("augmentation is for images: no input is a float array of four axes")
    return {
        name: _varied(array, views, rng) if _is_image(array) else array
        for name, array in feed.items()
    }


def _varied(array: NDArray[Any], views: Sequence[str], rng: np.random.Generator) -> NDArray[Any]:
    result = array.copy()
    for view in views:
        chosen = rng.random(len(array)) < 0.5
        if chosen.any():
            result[chosen] = VIEWS[view](result[chosen], rng)
    return result


def _is_image(array: NDArray[Any]) -> bool:
    return array.ndim == 4 and array.dtype.kind == "f"


def _axes(array: NDArray[Any]) -> tuple[int, int]:
    """Axes of height and width: channels come first unless only the last axis can be channels."""
    last = array.shape[3] in _CHANNELS and array.shape[1] not in _CHANNELS
    return (1, 2) if last else (2, 3)


def _flip(array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    del rng
    return np.flip(array, _axes(array)[1])


def _shift(array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Move every image by up to an eighth of its size; what comes in at the edge is mirrored."""
    axes = _axes(array)
    margins = [round(array.shape[axis] * _SHIFT) for axis in axes]
    widths = [(0, 0)] * 4
    for axis, margin in zip(axes, margins, strict=True):
        widths[axis] = (margin, margin)
    padded = np.pad(array, widths, mode="reflect")
    result = np.empty_like(array)
    for number in range(len(array)):
        window = [slice(None)] * 3
        for axis, margin in zip(axes, margins, strict=True):
            start = int(rng.integers(0, 2 * margin + 1))
            window[axis - 1] = slice(start, start + array.shape[axis])
        result[number] = padded[number][tuple(window)]
    return result


VIEWS: Mapping[str, Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]] = {
    "flip": _flip,
    "shift": _shift,
}
"""Ways to look at an image again, by name."""
