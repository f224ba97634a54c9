"""A bar for loops that take long, on terminals only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["TerminalProgress"]

T = TypeVar("T")

_PATIENCE = 2.0


class TerminalProgress:
    """A `Progress` that shows a bar once a loop has taken about two seconds.

    Args:
        stream: where to; nothing is ever shown when it is no terminal.
        patience: seconds before a bar appears.
    """

    def __init__(self, stream: TextIO, patience: float = _PATIENCE) -> None:
        self._stream = stream
        self._patience = patience

    def __call__(
        self, items: Iterable[T], description: str, total: int | None = None
    ) -> Iterator[T]:
        """Pass the items on."""
        return self._watched(items, description, total) if self._stream.isatty() else iter(items)

    def _watched(self, items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
        started = time.monotonic()
        done = 0
        remaining = iter(items)
        for item in remaining:
            yield item
            done += 1
            if time.monotonic() - started >= self._patience:
                break
        else:
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(file=self._stream), transient=True) as bars:
            bar = bars.add_task(description, total=total, completed=done)
            for item in remaining:
                yield item
                bars.advance(bar)
