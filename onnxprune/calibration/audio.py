"""A folder of .wav files as samples: one rate, one channel, cut into windows."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.feeds import Array, describe
from onnxprune.calibration.reader import Reader, files_in, positive, spread, stored
from onnxprune.calibration.streams import Samples
from onnxprune.declaration import option
from onnxprune.errors import CalibrationError, first_line
from onnxprune.model.inputs import InputSpec

SUFFIXES = (".wav", ".wave")
"""Endings of the names of audio files."""

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE  # codings of .wav files
_FEWEST = 4  # samples of a window; an axis with less is none of time


def _rate(value: Any) -> int:
    return positive("rate", value)


def _length(value: Any) -> int:
    return positive("length", value)


def _count(value: Any) -> int:
    return positive("count", value)


@dataclass(frozen=True)
class Audio(Reader):
    """The .wav files of a folder, and of the folders in it, as samples of a model.

    Can be given as `calibration` wherever samples can, and as the sequences of a `ClosedLoop`. The
    mean of the channels is resampled to the rate and cut into windows that follow each other; what
    is left at the end of a file is dropped, a shorter file filled up with silence. An integer
    scalar among the inputs gets the rate.

    Attributes:
        folder: where the files are; or one file.
        rate: samples a second that the model takes.
        length: samples in a window; None for the model's.
        count: windows to use; None for all.
    """

    folder: str | os.PathLike[str]
    rate: int = option(16000, "samples a second that the model takes", check=_rate)
    length: int | None = option(
        None, "samples in a window. Default: that of the model's input", check=_length
    )
    count: int | None = option(
        None, "how many windows to use, from all over the folder. Default: all", check=_count
    )

    def samples(self, specs: Sequence[InputSpec]) -> Samples:
        """Read the files.

        Args:
            specs: the inputs of the model.

        Raises:
            CalibrationError: when there are none, one cannot be read, or the model takes no audio.
        """
        where = f"calibration {os.fspath(self.folder)}"
        target, shared = self._target(specs, where)
        files, shape, dtype = self._files(where), self._row_shape(target), target.dtype
        rows: Iterable[Array] = (
            window.astype(dtype).reshape(shape)
            for file in files
            for window in self._windows(file, target, where)
        )
        if self.count is not None:
            rows = spread(list(rows), self.count)
        return stored(rows, target.name, specs, where, shared)

    def sequences(self, specs: Sequence[InputSpec]) -> Iterator[dict[str, Array]]:
        """The files as sequences of windows.

        Args:
            specs: the inputs of the model without its states.

        Yields:
            for each file {input: array}, windows along the first axis.

        Raises:
            CalibrationError: as `samples`.
        """
        where = f"calibration {os.fspath(self.folder)}"
        target, shared = self._target(specs, where)
        for file in spread(self._files(where), self.count):
            windows = list(self._windows(file, target, where))
            rows = np.stack(windows).astype(target.dtype)
            yield {target.name: rows.reshape(len(rows), *self._row_shape(target)), **shared}

    def _files(self, where: str) -> list[Path]:
        path = Path(self.folder)
        files = files_in(path, SUFFIXES) if path.is_dir() else [path]
        if not files or not files[0].exists():
            raise CalibrationError(f"{where}: holds no .wav files")
        return files

    def _target(self, specs: Sequence[InputSpec], where: str) -> tuple[InputSpec, dict[str, Array]]:
        """The input that takes audio, and the values of the others.

        Raises:
            CalibrationError: when there is none, or others would have nothing.
        """
        scalars = [
            spec
            for spec in specs
            if spec.dtype is not None and spec.dtype.kind in "iu" and spec.shape in ((), (1,))
        ]
        others = [spec for spec in specs if spec not in scalars]
        if len(others) == 1 and _takes_audio(others[0]):
            rate = np.array(self.rate)
            return others[0], {
                spec.name: rate.astype(spec.dtype).reshape([1] * len(spec.shape or ()))
                for spec in scalars
            }
        listed = ", ".join(f"{spec.name} {describe(spec.shape or ())}" for spec in specs)
        raise CalibrationError(
            f"{where}: audio fills one input of waves and the sampling rate, the model has "
            f"{listed}; name the state of a recurrent model (--state OUTPUT=INPUT), or give arrays "
            "or a function: module.py:function"
        )

    def _windows(self, file: Path, target: InputSpec, where: str) -> Iterator[NDArray[np.float64]]:
        """Windows of a file, [length] each, of -1 to 1 or of 16 bits as the input is."""
        length = self._window(target, where)
        wave_ = _resampled(*_decoded(file), self.rate)
        if target.dtype is not None and target.dtype.kind in "iu":
            wave_ = np.rint(wave_ * 32767)
        wave_ = np.pad(wave_, (0, max(length - len(wave_), 0)))
        for start in range(0, len(wave_) - length + 1, length):
            yield wave_[start : start + length]

    def _window(self, target: InputSpec, where: str) -> int:
        """Samples in a window.

        Raises:
            CalibrationError: when nothing says it, or the model something else.
        """
        size = (target.shape or (None,))[_time_axis(target)]
        if isinstance(size, int) and size != (self.length or size):
            raise CalibrationError(
                f"{where}: length={self.length}, but the model's input {target.name!r} takes "
                f"{size} samples; leave it out or give length={size}"
            )
        length = size if isinstance(size, int) else self.length
        if length is None:
            raise CalibrationError(
                f"{where}: the model's input {target.name!r} is {describe(target.shape or ())}: "
                "say how many samples a window has, such as length=16000"
            )
        return length

    @staticmethod
    def _row_shape(target: InputSpec) -> tuple[int, ...]:
        """Shape of one sample, without the axis of samples; -1 for time."""
        shape = target.shape or (None, None)
        axis = _time_axis(target) % len(shape)
        return tuple(-1 if place == axis else 1 for place in range(len(shape)) if place or not axis)


def _takes_audio(spec: InputSpec) -> bool:
    """Whether an input is a batch of waves of one channel."""
    if spec.dtype is None or spec.dtype.kind not in "fi":
        return False
    if spec.shape is None:
        return True
    axis = _time_axis(spec) % len(spec.shape) if spec.shape else 0
    channels = [size for place, size in enumerate(spec.shape) if place not in (0, axis)]
    return len(spec.shape) > 1 and axis > 0 and all(size == 1 for size in channels)


def _time_axis(spec: InputSpec) -> int:
    """The last axis that is longer than channels can be."""
    shape = spec.shape or ()
    long = [axis for axis, size in enumerate(shape) if not isinstance(size, int) or size >= _FEWEST]
    return long[-1] if long else -1


def _decoded(path: Path) -> tuple[NDArray[np.float64], int]:
    """The wave of a file, -1 to 1, [samples], and its rate.

    Raises:
        CalibrationError: when it cannot be read.
    """
    where = f"calibration {path}"
    try:
        chunks = _chunks(path.read_bytes())
        kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunks[b"fmt "])
        if kind == _EXTENSIBLE:
            (kind,) = struct.unpack_from("<H", chunks[b"fmt "], 24)
        frame = channels * bits // 8
        data = chunks[b"data"]
        # a file that was cut off may end within a frame
        levels = _levels(data[: len(data) // frame * frame], kind, bits)
        levels = levels.reshape(-1, channels).mean(axis=1)
    except (OSError, ValueError, KeyError, ArithmeticError, struct.error) as error:
        raise CalibrationError(
            f"{where}: cannot be read as .wav ({first_line(error)}); convert it to PCM of 16 bits"
        ) from error
    if not levels.size:
        raise CalibrationError(f"{where}: holds no samples; remove it")
    return levels, rate


def _chunks(data: bytes) -> dict[bytes, bytes]:
    """Chunks of a RIFF file by their names; the last of a name.

    Raises:
        ValueError: when it is none.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ValueError("no RIFF file")
    chunks, place = {}, 12
    while place + 8 <= len(data):
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        chunks[name] = data[place + 8 : place + 8 + size]
        place += 8 + size + size % 2
    return chunks


