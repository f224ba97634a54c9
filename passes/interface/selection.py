"""Which entries are to stay: numbers or names, given in a list, as text, or in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.feeds import batch_rows
from onnxprune.calibration.moments import BATCH
from onnxprune.calibration.streams import Samples
from onnxprune.errors import InputError
from onnxprune.model.execution import Execution
from onnxprune.model.runtime import Runtime


def read_entries(source: str | os.PathLike[str] | Sequence[int | str], what: str) -> list[str]:
    """Read numbers or names.

    Args:
        source: a sequence of them; text such as "3,7,9"; or the path of a file: one a line, or a
            JSON list.
        what: what they are, for messages.

    Raises:
        InputError: when there are none, or the file cannot be read.
    """
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        entries = _from_file(Path(text)) if _names_file(text) else text.split(",")
    else:
        entries = [str(one) for one in source]
    found = [one.strip() for one in entries if one.strip()]
    if not found:
        raise InputError(f"{what}: none are given; name those to keep, such as 3,7,9")
    return found


def resolve(
    entries: Sequence[str], size: int, names: Sequence[str] | None, what: str
) -> NDArray[np.int64]:
    """Turn numbers and names into numbers.

    Args:
        entries: as `read_entries` gives them.
        size: how many there are.
        names: their names in order, where they have any.
        what: what they are, for messages.

    Returns:
        ascending, each once, int64 [kept].

    Raises:
        InputError: for an unknown name, a number that does not exist, or when all are kept.
    """
    number_of = {name: number for number, name in enumerate(names or ())}
    found = set()
    for entry in entries:
        if entry in number_of:
            found.add(number_of[entry])
        elif entry.isdecimal():
            found.add(int(entry))
        else:
            known = "names are not known here; give `names`" if names is None else "no such name"
            raise InputError(f"{what} {entry!r}: {known}")
    if max(found) >= size:
        raise InputError(f"{what} {max(found)}: there are {size}, numbered from 0")
    if len(found) == size:
        raise InputError(f"{what}: all {size} are kept; leave some out")
    return np.array(sorted(found), np.int64)


def _names_file(text: str) -> bool:
    """Whether a text is a path: such a file exists, or it looks like nothing else."""
    return Path(text).is_file() or os.sep in text or text.endswith((".txt", ".json"))


def _from_file(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if path.suffix != ".json":
        return text.splitlines()
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: is no JSON: {error}") from None
    if not isinstance(entries, list):
        raise InputError(f"{path}: is no JSON list")
    return [str(one) for one in entries]


_LEAST = 64


@dataclass(frozen=True)
class KeptSamples:
    """A classifier that sorts samples.

    Attributes:
        classifier: the model, ready to run.
        output: name of its scores [samples, classes].
        kept: the classes whose samples are wanted.
    """

    classifier: Execution
    output: str
    kept: NDArray[np.int64]

    def of(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The samples of a feed whose best class is a kept one; arrays may have no rows."""
        best = self.classifier.run(feed)[self.output].argmax(axis=1)
        wanted = np.isin(best, self.kept)
        return {name: array[wanted] for name, array in feed.items()}


def samples_of(
    model: ir.Model, output: str, kept: NDArray[np.int64], samples: Samples, runtime: Runtime
) -> KeptSamples | None:
    """Sort samples by a classifier.

    Args:
        model: the classifier; must not change afterwards.
        output: its scores [samples, classes].
        kept: classes whose samples are wanted.
        samples: all there are.
        runtime: how to run the model.

    Returns:
        None where too few samples would be left, or where the model or a feed lets none be taken
        out.
    """
    if any(isinstance((spec.shape or (0,))[0], int) for spec in samples.specs):
        return None
    found = KeptSamples(Execution(model, runtime), output, kept)
    left = 0
    for feed in samples.batches(BATCH):
        if batch_rows(feed, samples.specs) is None:
            return None
        left += len(next(iter(found.of(feed).values())))
    return found if left >= _LEAST else None
