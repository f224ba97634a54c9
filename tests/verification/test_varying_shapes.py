"""Outputs as long as what was found: an answer of another length does not follow."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import parse

from onnxprune.calibration.samples import read_samples
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import load
from onnxprune.model.runtime import Runtime
from onnxprune.verification.comparison import OutputComparison, collapse_text, compare_outputs
from onnxprune.verification.divergence import divergence
from onnxprune.verification.quality import QualityMeasure

RUNTIME = Runtime(threads=1)
RNG = np.random.default_rng(0)
POINTS = {"x": RNG.random((20, 1, 6, 4)).astype(np.float32)}
FOUND = """<ir_version: 8, opset_import: ["": 17]>
    g (float[1, 6, 4] x) => (float[K, 4] y)
    { rows = Squeeze(x, zero) scores = ReduceMax<axes = [1], keepdims = 0>(rows)
      sure = Greater(scores, least) found = Compress<axis = 0>(rows, sure)
      y = Mul(found, scale) }"""


def finder(least: float, scale: float = 1.0) -> onnx.ModelProto:
    """Gives the rows whose largest entry is above a bound: none for all or some samples."""
    weights = {"least": np.float32(least), "scale": np.float32(scale), "zero": np.array([0])}
    return parse(FOUND, {name: np.asarray(value) for name, value in weights.items()})


def compared(result: onnx.ModelProto, original: onnx.ModelProto) -> OutputComparison:
    first, second = load(original).model, load(result).model
    feeds = [{"x": x} for x in POINTS["x"]]
    samples = read_samples(feeds, input_specs(first))
    (output,) = compare_outputs(first, second, samples, RUNTIME)
    return output


def test_the_same_follows_also_where_nothing_is_found() -> None:
    same = compared(finder(0.9), finder(0.9))
    assert same.r2 == 1
    assert same.reshaped == 0
    assert not same.collapsed


def test_nothing_found_where_there_was_something_is_a_collapse() -> None:
    dead = compared(finder(2.0), finder(0.5))
    assert dead.reshaped == 1
    assert dead.r2 == 0
    assert dead.collapsed
    assert "'y'" in collapse_text([dead])
    assert "100.0% of the samples come out in another shape" in collapse_text([dead])


def test_samples_of_another_length_follow_by_nothing() -> None:
    some = compared(finder(0.9), finder(0.85))
    assert 0 < some.reshaped < 1
    assert some.r2 == pytest.approx(1 - some.reshaped)


@pytest.mark.parametrize(("least", "low", "high"), [(2.0, 1, 1), (0.9, 0.1, 0.99), (0.85, 0, 0)])
def test_the_divergence_counts_them_one_each(least: float, low: float, high: float) -> None:
    original = load(finder(0.85)).model
    pairs = [({"y": found(x, 0.85)}, {"y": found(x, least)}) for x in POINTS["x"][:, 0]]
    assert low <= divergence(original, pairs) <= high


def found(rows: Any, least: float) -> Any:
    return rows[rows.max(axis=1) > least]


def test_quality_of_a_model_that_finds_nothing_is_nothing() -> None:
    original = load(finder(0.85)).model
    samples = read_samples([{"x": x} for x in POINTS["x"]], input_specs(original))
    measure = QualityMeasure(original, samples, RUNTIME)
    assert measure.of(original).result == 100
    worse = [measure.of(load(finder(least)).model).result for least in (0.87, 0.9, 2.0)]
    assert worse == sorted(worse, reverse=True)
    assert worse[-1] < 50
