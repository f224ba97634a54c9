"""Samples as batches that can be iterated any number of times, and the arrays these are cut from.

Memory does not grow with the number of samples: files are mapped or read piece by piece, what
can be had only once is spooled to a temporary file.
"""

from __future__ import annotations

import abc
import contextlib
import itertools
import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np

from onnxprune.calibration.feeds import (
    Array,
    Feed,
    batch_rows,
    check_dtype,
    check_feed,
    check_names,
    conform,
    describe,
    fits,
)
from onnxprune.errors import CalibrationError, OnnxPruneError, first_line, typed_line
from onnxprune.model.inputs import InputSpec

_IN_MEMORY = 16 * 2**20
"""Bytes up to which an archive is read at once rather than unpacked to the disk."""


@dataclass(frozen=True)
class ArrayPart:
    """One array per input, known by shape before anything is read.

    Attributes:
        shapes: by input name.
        open: gives the arrays, for the time of a with block.
        where: names the source in messages.
    """

    shapes: Mapping[str, tuple[int, ...]]
    open: Callable[[], AbstractContextManager[Mapping[str, Array]]]
    where: str

    @classmethod
    def of(cls, arrays: Mapping[str, Array], where: str) -> ArrayPart:
        """Wrap arrays that are in memory or mapped."""
        shapes = {name: array.shape for name, array in arrays.items()}
        return cls(shapes, lambda: contextlib.nullcontext(arrays), where)


@dataclass(frozen=True)
class Layout:
    """How the arrays of a part divide into samples.

    Attributes:
        samples: number of rows, or of whole feeds when `joins_with` is None.
        fixed: rows every batch must have, 0 when the model leaves that open.
        joins_with: parts with the same value may share a batch; None when each sample is a whole
            feed.
        counted: the inputs whose first axis runs over rows; the others are the same in each batch.
        strides: rows per whole feed and input; 0 where a feed is one index of the first axis.
    """

    samples: int
    fixed: int
    joins_with: tuple[tuple[int, ...], ...] | None
    counted: frozenset[str]
    strides: Mapping[str, int]

    @classmethod
    def of(cls, part: ArrayPart, specs: Sequence[InputSpec]) -> Layout:
        """Work the layout out.

        Raises:
            CalibrationError: when shapes do not fit the inputs, or the inputs each other.
        """
        stacked = {spec.name for spec in specs if _is_stack(part, spec)}
        constant = {spec.name for spec in specs if not part.shapes[spec.name]}
        rows = [spec for spec in specs if spec.name not in stacked | constant]
        lengths = {
            spec.name: part.shapes[spec.name][0] for spec in specs if spec.name not in constant
        }
        sizes = {_first_dim(spec) for spec in rows} - {0}
        _check_counts_positive(lengths, part.where)
        if rows and not stacked and len(sizes) <= 1:
            _check_counts_equal(lengths, part.where)
            trailing = tuple(part.shapes[spec.name][1:] for spec in rows)
            samples = next(iter(lengths.values()))
            names = frozenset(lengths)
            return cls(samples, max(sizes, default=0), trailing, names, {})
        strides = dict.fromkeys(stacked, 0)
        strides.update({spec.name: _first_dim(spec) or 1 for spec in rows})
        feeds = {name: length // (strides[name] or 1) for name, length in lengths.items()}
        _check_counts_equal(feeds, part.where)
        return cls(next(iter(feeds.values()), 1), 0, None, frozenset(), strides)

    def rows(self, arrays: Mapping[str, Array], start: int, stop: int) -> dict[str, Array]:
        """Cut rows out of every counted input."""
        return {
            name: array[start:stop] if name in self.counted else array
            for name, array in arrays.items()
        }

    def feed(self, arrays: Mapping[str, Array], index: int) -> dict[str, Array]:
        """Cut one whole feed out."""
        cut = dict(arrays)
        for name, stride in self.strides.items():
            array = arrays[name]
            cut[name] = array[index * stride : (index + 1) * stride] if stride else array[index]
        return cut


def npy_part(path: Path, name: str, specs: Sequence[InputSpec]) -> ArrayPart:
    """Map a `.npy` file as the samples of a model's only input.

    Raises:
        CalibrationError: when it cannot be read or does not fit.
    """
    where = f"calibration {path}"
    array = _map(path, where)
    check_dtype(array.dtype, specs[0], where)
    return ArrayPart.of({name: array}, where)


def npz_part(path: Path, specs: Sequence[InputSpec], folder: Path | None) -> ArrayPart:
    """Open a `.npz` file, its keys being the names of the inputs.

    Args:
        path: the file.
        specs: the inputs of the model.
        folder: where large members are unpacked to be mapped; None unpacks them for each pass and
            removes them after it.

    Raises:
        CalibrationError: when it cannot be read or does not fit.
    """
    where = f"calibration {path}"
    with _archive(path, where) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist()}
        check_names(members, specs, where)
        shapes = {}
        for spec in specs:
            with archive.open(members[spec.name]) as file:
                shapes[spec.name], dtype = _header(file)
            check_dtype(dtype, spec, where)
        total = sum(archive.getinfo(members[spec.name]).file_size for spec in specs)
    if folder is not None:
        return ArrayPart.of(_unpack(path, members, specs, total, folder, where), where)

    @contextlib.contextmanager
    def opened() -> Iterator[Mapping[str, Array]]:
        with tempfile.TemporaryDirectory(
            prefix="onnxprune-samples-", ignore_cleanup_errors=True
        ) as temporary:
            yield _unpack(path, members, specs, total, Path(temporary), where)

    return ArrayPart(shapes, opened, where)


