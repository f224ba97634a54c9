"""More calibration samples from those there are, without labels.

Images are mirrored, moved, seen nearer, which leaves what they show as it is for most tasks, not
for all (letters, digits); sequences of tokens go on as another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.sample_axes import SampleAxes
from onnxprune.errors import InputError

Feed: TypeAlias = Mapping[str, NDArray[Any]]

_SHARE = 0.5  # of the samples of a batch that are seen in another way
_SHORTEST = 4  # sequences that are spliced
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_SHIFT = 0.125  # of height and width
_NEAREST = 0.8  # of height and width, that the smallest crop shows


def augmented(
    feed: Feed, axes: SampleAxes, views: Sequence[str], rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Put views of a batch behind it.

    Args:
        feed: a batch; what a view does not change is repeated as it is, inputs without samples are
            not.
        axes: where samples lie.
        views: names of `VIEWS`.
        rng: draws.

    Raises:
        InputError: when there is no input that a view is for.
    """
    return axes.joined([feed, *(viewed(feed, view, rng) for view in views)])


def varied(feed: Feed, views: Sequence[str], rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """A batch with about half of the samples in each view that is named.

    Args:
        feed: a batch.
        views: names of `VIEWS`.
        rng: chooses samples, and draws.

    Raises:
        InputError: when there is no input that a view is for.
    """
    result = dict(feed)
    for view in views:
        changed = viewed(result, view, rng)
        names = _changed_by(view, feed)
        chosen = rng.random(len(feed[names[0]])) < _SHARE
        for name in names:
            result[name] = np.where(
                chosen.reshape(-1, *[1] * (feed[name].ndim - 1)), changed[name], result[name]
            )
    return result


def viewed(feed: Feed, view: str, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """A batch as one view has it.

    Args:
        feed: a batch.
        view: one of `VIEWS`.
        rng: draws.

    Raises:
        InputError: when there is no input that the view is for.
    """
    names = _changed_by(view, feed)
    if not names:
        raise InputError(f"augmentation {view} is for {VIEWS[view].what}: no input holds any")
    return {**feed, **VIEWS[view].change({name: feed[name] for name in names}, rng)}


def suits(view: str, feed: Feed) -> bool:
    """Whether a view can be made of these inputs."""
    return bool(_changed_by(view, feed))


def _changed_by(view: str, feed: Feed) -> list[str]:
    """Names of the inputs that a view changes."""
    return VIEWS[view].inputs(feed)


def _images(feed: Feed) -> list[str]:
    return [name for name, array in feed.items() if array.ndim == 4 and array.dtype.kind == "f"]


def _sequences(feed: Feed) -> list[str]:
    """Inputs of tokens: integers [N, length], all of one shape."""
    rows = {name: array for name, array in feed.items() if array.ndim == 2}
    shapes = {array.shape for array in rows.values()}
    alike = len(shapes) == 1 and len(rows) == len(feed)
    whole = all(array.dtype.kind in "iu" for array in rows.values())
    return list(rows) if alike and whole and shapes.pop()[1] >= _SHORTEST else []


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


def _splice(
    arrays: Mapping[str, NDArray[Any]], rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Begin with one sequence and go on with another, each token where it was.

    They change over before the shorter of both ends, so that padding stays at the end.
    """
    count = len(next(iter(arrays.values())))
    others = rng.permutation(count)
    ends = np.max([_ends(array) for array in arrays.values()], axis=0)
    place = rng.integers(1, np.maximum(np.minimum(ends, ends[others]), 2))
    result = {}
    for name, array in arrays.items():
        first = np.arange(array.shape[1]) < place[:, None]
        result[name] = np.where(first, array, array[others])
    return result


def _ends(array: NDArray[Any]) -> NDArray[np.int64]:
    """Length of each row without what its last entry repeats, int64 [rows]."""
    differs = array != array[:, -1:]
    return np.asarray(np.where(differs.any(axis=1), array.shape[1] - differs[:, ::-1].argmax(1), 0))


def _each(
    change: Callable[[NDArray[Any], np.random.Generator], NDArray[Any]],
) -> Callable[[Mapping[str, NDArray[Any]], np.random.Generator], dict[str, NDArray[Any]]]:
    """Change one input after the other."""
    return lambda arrays, rng: {name: change(array, rng) for name, array in arrays.items()}


@dataclass(frozen=True)
class View:
    """A way to look at samples again.

    Attributes:
        what: it is for, in words.
        inputs: names of the inputs of a batch that it changes.
        change: makes others of them.
    """

    what: str
    inputs: Callable[[Feed], list[str]]
    change: Callable[[Mapping[str, NDArray[Any]], np.random.Generator], dict[str, NDArray[Any]]]


_PICTURES = "images, float arrays of four axes"

VIEWS: Mapping[str, View] = {
    "flip": View(_PICTURES, _images, _each(_flip)),
    "shift": View(_PICTURES, _images, _each(_shift)),
    "crop": View(_PICTURES, _images, _each(_crop)),
    "splice": View("sequences of tokens", _sequences, _splice),
}
"""Ways to look at samples again, by name."""
