"""A bar for loops that take long, on terminals only."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO, TypeVar

from onnxprune.progress import Counted

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


T = TypeVar("T")

_PATIENCE = 2.0
_WIDTH = 100
_BAR = 28


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
        bar = _LateBar(self._stream, description, total, self._patience)
        try:
            for item in items:
                yield item
                bar.advance(items.status if isinstance(items, Counted) else "")
        finally:
            bar.close()


class _LateBar:
    """A bar that appears after a while, also in the middle of a step.

    Args:
        stream: a terminal.
        description: what is being done.
        total: how many steps; None where nobody knows.
        patience: seconds before it appears.
    """

    def __init__(
        self, stream: TextIO, description: str, total: int | None, patience: float
    ) -> None:
        self._stream = stream
        self._description = description
        self._total = total
        self._done = 0
        self._status = ""
        self._started = time.monotonic()
        self._closed = False
        self._bars: Progress | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(patience, self._show)
        self._timer.daemon = True
        if patience > 0:
            self._timer.start()
        else:
            self._show()

    def advance(self, status: str = "") -> None:
        """One step more is done.

        Args:
            status: how it goes.
        """
        with self._lock:
            self._done += 1
            self._status = status
            if self._bars is not None:
                task = self._bars.task_ids[0]
                what = self._what()
                self._bars.update(task, description=what, completed=self._done, left=self._left())

    def close(self) -> None:
        """Take the bar away."""
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._bars is not None:
                self._bars.stop()

    def _what(self) -> str:
        """What is being done, and how it goes."""
        return f"{self._description}, {self._status}" if self._status else self._description

    def _left(self) -> str:
        """Time left if the steps to come are like those that are done."""
        if self._total is None or not self._done:
            return ""
        each = (time.monotonic() - self._started) / self._done
        left = each * max(self._total - self._done, 0)
        return f"{left:.0f} s left" if left < 100 else f"{left / 60:.0f} min left"

    def _show(self) -> None:
        with self._lock:
            if self._closed:
                return
            bars = _make_bars(self._stream, counted=self._total is not None)
            bars.add_task(self._what(), total=self._total, completed=self._done, left=self._left())
            bars.start()
            self._bars = bars


def _make_bars(stream: TextIO, *, counted: bool) -> Progress:
    """What is being done, how far it is, and how long it will take; else how long it has taken."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    console = Console(file=stream)
    if console.width > _WIDTH:
        console = Console(file=stream, width=_WIDTH)
    what = Column(no_wrap=True, overflow="ellipsis", max_width=46)
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False, table_column=what),
        BarColumn(_BAR),
    ]
    if counted:
        columns += [MofNCompleteColumn(), TextColumn("{task.fields[left]}")]
    else:
        columns += [TimeElapsedColumn()]
    return Progress(*columns, console=console, transient=True)
