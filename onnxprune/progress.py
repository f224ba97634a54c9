"""How long-running loops say where they are; silent unless somebody listens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias, TypeVar

__all__ = ["Progress", "silent"]

T = TypeVar("T")

Progress: TypeAlias = Callable[[Iterable[T], str, "int | None"], Iterator[T]]
"""Wraps an iterable: (items, what is being done, how many items or None) -> the same items."""


def silent(items: Iterable[T], _description: str, _total: int | None = None) -> Iterator[T]:
    """Report nothing."""
    return iter(items)
