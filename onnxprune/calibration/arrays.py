"""Arrays of samples, from memory, `.npy` and `.npz`, and how they divide into batches."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxprune.calibration.feeds import Array, check_dtype, check_names, describe, fits
from onnxprune.errors import CalibrationError
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
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CalibrationError(f"{where}: cannot be read: {reason}") from error


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
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CalibrationError(f"{where}: cannot be read: {reason}") from error
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