def _unpack(
    path: Path,
    members: Mapping[str, str],
    specs: Sequence[InputSpec],
    total: int,
    folder: Path,
    where: str,
) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    with _archive(path, where) as archive:
        for number, spec in enumerate(specs):
            with archive.open(members[spec.name]) as member:
                if total <= _IN_MEMORY:
                    arrays[spec.name] = np.lib.format.read_array(member, allow_pickle=False)
                    continue
                # our own names: those in the archive may point anywhere
                unpacked = folder / f"{number}.npy"
                with unpacked.open("wb") as file:
                    shutil.copyfileobj(member, file, 2**20)
            arrays[spec.name] = _map(unpacked, where)
    return arrays


@contextlib.contextmanager
def _archive(path: Path, where: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError) as error:
        raise CalibrationError(f"{where}: cannot be read: {first_line(error)}") from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype


def _map(path: Path, where: str) -> Array:
    try:
        with path.open("rb") as file:
            shape, dtype = _header(file)
        # an empty file part cannot be mapped, Python objects would have to be unpickled
        mapped = 0 not in shape and not dtype.hasobject
        array: Array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CalibrationError(f"{where}: cannot be read: {first_line(error)}") from error
    return array


def _is_stack(part: ArrayPart, spec: InputSpec) -> bool:
    """Say whether an array stacks whole feeds (one axis more than the input) rather than rows."""
    shape = part.shapes[spec.name]
    declared = spec.shape
    if declared is None:
        return False
    if not declared:
        if len(shape) <= 1:
            return len(shape) == 1
    elif len(shape) == len(declared) and fits(shape[1:], declared[1:]):
        return False
    elif len(shape) == len(declared) + 1 and fits(shape[1:], declared):
        return True
    remedy = ""
    if len(shape) == len(declared) - 1:
        remedy = "; add the axis of samples in front"
    raise CalibrationError(
        f"{part.where}: the input {spec.name!r} got the shape {list(shape)}, expected "
        f"{describe(declared)} with samples along the first axis{remedy}"
    )


def _first_dim(spec: InputSpec) -> int:
    """Return the size of the first axis when the model fixes it, else 0."""
    first = spec.shape[0] if spec.shape else None
    return first if isinstance(first, int) else 0


