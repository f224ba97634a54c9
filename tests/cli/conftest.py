"""What every test of the command line needs: the shipped models, and a way to run a command."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from onnxprune import outcome
from onnxprune.cli import main
from onnxprune.cost.latency import measure_pair

MODELS = Path(__file__).resolve().parents[2] / "models"


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, code: int, *words: str) -> None:
        """Check that it ended with one clear line and nothing else."""
        assert self.code == code, self.err
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("onnxprune: error: ")
        for word in words:
            assert word in self.err


@pytest.fixture
def models() -> Path:
    return MODELS


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time no longer than it takes to have figures."""
    monkeypatch.setattr(outcome, "measure_pair", functools.partial(measure_pair, seconds=0.0))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(one) for one in arguments])
        return Outcome(code, *capsys.readouterr())

    return call
