"""Samples in memory, drawn in batches: shuffled, cut to what a run can take, and looked at anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.augment import varied
from onnxprune.calibration.batches import feed_bytes
from onnxprune.calibration.moments import BATCH
from onnxprune.calibration.streams import Samples

_HELD_BYTES = 1_000_000_000
_FEWEST_PARTS = 8

Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Part:
    """Samples that run together.

    Attributes:
        feed: of them.
        numbers: of the samples, int64 [rows].
    """

    feed: Feed
    numbers: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Number of samples."""
        return len(self.numbers)


class Pool:
    """Samples in memory, joined as far as samples can be.

    Args:
        samples: all of them; what does not fit into memory is left out.

    Attributes:
        views: names of views of images that are drawn, from `calibration.augment`.
    """

    def __init__(self, samples: Samples) -> None:
        self.views: tuple[str, ...] = ()
        self._axes = samples.axes
        self._parts = _joined(_loaded(samples), samples)

    @property
    def count(self) -> int:
        """Number of samples."""
        return sum(part.rows for part in self._parts)

    @property
    def least(self) -> int:
        """Number of samples of the smallest run."""
        return self._parts[0].rows if self._is_whole(self._parts[0]) else 1

    @property
    def largest(self) -> int:
        """Number of samples of the largest run."""
        return max(part.rows for part in self._parts)

    def epoch(self, rows: int, most: int, rng: np.random.Generator) -> Iterator[list[Part]]:
        """Go through the samples once, in random order.

        Args:
            rows: samples of a step.
            most: samples that run together.
            rng: shuffles them and draws views.

        Yields:
            the parts of each step.
        """
        pieces = [
            (number, order)
            for number, part in enumerate(self._parts)
            for order in self._pieces(part, min(rows, most), rng)
        ]
        step: list[Part] = []
        for place in rng.permutation(len(pieces)):
            number, order = pieces[place]
            step.append(self._drawn(self._parts[number], order, rng))
            if sum(part.rows for part in step) >= rows:
                yield step
                step = []
        if step:
            yield step

    def _pieces(
        self, part: Part, size: int, rng: np.random.Generator
    ) -> list[NDArray[np.int64] | None]:
        """Places of samples that run together; None for a feed as a whole."""
        if self._is_whole(part):
            return [None]
        order = rng.permutation(part.rows)
        count = max(part.rows // size, 1)
        return [order[place::count] for place in range(count)]

    def _drawn(self, part: Part, order: NDArray[np.int64] | None, rng: np.random.Generator) -> Part:
        feed = part.feed if order is None else self._axes.cut(part.feed, order)
        numbers = part.numbers if order is None else part.numbers[order]
        if self.views:
            feed = varied(feed, self.views, rng)
        return Part({name: np.ascontiguousarray(a) for name, a in feed.items()}, numbers)

    def batches(self, most: int) -> list[Part]:
        """All samples as they are, in order, in parts that can run together.

        Args:
            most: samples that run together.
        """
        result = []
        for part in self._parts:
            if self._is_whole(part):
                result.append(part)
                continue
            for start in range(0, part.rows, most):
                rows = slice(start, start + most)
                result.append(Part(self._axes.cut(part.feed, rows), part.numbers[rows]))
        return result

    def some(self, count: int, most: int) -> list[Part]:
        """About as many samples as asked for, from all over the set.

        Args:
            count: of samples.
            most: samples that run together.
        """
        size = max(1, min(most, self.count // _FEWEST_PARTS))
        parts = self.batches(size)
        wanted = min(max(-(-count // size), 1), len(parts))
        return [parts[number * len(parts) // wanted] for number in range(wanted)]

    def _is_whole(self, part: Part) -> bool:
        """Whether a feed cannot be cut."""
        return bool(self._axes.fixed) or self._axes.rows(part.feed) is None


def _loaded(samples: Samples) -> list[Part]:
    """Samples that fit into memory, from all over the set."""
    parts: list[Part] = []
    size = 0
    for numbers, feed in samples.numbered(BATCH):
        size += feed_bytes(feed)
        parts.append(Part(feed, numbers))
        if size > _HELD_BYTES and len(parts) > 1:
            break
    return parts


def _joined(parts: Sequence[Part], samples: Samples) -> list[Part]:
    """Parts that differ in nothing but samples, put behind one another."""
    axes = samples.axes
    groups: list[list[Part]] = []
    for part in parts:
        if axes.fixed or axes.rows(part.feed) is None:
            groups.append([part])
            continue
        fitting = (g for g in groups if axes.can_join(part.feed, g[0].feed))
        group = next(fitting, None)
        if group is None:
            groups.append([part])
        else:
            group.append(part)
    return [
        Part(
            axes.joined([part.feed for part in group]) if len(group) > 1 else group[0].feed,
            np.concatenate([part.numbers for part in group]),
        )
        for group in groups
    ]
