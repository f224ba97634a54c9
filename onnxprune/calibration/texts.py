"""Lines of a text file as samples: cut into tokens by a Hugging Face tokenizer file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.calibration.feeds import Array, Feed, describe
from onnxprune.calibration.reader import Reader, positive, spread
from onnxprune.calibration.sample_axes import SampleAxes
from onnxprune.calibration.streams import Numbered, Samples
from onnxprune.declaration import option
from onnxprune.errors import CalibrationError, InputError, first_line
from onnxprune.model.inputs import InputSpec

SUFFIX = ".txt"
"""Ending of the name of a text file."""

_LONGEST = 512  # tokens of a text, where neither model nor tokenizer says it
_MISSING = "reading texts needs tokenizers: pip install 'onnxprune[text]'"
_ROLES = (
    ("mask", ("mask",)),
    ("types", ("token_type", "segment")),
    ("positions", ("position",)),
    ("ids", ("ids", "token", "input")),
)
"""What an input is for, and the words in its name that say so; the first that fits."""

_PADDING_TOKENS = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")


def _length(value: Any) -> int:
    return positive("length", value)


def _count(value: Any) -> int:
    return positive("count", value)


@dataclass(frozen=True)
class Texts(Reader):
    """The lines of a text file as samples of a model that reads tokens.

    Can be given as `calibration` wherever samples can. Empty lines are left out. Inputs are
    recognised by their names: token ids, attention mask, token types, positions. Where the model
    leaves the length open and none is given, texts of different lengths never share a batch, so
    nothing is padded.

    Attributes:
        file: UTF-8, one text in each line.
        tokenizer: path of a `tokenizer.json`.
        length: tokens of every text, padded or cut; None for the model's, or each text's own.
        count: texts to use; None for all.
    """

    file: str | os.PathLike[str]
    tokenizer: str | os.PathLike[str]
    length: int | None = option(
        None,
        "tokens of every text, padded or cut. Default: that of the model's inputs, or where they "
        "leave it open, each text's own",
        check=_length,
    )
    count: int | None = option(
        None, "how many texts to use, from all over the file. Default: all", check=_count
    )

    def samples(self, specs: Sequence[InputSpec]) -> Samples:
        """Cut the texts into tokens.

        Args:
            specs: the inputs of the model.

        Raises:
            CalibrationError: when a file cannot be read, or the model has other inputs.
            InputError: without tokenizers.
        """
        where = f"calibration {os.fspath(self.file)}"
        roles = {spec.name: _role(spec, where) for spec in specs}
        if "ids" not in roles.values():
            raise CalibrationError(
                f"{where}: none of the inputs {', '.join(map(repr, roles))} takes token ids; give "
                "arrays or a function: module.py:function"
            )
        length = self._fixed_length(specs, where)
        texts = spread(_lines(Path(self.file), where), self.count)
        tokenizer = _loaded(Path(self.tokenizer))
        encoded = [
            {spec.name: _tokens(entry, roles[spec.name], spec) for spec in specs}
            for entry in _encoded(tokenizer, texts, length)
        ]
        return _TokenSamples(encoded, tuple(specs))

    def _fixed_length(self, specs: Sequence[InputSpec], where: str) -> int | None:
        """Tokens of every text; None where each has its own length.

        Raises:
            CalibrationError: when the model fixes another length than is asked for.
        """
        sizes = {
            spec.name: spec.shape[1]
            for spec in specs
            if spec.shape is not None and isinstance(spec.shape[1], int)
        }
        for name, size in sizes.items():
            if size != (self.length or size):
                raise CalibrationError(
                    f"{where}: length={self.length}, but the model's input {name!r} takes {size} "
                    f"tokens; leave it out or give length={size}"
                )
        return next((int(size) for size in sizes.values()), self.length)


class _TokenSamples(Samples):
    """Texts as tokens; those of one length share batches."""

    def __init__(self, texts: Sequence[Feed], specs: tuple[InputSpec, ...]) -> None:
        self.specs = specs
        first = specs[0].shape[0] if specs[0].shape else None
        self.axes = SampleAxes(
            {spec.name: 0 for spec in specs}, first if isinstance(first, int) else 0
        )
        self.count = len(texts)
        self._texts = texts

    def batches(self, size: int) -> Iterator[Feed]:
        """Go through the texts; a batch comes as soon as it is full, the smaller ones last."""
        for _, feed in self.numbered(size):
            yield feed

    def numbered(self, size: int) -> Iterator[Numbered]:
        """Go through the texts with their numbers."""
        block = self.axes.fixed or max(size, 1)
        waiting: dict[int, list[int]] = {}
        for number, text in enumerate(self._texts):
            same = waiting.setdefault(text[self.specs[0].name].shape[1], [])
            same.append(number)
            if len(same) == block:
                yield self._joined(same)
                same.clear()
        for same in waiting.values():
            if same and not self.axes.fixed:
                yield self._joined(same)

    def _joined(self, numbers: Sequence[int]) -> Numbered:
        feed = self.axes.joined([self._texts[number] for number in numbers])
        return np.array(numbers, np.int64), feed


def _role(spec: InputSpec, where: str) -> str:
    """What an input is for.

    Raises:
        CalibrationError: when that is unknown.
    """
    name = spec.name.lower()
    role = next((role for role, words in _ROLES if any(word in name for word in words)), "")
    ranked = spec.shape is None or len(spec.shape) == 2
    if not role or not ranked or spec.dtype is None or spec.dtype.kind not in "iufb":
        raise CalibrationError(
            f"{where}: nothing fills the input {spec.name!r} {describe(spec.shape or ())}: texts "
            "give token ids, attention mask, token types and positions [batch, length]; give "
            "arrays or a function: module.py:function"
        )
    return role


def _lines(path: Path, where: str) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{where}: cannot be read: {first_line(error)}") from error
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise CalibrationError(f"{where}: gives no samples; put one text in each line")
    return texts


def _loaded(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InputError(_MISSING) from None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing more special
        raise CalibrationError(
            f"tokenizer {path}: is no tokenizer.json of Hugging Face: {first_line(error)}"
        ) from error


def _encoded(tokenizer: Any, texts: Sequence[str], length: int | None) -> list[Any]:
    """Encode texts, padded and cut to a length if there is one."""
    own = (tokenizer.truncation or {}).get("max_length", _LONGEST)
    padding = dict(tokenizer.padding or {})
    tokenizer.no_padding()
    tokenizer.enable_truncation(length or own)
    if length is not None:
        known = ((token, tokenizer.token_to_id(token)) for token in _PADDING_TOKENS)
        token, number = next(((t, n) for t, n in known if n is not None), (_PADDING_TOKENS[0], 0))
        tokenizer.enable_padding(
            length=length,
            direction=padding.get("direction", "right"),
            pad_id=padding.get("pad_id", number),
            pad_token=padding.get("pad_token", token),
        )
    return list(tokenizer.encode_batch(list(texts)))


def _tokens(entry: Any, role: str, spec: InputSpec) -> Array:
    """One input of one text, [1, length]."""
    ids = entry.ids
    values = {
        "ids": ids,
        "mask": entry.attention_mask,
        "types": entry.type_ids,
        "positions": range(len(ids)),
    }[role]
    return np.array([list(values)], spec.dtype)
