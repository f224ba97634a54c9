"""What every test of the command line needs: the shipped models, and a way to run a command."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.outcome import Outcome
from helpers.paths import MODELS

from onnxprune.cli import main
from onnxprune.cost.latency.measure import measure_pair
from onnxprune.pruning import results


@pytest.fixture
def models() -> Path:
    return MODELS


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time no longer than it takes to have figures."""
    monkeypatch.setattr(results, "measure_pair", functools.partial(measure_pair, seconds=0.0))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(one) for one in arguments])
        return Outcome(code, *capsys.readouterr())

    return call
