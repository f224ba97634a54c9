"""Which reader opens samples that are no arrays, and what to say where none was named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune.calibration import audio, images, texts
from onnxprune.calibration.reader import Reader, files_in, read_settings
from onnxprune.declaration import declared_options
from onnxprune.errors import CalibrationError, InputError
from onnxprune.model.inputs import InputSpec
from onnxprune.options import AUDIO, IMAGES, TOKENIZER


def reader_of(source: Any, settings: Mapping[str, str | None]) -> Any:
    """Samples as options of the command line say.

    Args:
        source: where they are; None for none.
        settings: value of each of `options.READERS`, by name; None where it is not set.

    Returns:
        a reader, or the source itself where no option is set.

    Raises:
        InputError: for several options, none of which then says how, or one without a source.
    """
    given = {name: text for name, text in settings.items() if text is not None}
    if not given:
        return source
    if len(given) > 1:
        flags = " and ".join(f"--{name}" for name in given)
        raise InputError(f"{flags} are for different kinds of samples; give one")
    ((name, text),) = given.items()
    if source is None:
        raise InputError(f"--{name} says how samples are read; say where they are: --calibration")
    if name == TOKENIZER.name:
        file, _, rest = text.partition(",")
        options = read_settings(rest, declared_options(texts.Texts), "--tokenizer")
        return texts.Texts(source, file, **options)
    kinds: Mapping[str, type[Reader]] = {IMAGES.name: images.Images, AUDIO.name: audio.Audio}
    kind: Any = kinds[name]
    return kind(source, **read_settings(text, declared_options(kind), f"--{name}"))


def advice(path: Path, specs: Sequence[InputSpec]) -> str:
    """Name the option that reads what is at a path.

    Args:
        path: of a file or folder.
        specs: the inputs of the model.

    Returns:
        what to do, with values that fit the model; empty where no option reads it.
    """
    if path.is_file():
        if path.suffix == texts.SUFFIX:
            return "is text: name the tokenizer.json of the model with --tokenizer FILE"
        if path.suffix.lower() in audio.SUFFIXES:
            return "is audio: say how it is read, such as --audio rate=16000"
        return ""
    if files_in(path, images.SUFFIXES):
        try:
            suggestion = images.ImageInput.of(specs, f"calibration {path}").suggestion()
        except CalibrationError as error:
            return f"holds images, but {str(error).partition(': ')[2]}"
        return (
            "holds images: say how the model wants them, such as --images "
            f"{suggestion} (in Python onnxprune.Images)"
        )
    if files_in(path, audio.SUFFIXES):
        return (
            "holds audio: say how the model wants it, such as --audio rate=16000,length=16000 (in "
            "Python onnxprune.Audio)"
        )
    return ""