def _check_counts_positive(lengths: Mapping[str, int], where: str) -> None:
    for name, length in lengths.items():
        if length == 0:
            raise CalibrationError(f"{where}: no samples for the input {name!r}")


def _check_counts_equal(counts: Mapping[str, int], where: str) -> None:
    if len(set(counts.values())) > 1:
        listing = ", ".join(f"{count} for {name!r}" for name, count in counts.items())
        raise CalibrationError(
            f"{where}: different numbers of samples: {listing}; give each input as many"
        )


class Samples(abc.ABC):
    """Samples for one model, checked against its inputs, to be iterated any number of times.

    Attributes:
        specs: the inputs of the model.
        count: number of samples, None as long as that takes a first pass to know. Whole feeds
            without a common first axis count as one sample each.
    """

    specs: tuple[InputSpec, ...]
    count: int | None

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
        feeds cannot be joined (different shapes, no common first axis); then it is the first feed.

        Raises:
            CalibrationError: when samples do not fit the model, or there are none.
        """
        feeds: list[Feed] = []
        have = 0
        for feed in self.batches(n):
            rows = batch_rows(feed, self.specs)
            if rows is None or isinstance((self.specs[0].shape or (None,))[0], int):
                return feeds[0] if feeds else feed
            if feeds and _trailing(feed) != _trailing(feeds[0]):
                break
            feeds.append(feed)
            have += rows
            if have >= n:
                break
        return {
            spec.name: np.concatenate([feed[spec.name] for feed in feeds])[:n]
            for spec in self.specs
        }


class ArraySamples(Samples):
    """Arrays whose first axes run over samples, in one or several parts.

    Raises:
        CalibrationError: when shapes do not fit the model, or there are too few samples.
    """

    def __init__(self, parts: Sequence[ArrayPart], specs: tuple[InputSpec, ...]) -> None:
        self.specs = specs
        self._parts = [(part, Layout.of(part, specs)) for part in parts]
        self.count = 0
        for run in self._runs():
            layout = run[0][1]
            total = sum(each.samples for _, each in run)
            self.count += total - total % layout.fixed if layout.fixed else total
        if self.count == 0:
            part, layout = self._parts[0]
            total = sum(each.samples for _, each in self._parts)
            raise CalibrationError(
                f"{part.where}: {total} sample(s), but the model takes batches of exactly "
                f"{layout.fixed}; give at least {layout.fixed}"
            )

    def batches(self, size: int) -> Iterator[Feed]:
        """Go through the rows, `size` or the number the model fixes at a time."""
        done = 0
        for run in self._runs():
            where = run[0][0].where
            for raw, rows in _cut(run, size):
                counted = run[0][1].counted
                yield {
                    spec.name: conform(raw[spec.name], spec, where, done, spec.name in counted)
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
    block = layout.fixed or max(size, 1)
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
                    yield _joined([*pending, piece], layout), block
                    pending, missing = [], block
                else:
                    # the arrays are closed with their part
                    pending.append({name: np.array(array) for name, array in piece.items()})
    if pending and not layout.fixed:
        yield _joined(pending, layout), block - missing


def _joined(pieces: Sequence[Mapping[str, Array]], layout: Layout) -> Mapping[str, Array]:
    if len(pieces) == 1:
        return pieces[0]
    return {
        name: np.concatenate([piece[name] for piece in pieces]) if name in layout.counted else array
        for name, array in pieces[0].items()
    }


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
        self.count = count
        self._start = start
        self._where = where

    def batches(self, size: int) -> Iterator[Feed]:
        """Go through the feeds as they come, whatever the size."""
        done = 0
        for item in _guarded(self._start, self._where):
            feed = check_feed(item, self.specs, self._where, done)
            rows = batch_rows(feed, self.specs)
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


def _trailing(feed: Feed) -> list[tuple[int, ...]]:
    return [array.shape[1:] for array in feed.values()]


Numbered: TypeAlias = "tuple[Array, Feed]"
"""Numbers of samples, int64 [rows], and the feed they are in."""

_EVERY = 4  # one sample in so many is held out


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
