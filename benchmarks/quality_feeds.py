"""Samples of `quality.py` as feeds; numpy alone, so that every environment can import it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from made_data import RATES

Arrays: TypeAlias = dict[str, Any]
MASK, LABELS, RATE = "attention_mask", "labels", "sr"


def load_arrays(path: Path | str, samples: int | None = None) -> Arrays:
    """The inputs in an .npz file, labels left out; only the first samples when a number is given.

    The first axis of every array counts samples.
    """
    with np.load(path) as file:
        return {name: file[name][:samples] for name in file.files if name != LABELS}


def batches(arrays: Arrays, size: int, *, seed: int = 0) -> list[tuple[Any, Arrays]]:
    """Feeds of at most so many samples, each with the positions of its samples.

    Samples that come with an attention mask or a sampling rate are put together with others of
    their length and cut to it: padding costs time and would be most of what calibration sees. A
    rate is given once for a feed, as a scalar. The feeds then come in random order, so that the
    first few are typical.
    """
    count = len(next(iter(arrays.values())))
    if MASK not in arrays and RATE not in arrays:
        parts = [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
        return [(part, {name: array[part] for name, array in arrays.items()}) for part in parts]
    kinds = arrays[MASK].sum(1) if MASK in arrays else arrays[RATE]
    feeds = []
    for kind in np.unique(kinds):
        rows = np.flatnonzero(kinds == kind)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            feeds.append((part, cut(arrays, part, kind)))
    order = np.random.default_rng(seed).permutation(len(feeds))
    return [feeds[index] for index in order]


def cut(arrays: Arrays, rows: Any, kind: Any) -> Arrays:
    """Samples of one kind without their padding: of so many tokens, or of one sampling rate."""
    if MASK in arrays:
        return {name: array[rows, :kind] for name, array in arrays.items()}
    feed = {
        name: array[rows, : array.shape[1] * kind // max(RATES)]
        for name, array in arrays.items()
        if name != RATE
    }
    return feed | {RATE: np.array(kind)}


def calibration(path: Path | str, samples: int | None = None) -> Arrays | list[Arrays]:
    """What onnxprune is given: whole arrays, or feeds where the samples have several lengths."""
    arrays = load_arrays(path, samples)
    if MASK in arrays or RATE in arrays:
        return [feed for _, feed in batches(arrays, 32)]
    return arrays
