"""How long-running loops say where they are; silent unless somebody listens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Progress: TypeAlias = Callable[[Iterable[T], str, "int | None"], Iterator[T]]
"""Wraps an iterable: (items, what is being done, how many items or None) -> the same items."""


class Counted(Iterable[T]):
    """Items with a word on how it goes, which changes on the way.

    Args:
        items: what a loop goes through.

    Attributes:
        status: shown behind what is being done; empty for nothing.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self.status = ""

    def __iter__(self) -> Iterator[T]:
        """Go through the items."""
        return iter(self._items)


def during(progress: Progress[T], description: str, work: Callable[[], T]) -> T:
    """Do work that has no steps to count, and say meanwhile what is being done."""
    (result,) = progress((do() for do in (work,)), description, None)
    return result


def silent(items: Iterable[T], _description: str, _total: int | None = None) -> Iterator[T]:
    """Report nothing."""
    return iter(items)
