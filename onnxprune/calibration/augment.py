"""More calibration images from those there are, without labels: mirrored, moved, seen nearer.

All leave what a picture shows as it is for most tasks, not for all (letters, digits): the user has
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
_NEAREST = 0.8  # of height and width, that the smallest crop shows


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
    if not any(is_image(array) for array in feed.values()):
        raise InputError("augmentation is for images: no input is a float array of four axes")
    made = [
        {name: VIEWS[v](array, rng) if is_image(array) else array for name, array in feed.items()}
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
    if not any(is_image(array) for array in feed.values()):
        raise InputError("augmentation is for images: no input is a float array of four axes")
    return {
        name: _varied(array, views, rng) if is_image(array) else array
        for name, array in feed.items()
    }


def _varied(array: NDArray[Any], views: Sequence[str], rng: np.random.Generator) -> NDArray[Any]:
    result = array.copy()
    for view in views:
        chosen = rng.random(len(array)) < 0.5
        if chosen.any():
            result[chosen] = VIEWS[view](result[chosen], rng)
    return result


def is_image(array: NDArray[Any]) -> bool:
    """Whether an input may be a batch of images."""
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


def _crop(array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Show a part of every image, at least four fifths of its height and width, at full size."""
    axes = _axes(array)
    result = np.empty_like(array)
    for number in range(len(array)):
        image, share = array[number], rng.uniform(_NEAREST, 1.0)
        for axis in axes:
            size = array.shape[axis]
            start = rng.uniform(0, size * (1 - share))
            image = _resampled(image, axis - 1, start, share)
        result[number] = image
    return result


def _resampled(image: NDArray[Any], axis: int, start: float, share: float) -> NDArray[Any]:
    """A part of an axis at the axis' full extent, linearly interpolated."""
    size = image.shape[axis]
    places = np.clip(start + (np.arange(size) + 0.5) * share - 0.5, 0, size - 1)
    low = np.minimum(places.astype(np.int64), max(size - 2, 0))
    shape = [1] * image.ndim
    shape[axis] = size
    part = (places - low).reshape(shape).astype(image.dtype)
    first = np.take(image, low, axis=axis)
    second = np.take(image, np.minimum(low + 1, size - 1), axis=axis)
    return np.asarray(first + part * (second - first))


VIEWS: Mapping[str, Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]] = {
    "flip": _flip,
    "shift": _shift,
    "crop": _crop,
}
"""Ways to look at an image again, by name."""
