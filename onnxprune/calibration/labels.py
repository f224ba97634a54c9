"""Labels of samples: arrays, or any objects, one for each sample."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.streams import Samples
from onnxprune.errors import InputError, first_line

Labels: TypeAlias = "NDArray[Any] | list[Any]"
"""An array whose first axis runs over samples, or a list with one object for each sample."""

_KEY = "labels"
_BATCH = 256  # samples read at a time to count them
_NUMBERS = "iubf"  # kinds of dtypes


def read_labels(source: Any, samples: Samples) -> Labels:
    """Read one label for each sample; what they mean is for those who use them.

    Args:
        source: an array of any shape and dtype whose first axis runs over samples; a list of
            numbers, or of anything else (text, boxes, mappings), which stays a list; a `.npy` file,
            a `.npz` file (the array called `labels`, or the only one), a `.json` file with a list,
            a `.jsonl` file with one value a line, or a text file with one number, several numbers
            between commas, or one text a line.
        samples: what the labels belong to, in the same order.

    Returns:
        arrays as they are; an array of a flat list of numbers and of a file of numbers; else a
        list.

    Raises:
        InputError: when the source cannot be read, or holds another number of labels.
        CalibrationError: for unusable samples.
    """
    path = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
    where = f"labels {path}" if path is not None else "labels"
    try:
        labels = _from_path(Path(path), where) if path is not None else _from_object(source)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{where}: cannot be read: {first_line(error)}") from error
    if isinstance(labels, np.ndarray) and not labels.ndim:
        raise InputError(
            f"{where}: expected an array or a list with one label for each sample, such as whole "
            f"numbers, not {type(source if path is None else labels.item()).__name__}"
        )
    count = samples.count if samples.count is not None else _counted(samples)
    if len(labels) != count:
        raise InputError(f"{where}: {len(labels)} labels for {count} samples; give one for each")
    return labels


def take_labels(labels: Labels, numbers: NDArray[np.int64]) -> Labels:
    """Labels of some samples.

    Args:
        labels: of all samples.
        numbers: of the samples, int64 [some], from 0.

    Raises:
        InputError: when there are fewer labels than that.
    """
    if numbers.max(initial=-1) >= len(labels):
        raise InputError(
            f"{len(labels)} labels for at least {int(numbers.max()) + 1} samples; give one for each"
        )
    if isinstance(labels, np.ndarray):
        return np.asarray(labels[numbers])
    return [labels[number] for number in numbers]


def class_labels(labels: Labels) -> NDArray[np.int64] | None:
    """Labels as indices of classes, int64 [samples, ...]; None where they are no whole numbers."""
    numbers = _numbers(labels)
    if numbers is None:
        return None
    with np.errstate(invalid="ignore"):
        classes = numbers.astype(np.int64)
    return classes if bool((classes == numbers).all()) else None


def target_labels(labels: Labels) -> NDArray[Any]:
    """Labels as targets of a regression: int64 where all are whole, else float64 [samples, ...].

    Raises:
        InputError: when they are no numbers.
    """
    numbers = _numbers(labels)
    if numbers is None:
        raise InputError("labels: expected numbers, one for each sample, as targets of the loss")
    classes = class_labels(numbers)
    return classes if classes is not None else numbers.astype(np.float64)


def _numbers(labels: Labels) -> NDArray[Any] | None:
    """Labels as an array of numbers; None where they are something else."""
    try:
        array = np.asarray(labels)
    except ValueError:  # lists of unequal length
        return None
    return array if array.dtype.kind in _NUMBERS else None


def _from_object(source: Any) -> Labels:
    if not isinstance(source, Sequence):
        return np.asarray(source)
    numbers = _numbers(list(source))
    return numbers if numbers is not None and numbers.ndim == 1 else list(source)


def _from_path(path: Path, where: str) -> Labels:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            if _KEY not in names and len(names) != 1:
                raise InputError(
                    f"{where}: holds {', '.join(names) or 'nothing'}; call the array of labels "
                    f"{_KEY!r}"
                )
            stored: NDArray[Any] = file[_KEY if _KEY in names else names[0]]
            return stored
    if path.suffix == ".npy":
        array: NDArray[Any] = np.load(path, allow_pickle=False)
        return array
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        values = json.loads(text)
        if not isinstance(values, list):
            # the caller says which file
            raise ValueError(f"a list with one label for each sample, not {type(values).__name__}")
        return _from_object(values)
    if path.suffix == ".jsonl":
        return _from_object([json.loads(line) for line in text.splitlines() if line.strip()])
    return _from_text(text)


def _from_text(text: str) -> Labels:
    """Numbers where every line holds as many, else the lines."""
    lines = text.splitlines()
    try:
        numbers = np.loadtxt(lines, ndmin=1, delimiter=",")
    except ValueError:
        return lines
    classes = class_labels(numbers)
    return classes if classes is not None else numbers


def _counted(samples: Samples) -> int:
    rows = (samples.axes.rows(feed) for feed in samples.batches(_BATCH))
    return sum(1 if count is None else count for count in rows)
