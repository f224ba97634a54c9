"""Arrays in memory, in .npy and in .npz files: known by shape before anything is read."""

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

from onnxprune.calibration.feeds import Array, check_dtype, check_names
from onnxprune.calibration.sample_axes import SampleAxes
from onnxprune.errors import CalibrationError, first_line
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


def npy_part(path: Path, name: str, specs: Sequence[InputSpec]) -> ArrayPart:
    """Map a `.npy` file as the samples of a model's only input.

    Raises:
        CalibrationError: when it cannot be read or does not fit.
    """
    where = f"calibration {path}"
    array = _map(path, where)
    check_dtype(array.dtype, specs[0], where)
    return ArrayPart.of({name: array}, where)


def npz_part(
    path: Path,
    specs: Sequence[InputSpec],
    folder: Path | None,
    shared: Mapping[str, Array] | None = None,
) -> ArrayPart:
    """Open a `.npz` file, its keys being the names of the inputs.

    Args:
        path: the file.
        specs: the inputs of the model.
        folder: where large members are unpacked to be mapped; None unpacks them for each pass and
            removes them after it.
        shared: arrays of inputs that the file may lack.

    Raises:
        CalibrationError: when it cannot be read or does not fit.
    """
    where = f"calibration {path}"
    same = SampleAxes.of(specs).shared(specs)
    with _archive(path, where) as archive:
        members = _members(archive)
        others = {name: array for name, array in (shared or {}).items() if name not in members}
        check_names([*others, *members], specs, where, same)
        shapes = {name: array.shape for name, array in others.items()}
        inside = [spec for spec in specs if spec.name not in others]
        for spec in inside:
            with archive.open(members[spec.name]) as file:
                shapes[spec.name], dtype = _header(file)
            check_dtype(dtype, spec, where)
        total = sum(archive.getinfo(members[spec.name]).file_size for spec in inside)
    if folder is not None:
        arrays = _unpack(path, members, inside, total, folder, where)
        return ArrayPart.of(others | arrays, where)

    @contextlib.contextmanager
    def opened() -> Iterator[Mapping[str, Array]]:
        with tempfile.TemporaryDirectory(
            prefix="onnxprune-samples-", ignore_cleanup_errors=True
        ) as temporary:
            yield others | _unpack(path, members, inside, total, Path(temporary), where)

    return ArrayPart(shapes, opened, where)


def npz_parts(paths: Sequence[Path], specs: Sequence[InputSpec]) -> list[ArrayPart]:
    """Open the `.npz` files of a folder.

    What is the same for all samples may be in one of them only, also in a file of its own.

    Raises:
        CalibrationError: when one cannot be read or does not fit.
    """
    same = [spec for spec in specs if spec.name in SampleAxes.of(specs).shared(specs)]
    shared: dict[str, Array] = {}
    parts = []
    for path in paths:
        where = f"calibration {path}"
        with _archive(path, where) as archive:
            members = _members(archive)
        found = [spec for spec in same if spec.name in members]
        missing = [spec for spec in found if spec.name not in shared]
        if missing:
            shared |= _unpack(path, members, missing, 0, Path(), where)
        if len(members) > len(found):
            parts.append(path)
    return [npz_part(path, specs, None, shared) for path in parts or paths]


def _members(archive: zipfile.ZipFile) -> dict[str, str]:
    """Members of an archive by the names of their arrays."""
    return {name.removesuffix(".npy"): name for name in archive.namelist()}


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
