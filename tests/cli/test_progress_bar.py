"""The progress bar: on terminals only, and only when it takes long."""

from __future__ import annotations

import io
import time

import pytest
from rich.text import Text

from onnxprune.cli.progress import TerminalProgress
from onnxprune.progress import Counted, during


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "240")
    return Terminal()


def test_silent_without_a_terminal():
    stream = io.StringIO()
    assert list(TerminalProgress(stream, patience=0.0)(range(5), "counting", 5)) == [0, 1, 2, 3, 4]
    assert stream.getvalue() == ""


def test_silent_when_it_is_quick(terminal):
    assert list(TerminalProgress(terminal)(range(5), "counting", 5)) == [0, 1, 2, 3, 4]
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("total", [None, 5])
def test_shows_a_bar_when_it_takes_long(terminal, total):
    counted = list(TerminalProgress(terminal, patience=0.0)(iter(range(5)), "counting", total))
    assert counted == [0, 1, 2, 3, 4]
    assert "counting" in terminal.getvalue()
    assert ("left" in terminal.getvalue()) == (total is not None)


def test_says_how_it_goes(terminal):
    steps = Counted(range(2))
    deadline = time.monotonic() + 30
    for step in TerminalProgress(terminal, patience=0.0)(steps, "fine-tuning", 2):
        steps.status = "loss 0.25"
        # the bar is drawn some times a second
        while step and "loss 0.25" not in terminal.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "fine-tuning, loss 0.25" in Text.from_ansi(terminal.getvalue()).plain


def test_shows_a_bar_in_the_middle_of_a_long_step(terminal):
    def slow():
        deadline = time.monotonic() + 30
        while "waiting" not in terminal.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        return "done"

    assert during(TerminalProgress(terminal, patience=0.05), "waiting", slow) == "done"
    assert "waiting" in terminal.getvalue()


def test_a_bar_fits_a_hundred_columns_however_long_the_description(terminal):
    list(TerminalProgress(terminal, patience=0.0)(range(3), "word " * 50, 3))
    # control sequences take no room
    shown = "".join(terminal.getvalue().split("\x1b[?25l"))
    lines = [line for line in shown.replace("\r", "\n").split("\n") if "word" in line]
    assert lines
    assert all(len(Text.from_ansi(line).plain) <= 100 for line in lines)


def test_an_error_takes_the_bar_away(terminal):
    bars = TerminalProgress(terminal, patience=0.0)

    def failing():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        during(bars, "failing", failing)
    assert terminal.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in terminal.getvalue()
