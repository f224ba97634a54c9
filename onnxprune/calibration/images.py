"""A folder of images as samples: decoded, brought to the model's size, normalised.

x = (pixel * scale - mean) / std        pixel in 0..255, each channel for itself
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.feeds import Array, describe
from onnxprune.calibration.reader import Reader, files_in, positive, spread, stored
from onnxprune.calibration.streams import Samples
from onnxprune.declaration import option
from onnxprune.errors import CalibrationError, InputError, first_line
from onnxprune.model.inputs import InputSpec

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""Endings of the names of image files."""

_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}  # their number -> mode of pillow
_PADDING = 114  # grey, as letterboxing detectors have it
_SIXTEEN_BITS = 257  # of a grey value that stand for one of 8 bits
_MISSING = "reading images needs pillow: pip install 'onnxprune[images]'"


def _size(value: Any) -> tuple[int, int]:
    parts = value.lower().split("x") if isinstance(value, str) else value
    try:
        width, height = parts
    except (TypeError, ValueError):
        raise InputError(f"size must be WIDTHxHEIGHT, such as 320x240, not {value!r}") from None
    return positive("size", width), positive("size", height)


def _per_channel(name: str, value: Any) -> tuple[float, ...]:
    parts = value.split("/") if isinstance(value, str) else value
    numbers = [parts] if isinstance(parts, (int, float)) else parts
    try:
        checked = tuple(float(number) for number in numbers)
    except (TypeError, ValueError):
        checked = ()
    if len(checked) not in _CHANNELS or not np.isfinite(checked).all():
        raise InputError(
            f"{name} must be one number, or one for each channel such as 0.485/0.456/0.406, not "
            f"{value!r}"
        )
    return checked


def _mean(value: Any) -> tuple[float, ...]:
    return _per_channel("mean", value)


def _std(value: Any) -> tuple[float, ...]:
    checked = _per_channel("std", value)
    if min(checked) <= 0:
        raise InputError(f"std must be above 0, not {value!r}")
    return checked


def _scale(value: Any) -> float:
    try:
        upper, _, lower = str(value).partition("/")
        scale = float(upper) / float(lower or 1)
    except (ValueError, ZeroDivisionError):
        scale = 0.0
    if not 0 < scale < np.inf:
        raise InputError(f"scale must be a number above 0, such as 1/255, not {value!r}")
    return scale


def _count(value: Any) -> int:
    return positive("count", value)


@dataclass(frozen=True)
class Images(Reader):
    """The images of a folder, and of the folders in it, as samples of a model.

    Can be given as `calibration` wherever samples can. The layout, the number of channels, the
    dtype and, where it is fixed, the size are those of the model's input. The options are in the
    reference.

    Attributes:
        folder: where the images are.
        size: width and height, pixels; None for the model's.
        scale: pixels are multiplied by it first.
        mean: subtracted then: one number, or one for each channel.
        std: divided by then: the same.
        order: "rgb" or "bgr".
        fit: "stretch", "crop" or "pad".
        layout: "NCHW" or "NHWC"; None for the model's.
        count: images to use; None for all.
    """

    folder: str | os.PathLike[str]
    size: tuple[int, int] | None = option(
        None,
        "width and height in pixels, such as 320x240. Default: those of the model's input",
        check=_size,
    )
    scale: float = option(
        1.0, "what pixels of 0 to 255 are multiplied by first, such as 1/255", check=_scale
    )
    mean: tuple[float, ...] = option(
        (0.0,),
        "what is subtracted then: one number, or one for each channel with / between them",
        check=_mean,
    )
    std: tuple[float, ...] = option((1.0,), "what is divided by then, likewise", check=_std)
    order: str = option("rgb", "order of the channels", choices=("rgb", "bgr"))
    fit: str = option(
        "stretch",
        "how an image gets its size: `stretch` changes its proportions, `crop` keeps the middle, "
        "`pad` keeps all and fills up with grey",
        choices=("stretch", "crop", "pad"),
    )
    layout: str | None = option(
        None, "order of the axes. Default: that of the model's input", choices=("NCHW", "NHWC")
    )
    count: int | None = option(
        None, "how many images to use, from all over the folder. Default: all", check=_count
    )

    def samples(self, specs: Sequence[InputSpec]) -> Samples:
        """Decode the images.

        Args:
            specs: the inputs of the model.

        Raises:
            CalibrationError: when there are none, one cannot be read, or the model takes no images.
            InputError: without pillow.
        """
        where = f"calibration {os.fspath(self.folder)}"
        target = ImageInput.of(specs, where, self.layout)
        files = spread(files_in(Path(self.folder), SUFFIXES), self.count)
        if not files:
            raise CalibrationError(f"{where}: holds no images ({', '.join(SUFFIXES)})")
        width, height = target.size_for(self.size, where)
        for name, value in (("mean", self.mean), ("std", self.std)):
            if len(value) not in (1, target.channels):
                raise CalibrationError(
                    f"{where}: {name} has {len(value)} numbers, the model's input "
                    f"{target.spec.name!r} {target.channels} channel(s)"
                )
        rows = self._rows(files, target, (width, height))
        return stored(rows, target.spec.name, specs, where)

    def _rows(
        self, files: Sequence[Path], target: ImageInput, size: tuple[int, int]
    ) -> Iterator[Array]:
        """Images as the model takes them, without the axis of samples."""
        dtype = target.spec.dtype
        assert dtype is not None
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        for file in files:
            pixels = _decoded(file, _CHANNELS[target.channels], size, self.fit)
            if self.order == "bgr" and target.channels > 1:
                pixels[..., :3] = pixels[..., 2::-1].copy()
            values: Array = (pixels * self.scale - mean) / std
            if dtype.kind in "iu":
                limits = np.iinfo(dtype)
                values = np.clip(np.rint(values), limits.min, limits.max)
            image = values.astype(dtype)
            yield image if target.layout == "NHWC" else np.moveaxis(image, -1, 0)


