"""The progress bar: on terminals only, and only when it takes long."""

from __future__ import annotations

import io

from onnxprune.cli.progress import TerminalProgress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_silent_without_a_terminal():
    stream = io.StringIO()
    assert list(TerminalProgress(stream, patience=0.0)(range(5), "counting", 5)) == [0, 1, 2, 3, 4]
    assert stream.getvalue() == ""


def test_silent_when_it_is_quick():
    stream = Terminal()
    assert list(TerminalProgress(stream)(range(5), "counting", 5)) == [0, 1, 2, 3, 4]
    assert stream.getvalue() == ""


def test_shows_a_bar_when_it_takes_long(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    counted = list(TerminalProgress(stream, patience=0.0)(iter(range(5)), "counting", None))
    assert counted == [0, 1, 2, 3, 4]
    assert "counting" in stream.getvalue()
