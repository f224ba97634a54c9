"""Labels of samples, for measuring and for losses: arrays, .npy, .npz or one number a line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.feeds import batch_rows
from onnxprune.calibration.streams import Samples
from onnxprune.errors import InputError

_KEY = "labels"
_BATCH = 256


def read_labels(source: Any, samples: Samples, *, whole: bool = True) -> NDArray[Any]:
    """Read one label for each sample.

    Args:
        source: an array-like of whole numbers; a `.npy` file, a `.npz` file (the array called
            `labels`, or the only one) or a text file with one number a line.
        samples: what the labels belong to, in the same order.
        whole: take whole numbers only, else any number: targets of a regression.

    Returns:
        int64 [samples, ...], or float64 where not all numbers are whole.

    Raises:
        InputError: when the source cannot be read, or holds another number of labels.
        CalibrationError: for unusable samples.
    """
    path = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
    where = f"labels {path}" if path is not None else "labels"
    try:
        raw = np.asarray(source) if path is None else _from_path(Path(path), where)
        with np.errstate(invalid="ignore"):
            labels = raw.astype(np.int64)
        numbers = raw.dtype.kind in "iubf" and raw.ndim > 0
        all_whole = numbers and bool((labels == raw).all())
    except (OSError, ValueError, TypeError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{where}: cannot be read: {line}") from error
    if not (all_whole if whole else numbers):
        kind = "whole numbers" if whole else "numbers"
        raise InputError(f"{where}: expected {kind}, one for each sample")
    count = samples.count if samples.count is not None else _counted(samples)
    if len(labels) != count:
        raise InputError(f"{where}: {len(labels)} labels for {count} samples; give one for each")
    return labels if all_whole else raw.astype(np.float64)


def _from_path(path: Path, where: str) -> NDArray[Any]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            if _KEY not in names and len(names) != 1:
                raise InputError(
                    f"{where}: holds {', '.join(names) or 'nothing'}; call the array of labels "
                    f"{_KEY!r}"
                )
            found: NDArray[Any] = file[_KEY if _KEY in names else names[0]]
            return found
    if path.suffix == ".npy":
        stored: NDArray[Any] = np.load(path, allow_pickle=False)
        return stored
    return np.loadtxt(path, ndmin=1, delimiter=",")


def _counted(samples: Samples) -> int:
    rows = (batch_rows(feed, samples.specs) for feed in samples.batches(_BATCH))
    return sum(1 if one is None else one for one in rows)
