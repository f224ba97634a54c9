"""Samples as batches that can be iterated any number of times.

Memory does not grow with the number of samples: files are mapped or read piece by piece, what
can be had only once is spooled to a temporary file.
"""

from __future__ import annotations

import abc
import itertools
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from onnxprune.calibration.array_files import ArrayPart
from onnxprune.calibration.feeds import Array, Feed, check_feed, conform
from onnxprune.calibration.layout import Layout, layouts_of
from onnxprune.calibration.sample_axes import SampleAxes
from onnxprune.errors import CalibrationError, OnnxPruneError, typed_line
from onnxprune.model.inputs import InputSpec

Numbered: TypeAlias = "tuple[Array, Feed]"
"""Numbers of samples, int64 [rows], and the feed they are in."""


class Samples(abc.ABC):
    """Samples for one model, checked against its inputs, to be iterated any number of times.

    Attributes:
        specs: the inputs of the model.
        axes: where samples lie in each feed.
        count: number of samples, None as long as that takes a first pass to know. Whole feeds
            without common axes of samples count as one each.
    """

    specs: tuple[InputSpec, ...]
    axes: SampleAxes
    count: int | None

    def numbered(self, size: int) -> Iterator[Numbered]:
        """Go through all samples like `batches`, with their numbers.

        Numbers count what the samples came from, also where they are only a part of it.
        """
        done = 0
        for feed in self.batches(size):
            rows = self.axes.rows(feed)
            rows = 1 if rows is None else rows
            yield np.arange(done, done + rows), feed
            done += rows

    def places(self, numbers: Array) -> Array:
        """Where samples with some numbers stand among these, counted without gaps."""
        return numbers

    @abc.abstractmethod
    def batches(self, size: int) -> Iterator[Feed]:
        """Go through all samples.

        Args:
            size: samples per batch where the source lets them be cut and the model does not fix
                the number; the last batch may be smaller.

        Yields:
            {input: array} in the order of the model's inputs, contiguous, of the declared dtypes.

        Raises:
            CalibrationError: when samples do not fit the model, or there are none.
        """

    def take(self, n: int) -> Feed:
        """Return the first `n` samples as one feed.

        Fewer come when there are no more, when the model fixes the size of its batches, and when
        feeds cannot be joined (different shapes, no axes of samples); then it is the first feed.

        Raises:
            CalibrationError: when samples do not fit the model, or there are none.
        """
        feeds: list[Feed] = []
        have = 0
        for feed in self.batches(n):
            rows = self.axes.rows(feed)
            if rows is None or self.axes.fixed:
                return feeds[0] if feeds else feed
            if feeds and not self.axes.can_join(feed, feeds[0]):
                break
            feeds.append(feed)
            have += rows
            if have >= n:
                break
        return self.axes.cut(self.axes.joined(feeds), slice(n))


class ArraySamples(Samples):
    """Arrays in one or several parts.

    Args:
        parts: one array per input each.
        specs: the inputs of the model.
        folder: parts are files of a folder; see `layouts_of`.

    Raises:
        CalibrationError: when shapes do not fit the model, or there are too few samples.
    """

    def __init__(
        self, parts: Sequence[ArrayPart], specs: tuple[InputSpec, ...], *, folder: bool = False
    ) -> None:
        self.specs = specs
        layouts = layouts_of(parts, specs, folder=folder)
        self._parts = list(zip(parts, layouts, strict=True))
        rows = [layout.axes for layout in layouts if layout.joins_with is not None]
        same = len(rows) == len(layouts) and all(axes == rows[0] for axes in rows)
        self.axes = rows[0] if same else SampleAxes.of(specs)
        self.count = 0
        for run in self._runs():
            layout = run[0][1]
            total = sum(each.samples for _, each in run)
            fixed = layout.axes.fixed
            self.count += total - total % fixed if fixed else total
        if self.count == 0:
            part, layout = self._parts[0]
            total = sum(each.samples for _, each in self._parts)
            raise CalibrationError(
                f"{part.where}: {total} sample(s), but the model takes batches of exactly "
                f"{layout.axes.fixed}; give at least {layout.axes.fixed}"
            )

    def batches(self, size: int) -> Iterator[Feed]:
        """Go through the rows, `size` or the number the model fixes at a time."""
        done = 0
        for run in self._runs():
            where = run[0][0].where
            for raw, rows in _cut(run, size):
                axes = run[0][1].axes.axes
                yield {
                    spec.name: conform(raw[spec.name], spec, where, done, axes.get(spec.name))
                    for spec in self.specs
                }
                done += rows

    def _runs(self) -> Iterator[list[tuple[ArrayPart, Layout]]]:
        """Group neighbouring parts whose rows may share a batch."""
        numbered = enumerate(self._parts)
        for _, group in itertools.groupby(
            numbered, key=lambda item: item[1][1].joins_with or item[0]
        ):
            yield [item for _, item in group]


