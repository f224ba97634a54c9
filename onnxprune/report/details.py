"""What a pass tells of itself, as facts and tables: whatever plain data it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_LISTED = 24


@dataclass(frozen=True)
class DetailTable:
    """A mapping of names to values, or to several values each.

    Attributes:
        title: what it is called.
        columns: headings behind that of the names; empty for a single value each.
        rows: name and cells as text, with the number to sort by where a cell is one.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]


def detail_facts(details: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and texts of what is a single value or a list; nothing for what is empty."""
    facts = []
    for name, value in details.items():
        if _is_table(value):
            continue
        if text := _text(value):
            facts.append((_words(name), text))
    return facts


def detail_tables(details: Mapping[str, Any]) -> list[DetailTable]:
    """One table for each mapping that is not empty."""
    return [_table(name, value) for name, value in details.items() if _is_table(value)]


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _table(title: str, details: Mapping[str, Any]) -> DetailTable:
    values = list(details.values())
    if all(isinstance(row, Mapping) for row in values):
        names = tuple(dict.fromkeys(str(key) for row in values for key in row))
        cells = [[_cell(row.get(name)) for name in names] for row in values]
        columns = tuple(map(_words, names))
    else:
        columns = ()
        cells = [list(_cells(value)) for value in values]
    rows = tuple(
        (str(name), tuple(row)) for name, row in zip(details, _of_one_length(cells), strict=True)
    )
    return DetailTable(_words(title), columns, rows)


def _of_one_length(cells: list[list[tuple[str, Any]]]) -> Iterator[list[tuple[str, Any]]]:
    longest = max(map(len, cells))
    return (row + [("", "")] * (longest - len(row)) for row in cells)


def _cells(value: Any) -> Iterator[tuple[str, Any]]:
    """A short list of numbers takes a cell for each, anything else a single one."""
    if _is_list(value) and 0 < len(value) <= 3 and all(_is_number(number) for number in value):
        return map(_cell, value)
    return iter([_cell(value)])


def _cell(value: Any) -> tuple[str, Any]:
    return _text(value), float(value) if _is_number(value) else ""


def _text(value: Any) -> str:
    if isinstance(value, (np.ndarray, np.generic)):
        return _text(value.tolist())
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if _is_list(value):
        more = f", ... ({len(value)} in all)" if len(value) > _LISTED else ""
        return ", ".join(_text(entry) for entry in list(value)[:_LISTED]) + more
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(str(name))} {_text(entry)}" for name, entry in value.items())
    return str(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _words(name: str) -> str:
    return str(name).replace("_", " ")