def _levels(data: bytes, kind: int, bits: int) -> NDArray[np.float64]:
    """Numbers of -1 to 1 out of PCM or floating-point numbers.

    Raises:
        ValueError: for another coding.
    """
    if kind == _FLOAT and bits in (32, 64):
        return np.frombuffer(data, f"<f{bits // 8}").astype(np.float64)
    if kind != _PCM or bits not in (8, 16, 24, 32):
        raise ValueError(f"coding {kind} of {bits} bits")
    if bits == 8:
        return (np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128
    width = bits // 8
    raw = np.frombuffer(data, np.uint8).reshape(-1, width)
    # up to the highest bytes of 32 bits, whatever the width
    padded = np.zeros((len(raw), 4), np.uint8)
    padded[:, 4 - width :] = raw
    return padded.view("<i4")[:, 0].astype(np.float64) / 2**31


def _resampled(levels: NDArray[np.float64], before: int, after: int) -> NDArray[np.float64]:
    """Resample by cutting or extending the spectrum: frequencies that both rates have stay."""
    if before == after:
        return levels
    length = max(round(len(levels) * after / before), 1)
    spectrum = np.fft.rfft(levels)[: length // 2 + 1]
    return np.asarray(np.fft.irfft(spectrum, length) * (length / len(levels)))
