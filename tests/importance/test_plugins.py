"""A criterion of somebody else's package is found by its entry point, and a wrong one is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.oracle import parse

import onnxprune
from onnxprune.errors import InputError
from onnxprune.importance.registry import criterion_names, find_criterion

FIRST_UNITS = """
import numpy as np

class FirstUnits:
    name = "first-units"
    needs_calibration = False
    comparable = False

    def score(self, group, rng):
        return np.arange(group.group.size, dtype=float)

class TooFew(FirstUnits):
    name = "too-few"

    def score(self, group, rng):
        return np.zeros(1)

class NotANumber(FirstUnits):
    name = "not-a-number"

    def score(self, group, rng):
        return np.full(group.group.size, np.nan)

class Slope:
    name = "slope"
    needs_calibration = True
    needs_gradients = True
    comparable = True

    def score(self, group, rng):
        return group.gradients.mean_magnitude

class NoCriterion:
    name = "no-criterion"
"""

ENTRY_POINTS = """[onnxprune.criteria]
first-units = their_criteria:FirstUnits
too-few = their_criteria:TooFew
not-a-number = their_criteria:NotANumber
slope = their_criteria:Slope
no-criterion = their_criteria:NoCriterion
not-there = their_criteria:NotThere
no-module = their_lost_module:Lost
"""


@pytest.fixture(autouse=True)
def their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "their_criteria-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-criteria\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "their_criteria.py").write_text(FIRST_UNITS)
    monkeypatch.syspath_prepend(str(tmp_path))


def prune(criterion: str, **options: Any) -> onnxprune.PruneResult:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3] input) => (float[N, 2] y)
        { a = Gemm<transB = 1>(input, w1) h = Relu(a) y = Gemm<transB = 1>(h, w2) }"""
    rng = np.random.default_rng(0)
    weights = {"w1": rng.standard_normal((6, 3)), "w2": rng.standard_normal((2, 6))}
    proto = parse(text, {name: one.astype(np.float32) for name, one in weights.items()})
    return onnxprune.prune(proto, criterion=criterion, measure_latency=False, **options)


def test_it_is_listed_and_used() -> None:
    assert "first-units" in criterion_names()
    assert find_criterion("first-units").name == "first-units"
    assert prune("first-units").plan.groups[0].removed == (0, 1, 2)


def test_gradients_are_computed_where_it_asks_for_them() -> None:
    samples = {"input": np.random.default_rng(1).standard_normal((32, 3)).astype(np.float32)}
    theirs, ours = (prune(name, calibration=samples) for name in ("slope", "taylor"))
    assert theirs.plan.groups[0].removed == ours.plan.groups[0].removed
    assert find_criterion("slope").comparable


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(InputError, match=r"unknown criterion 'l3'.*l1, l2.*first-units"):
        find_criterion("l3")


@pytest.mark.parametrize("name", ["no-criterion", "not-there", "no-module"])
def test_what_is_no_criterion_is_named(name: str) -> None:
    with pytest.raises(InputError, match=name):
        find_criterion(name)


@pytest.mark.parametrize("name", ["too-few", "not-a-number"])
def test_scores_that_cannot_be_used_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} must return 6 finite scores for group w1\[0\]"):
        prune(name)