def _cut(
    run: Sequence[tuple[ArrayPart, Layout]], size: int
) -> Iterator[tuple[Mapping[str, Array], int]]:
    """Cut a run of parts into raw batches and the number of samples in each."""
    layout = run[0][1]
    if layout.joins_with is None:
        part = run[0][0]
        with part.open() as arrays:
            for index in range(layout.samples):
                yield layout.feed(arrays, index), 1
        return
    block = layout.axes.fixed or max(size, 1)
    pending: list[Mapping[str, Array]] = []
    missing = block
    for part, each in run:
        with part.open() as arrays:
            start = 0
            while start < each.samples:
                stop = min(start + missing, each.samples)
                piece = each.rows(arrays, start, stop)
                missing -= stop - start
                start = stop
                if missing == 0:
                    yield layout.axes.joined([*pending, piece]), block
                    pending, missing = [], block
                else:
                    # the arrays are closed with their part
                    pending.append({name: np.array(array) for name, array in piece.items()})
    if pending and not layout.axes.fixed:
        yield layout.axes.joined(pending), block - missing


class FeedSamples(Samples):
    """Whole feeds, taken as they come from something that can be started anew."""

    def __init__(
        self,
        start: Callable[[], Iterable[object]],
        specs: tuple[InputSpec, ...],
        where: str,
        count: int | None = None,
    ) -> None:
        self.specs = specs
        self.axes = SampleAxes.of(specs)
        self.count = count
        self._start = start
        self._where = where

    def batches(self, size: int) -> Iterator[Feed]:
        """Go through the feeds as they come, whatever the size."""
        done, feed = 0, None
        for item in _guarded(self._start, self._where):
            feed = check_feed(item, self.specs, self.axes, self._where, done, feed)
            rows = self.axes.rows(feed)
            done += 1 if rows is None else rows
            yield feed
        if done == 0:
            raise CalibrationError(f"{self._where}: gives no samples")
        self.count = done


def _guarded(start: Callable[[], Iterable[object]], where: str) -> Iterator[object]:
    """Go through a caller's feeds; exceptions of their code become one line."""
    try:
        iterator = iter(start())
    except OnnxPruneError:
        raise
    except Exception as error:
        raise CalibrationError(f"{where}: {typed_line(error)}") from error
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except OnnxPruneError:
            raise
        except Exception as error:
            raise CalibrationError(f"{where}: {typed_line(error)}") from error
        yield item


def spool(feeds: Iterator[object], specs: tuple[InputSpec, ...], where: str) -> Samples:
    """Write feeds that can be had only once to a temporary file.

    Raises:
        CalibrationError: when a feed does not fit the model, there are none, or the disk is full.
    """
    folder = tempfile.mkdtemp(prefix="onnxprune-samples-")
    path = Path(folder) / "feeds"
    try:
        once = FeedSamples(lambda: feeds, specs, where)
        number = 0
        with path.open("wb") as file:
            for feed in once.batches(1):
                number += 1
                for array in feed.values():
                    stored = array.astype(np.str_) if array.dtype.kind == "O" else array
                    np.save(file, stored, allow_pickle=False)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise CalibrationError(f"{where}: cannot be kept in {folder}: {error}") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise

    def replay() -> Iterator[object]:
        with path.open("rb") as file:
            for _ in range(number):
                yield {
                    spec.name: _restored(np.load(file, allow_pickle=False), spec) for spec in specs
                }

    samples = FeedSamples(replay, specs, where, once.count)
    weakref.finalize(samples, shutil.rmtree, folder, ignore_errors=True)
    return samples


def _restored(array: Array, spec: InputSpec) -> Array:
    # numpy's file format knows bfloat16 and the like only as raw bytes
    return array.view(spec.dtype) if array.dtype.kind == "V" and spec.dtype else array


_EVERY = 4  # one sample in so many is held out for measuring quality


def divide(samples: Samples, every: int = _EVERY) -> tuple[Samples, Samples]:
    """Keep every fourth sample out, or one in some other number.

    Whole feeds are kept out where the model fixes the size of its batches, and where feeds have no
    common axes of samples.

    Args:
        samples: all.
        every: one in so many is kept out.

    Returns:
        those to fit on, those kept out.

    Raises:
        CalibrationError: when there are too few to keep any out.
    """
    parts = _Part(samples, every, held=False), _Part(samples, every, held=True)
    if next(parts[1].batches(every), None) is None:
        raise CalibrationError(
            f"too few samples to keep any out of calibration for measuring; give {every} or more"
        )
    return parts


class _Part(Samples):
    """Every n-th sample of a source, or all others."""

    def __init__(self, source: Samples, every: int, *, held: bool) -> None:
        self.specs, self.axes = source.specs, source.axes
        self.count = None
        self._source = source
        self._every = every
        self._held = held
        self._whole = bool(self.axes.fixed)
        if not self._whole and source.count is not None:
            out = source.count // every
            self.count = out if held else source.count - out

    def batches(self, size: int) -> Iterator[Feed]:
        for _, feed in self.numbered(size):
            yield feed

    def places(self, numbers: Array) -> Array:
        """See `Samples`."""
        places = self._source.places(numbers)
        held = places // self._every
        return held if self._held else places - held

    def numbered(self, size: int) -> Iterator[Numbered]:
        """Go through the part with the numbers its samples have in the source."""
        for place, (numbers, feed) in enumerate(self._source.numbered(size)):
            if self._whole or self.axes.rows(feed) is None:
                if (place % self._every == self._every - 1) == self._held:
                    yield numbers, feed
                continue
            places = self._source.places(numbers)
            mine = np.flatnonzero((places % self._every == self._every - 1) == self._held)
            if len(mine):
                yield numbers[mine], self.axes.cut(feed, mine)
