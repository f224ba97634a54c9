"""Which entries are to stay: numbers or names, given in a list, as text, or in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["read_entries", "resolve"]


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
