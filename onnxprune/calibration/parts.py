"""Samples divided: some to fit layers on, the others kept out of it to measure the result on."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from onnxprune.calibration.feeds import batch_rows
from onnxprune.calibration.streams import Samples
from onnxprune.errors import CalibrationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxprune.calibration.feeds import Array, Feed

__all__ = ["Numbered", "divide", "numbered"]

Numbered: TypeAlias = "tuple[Array, Feed]"
"""Numbers of samples, int64 [rows], and the feed they are in."""

_EVERY = 4


def divide(samples: Samples) -> tuple[Samples, Samples]:
    """Keep every fourth sample out.

    Whole feeds are kept out where the model fixes the size of its batches, and where feeds have no
    common first axis.

    Returns:
        those to fit on, those kept out.

    Raises:
        CalibrationError: when there are too few to keep any out.
    """
    parts = _Part(samples, held=False), _Part(samples, held=True)
    if next(parts[1].batches(_EVERY), None) is None:
        raise CalibrationError(
            f"too few samples to keep any out of calibration for measuring; give {_EVERY} or more"
        )
    return parts


def numbered(samples: Samples, size: int) -> Iterator[Numbered]:
    """Go through samples in batches as `Samples.batches` does, with their numbers.

    Numbers count what the samples came from, also where they are only a part of it.
    """
    if isinstance(samples, _Part):
        yield from samples.numbered(size)
        return
    done = 0
    for feed in samples.batches(size):
        rows = batch_rows(feed, samples.specs)
        rows = 1 if rows is None else rows
        yield np.arange(done, done + rows), feed
        done += rows


class _Part(Samples):
    """Every fourth sample of a source, or all others."""

    def __init__(self, source: Samples, *, held: bool) -> None:
        self.specs = source.specs
        self.count = None
        self._source = source
        self._held = held
        fixed = isinstance((self.specs[0].shape or (None,))[0], int)
        self._whole = fixed
        if not fixed and source.count is not None:
            out = source.count // _EVERY
            self.count = out if held else source.count - out

    def batches(self, size: int) -> Iterator[Feed]:
        for _, feed in self.numbered(size):
            yield feed

    def numbered(self, size: int) -> Iterator[Numbered]:
        """Go through the part with the numbers its samples have in the source."""
        for place, (numbers, feed) in enumerate(numbered(self._source, size)):
            if self._whole or batch_rows(feed, self.specs) is None:
                if (place % _EVERY == _EVERY - 1) == self._held:
                    yield numbers, feed
                continue
            mine = np.flatnonzero((numbers % _EVERY == _EVERY - 1) == self._held)
            if len(mine):
                yield numbers[mine], {name: array[mine] for name, array in feed.items()}