@dataclass(frozen=True)
class ImageInput:
    """The input of a model that takes images.

    Attributes:
        spec: its name, dtype and shape.
        layout: "NCHW" or "NHWC".
        channels: 1, 3 or 4.
        width: pixels; None where it is open.
        height: pixels; None where it is open.
    """

    spec: InputSpec
    layout: str
    channels: int
    width: int | None
    height: int | None

    @classmethod
    def of(cls, specs: Sequence[InputSpec], where: str, layout: str | None = None) -> ImageInput:
        """Find it.

        Args:
            specs: the inputs of the model.
            where: names the source in messages.
            layout: that is asked for; None for the model's.

        Raises:
            CalibrationError: when there is none, or other inputs would have nothing.
        """
        listed = ", ".join(f"{spec.name} {describe(spec.shape or ())}" for spec in specs)
        if len(specs) != 1:
            raise CalibrationError(
                f"{where}: images fill one input, the model has {len(specs)} ({listed}); give a "
                "function that yields all of them: module.py:function"
            )
        spec = specs[0]
        shape = spec.shape if spec.shape is not None else (None,) * 4
        if len(shape) != 4 or spec.dtype is None or spec.dtype.kind not in "iufV":
            raise CalibrationError(
                f"{where}: the model takes no images of four axes ({listed}); give arrays or a "
                "function: module.py:function"
            )
        layout = layout or ("NHWC" if shape[3] in _CHANNELS and shape[1] not in _CHANNELS else None)
        layout = layout or "NCHW"
        channel, high, wide = (3, 1, 2) if layout == "NHWC" else (1, 2, 3)
        channels = shape[channel] if isinstance(shape[channel], int) else 3
        if channels not in _CHANNELS:
            raise CalibrationError(
                f"{where}: the model's input {listed} has {channels} channels as {layout}, an "
                "image 1, 3 or 4; say layout=NCHW or layout=NHWC, or give arrays"
            )
        height, width = (n if isinstance(n, int) else None for n in (shape[high], shape[wide]))
        return cls(spec, layout, int(channels), width, height)

    def size_for(self, size: tuple[int, int] | None, where: str) -> tuple[int, int]:
        """Width and height of the images.

        Args:
            size: asked for; None for the model's.
            where: names the source in messages.

        Raises:
            CalibrationError: when neither says it, or they differ.
        """
        width, height = size or (self.width, self.height)
        shape = describe(self.spec.shape or ())
        if width is None or height is None:
            raise CalibrationError(
                f"{where}: the model's input {self.spec.name!r} is {shape}: say the size of the "
                "images, such as size=224x224"
            )
        if (self.width or width, self.height or height) != (width, height):
            raise CalibrationError(
                f"{where}: size={width}x{height}, but the model's input {self.spec.name!r} is "
                f"{shape} ({self.layout}), which is size={self.width}x{self.height}"
            )
        return width, height

    def suggestion(self) -> str:
        """Options that fit the model, with the usual normalisation to replace."""
        size = f"{self.width or 224}x{self.height or 224}"
        if self.spec.dtype is not None and self.spec.dtype.kind in "iu":
            return f"size={size}" + (",rgb" if self.channels > 1 else "")
        return f"size={size},mean=127,std=128" + (",rgb" if self.channels > 1 else "")


def _decoded(path: Path, mode: str, size: tuple[int, int], fit: str) -> NDArray[np.float32]:
    """Pixels of an image, [height, width, channels].

    Raises:
        CalibrationError: when it cannot be read.
        InputError: without pillow.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise InputError(_MISSING) from None
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                grey = np.asarray(image, np.float32) / _SIXTEEN_BITS
                image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
            image = image.convert(mode)
    except Exception as error:  # decoders raise anything
        raise CalibrationError(
            f"calibration {path}: cannot be read as an image: {first_line(error)}; remove it"
        ) from error
    bilinear = Image.Resampling.BILINEAR
    if fit == "crop":
        image = ImageOps.fit(image, size, bilinear)
    elif fit == "pad":
        grey_level: Any = _PADDING if len(mode) == 1 else (_PADDING,) * len(mode)
        image = ImageOps.pad(image, size, bilinear, color=grey_level)
    elif image.size != size:
        image = image.resize(size, bilinear)
    pixels = np.array(image, np.float32)
    return pixels.reshape(size[1], size[0], len(mode))
