"""What readers of files have in common: options written as text, and samples kept on the disk."""

from __future__ import annotations

import abc
import contextlib
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.calibration.array_files import ArrayPart
from onnxprune.calibration.feeds import Array
from onnxprune.calibration.streams import ArraySamples, Samples
from onnxprune.declaration import Option, declared_options, read_options
from onnxprune.errors import CalibrationError, InputError, nearest
from onnxprune.model.inputs import InputSpec


class Reader(abc.ABC):
    """Reads samples out of files that are not arrays; a dataclass with declared options.

    Can be given as `calibration` wherever samples can.

    Raises:
        InputError: for options that cannot be used.
    """

    def __post_init__(self) -> None:
        options = declared_options(type(self))
        values = {option.name: getattr(self, option.name) for option in options}
        given = {
            option.name: values[option.name]
            for option in options
            if values[option.name] is not None or option.default is not None
        }
        for name, value in read_options(options, given, type(self).__name__.lower()).items():
            object.__setattr__(self, name, value)

    @abc.abstractmethod
    def samples(self, specs: Sequence[InputSpec]) -> Samples:
        """Open the samples.

        Args:
            specs: the inputs of the model.

        Raises:
            CalibrationError: when files cannot be read or do not fit the model.
            InputError: when a package is missing that reads them.
        """


def read_settings(text: str, options: Sequence[Option], where: str) -> dict[str, Any]:
    """Read options written as KEY=VALUE,...; of an option with choices the word alone will do.

    Args:
        text: such as "size=320x240,mean=127,rgb".
        options: those there are.
        where: what messages begin with.

    Raises:
        InputError: for something else.
    """
    words = {choice: option.name for option in options for choice in option.choices}
    known = {option.name: option for option in options}
    settings: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        name = key if equals else words.get(key, "")
        if name not in known:
            raise InputError(f"{where}: no option {part!r}{nearest(key, [*known, *words])}")
        if name in settings:
            raise InputError(f"{where}: {name} is given twice")
        settings[name] = _read(known[name], value if equals else key)
    return settings


def _read(option: Option, text: str) -> Any:
    """A number where the option takes one."""
    for kind in (int, float):
        with contextlib.suppress(ValueError, InputError):
            return option.read(kind(text))
    return text


def positive(name: str, value: Any) -> int:
    """Check a whole number above 0, also as text.

    Raises:
        InputError: naming the option, for anything else.
    """
    with contextlib.suppress(TypeError, ValueError):
        if int(value) == float(value) > 0:
            return int(value)
    raise InputError(f"{name} must be a whole number above 0, not {value!r}")


def files_in(path: Path, suffixes: Iterable[str]) -> list[Path]:
    """Files of some kinds in a folder and the folders in it, by their paths."""
    wanted = {*suffixes}
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in wanted)


def spread(items: Sequence[Any], count: int | None) -> list[Any]:
    """Take some items from all over a list; None for all."""
    if count is None or count >= len(items):
        return list(items)
    return [items[number * len(items) // count] for number in range(count)]


def stored(
    rows: Iterable[Array],
    name: str,
    specs: Sequence[InputSpec],
    where: str,
    shared: Mapping[str, Array] | None = None,
) -> Samples:
    """Keep samples in a temporary file, which goes when they do.

    Args:
        rows: one array for each sample, all of one shape, of the input's dtype.
        name: of the input they are for.
        specs: the inputs of the model.
        where: names the source in messages.
        shared: arrays of the other inputs.

    Raises:
        CalibrationError: when the disk is full, or the arrays do not fit the model.
    """
    folder = tempfile.mkdtemp(prefix="onnxprune-samples-")
    try:
        path, count = Path(folder) / "rows", 0
        row = np.zeros(0)
        with path.open("wb") as file:
            for row in rows:
                file.write(np.ascontiguousarray(row).tobytes())
                count += 1
        if not count:
            raise CalibrationError(f"{where}: gives no samples")
        array: Array = np.memmap(path, row.dtype, "r", shape=(count, *row.shape))
        part = ArrayPart.of({name: array, **(shared or {})}, where)
        samples = ArraySamples([part], tuple(specs))
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise CalibrationError(f"{where}: cannot be kept in {folder}: {error}") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(samples, shutil.rmtree, folder, ignore_errors=True)
    return samples
