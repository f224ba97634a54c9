"""The published claim on spiral data: half of the hidden units are not needed, if chosen well.

Units with the smallest standard deviation go, their means are folded. Tolerances: the accuracy on
the 1000 test points stays what it was, to the point; of a 200x200 decision map over [-1, 1]^2 less
than 1 % changes. A random half, folded just the same, loses clearly.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.oracle import ONE_THREAD, difference, outputs
from helpers.paths import MODELS
from numpy.typing import NDArray

import onnxprune
from onnxprune.model.execution import open_session, run

MODEL = MODELS / "spirals_mlp.onnx"
CALIBRATION = MODELS / "spirals_calibration.npz"

HALF = {"0.weight[0]": (50, 25), "2.weight[0]": (50, 25)}
MAP_TOLERANCE = 0.01
CLEAR_LOSS = 0.2


def decisions(model: onnx.ModelProto, points: NDArray[np.float32]) -> NDArray[np.int64]:
    scores = run(open_session(model, ONE_THREAD), {"x": points})
    return np.asarray(next(iter(scores.values())).argmax(axis=-1))


def accuracy(model: onnx.ModelProto) -> float:
    with np.load(MODELS / "spirals_test.npz", allow_pickle=False) as test:
        return float((decisions(model, test["x"]) == test["labels"]).mean())


def decision_map(model: onnx.ModelProto) -> NDArray[np.int64]:
    ticks = np.linspace(-1, 1, 200, dtype=np.float32)
    return decisions(model, np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2))


def half(criterion: str, compensate: str = "mean", seed: int = 0) -> onnx.ModelProto:
    result = onnxprune.prune(
        onnx.load(MODEL),
        calibration=CALIBRATION,
        target={"channels": 0.5},
        criterion=criterion,
        compensate=compensate,
        seed=seed,
        lossless=False,
        force=True,
        measure_latency=False,
    )
    assert result.report.widths == HALF
    assert isinstance(result.model, onnx.ModelProto)
    return result.model


def test_without_the_quieter_half_nothing_changes() -> None:
    original, small = onnx.load(MODEL), half("std")
    assert accuracy(small) == accuracy(original) == 1.0
    assert np.mean(decision_map(small) != decision_map(original)) < MAP_TOLERANCE


def test_it_is_the_folding_that_keeps_the_map() -> None:
    original, bare = onnx.load(MODEL), half("std", "none")
    assert np.mean(decision_map(bare) != decision_map(original)) > 2 * MAP_TOLERANCE


@pytest.mark.parametrize("seed", range(4))
def test_without_a_random_half_it_falls_apart(seed: int) -> None:
    original, small = onnx.load(MODEL), half("random", seed=seed)
    assert accuracy(small) < accuracy(original) - CLEAR_LOSS
    assert np.mean(decision_map(small) != decision_map(original)) > 10 * MAP_TOLERANCE


def test_a_unit_that_never_changes_goes_without_a_trace() -> None:
    """Unit 7 of the first layer is made constant; it is what std removes first."""
    original = onnx.load(MODEL)
    tensors = {one.name: one for one in original.graph.initializer}
    for name, value in (("0.weight", 0.0), ("0.bias", 1.5)):
        array = onnx.numpy_helper.to_array(tensors[name]).copy()
        array[7] = value
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
    result = onnxprune.prune(
        original,
        calibration=CALIBRATION,
        target={"channels": 0.98},
        criterion="std",
        include=["0.weight"],
        lossless=False,
        measure_latency=False,
    )
    assert [(one.id, one.removed) for one in result.plan.groups] == [("0.weight[0]", (7,))]
    with np.load(MODELS / "spirals_test.npz", allow_pickle=False) as test:
        feed = {"x": test["x"]}
    assert isinstance(result.model, onnx.ModelProto)
    assert difference(outputs(original, feed), outputs(result.model, feed)) < 1e-6
