"""Latency of a run: the batch it is measured on, and a machine too busy to measure on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.paths import MODELS
from helpers.solving import images, mlp

import onnxprune
from onnxprune.cost.latency.measure import Latency
from onnxprune.cost.macs import node_macs
from onnxprune.cost.memory import stored_parameters
from onnxprune.errors import InputError, TargetUnreachable
from onnxprune.model.node_view import ShapeOf
from onnxprune.passes.pipeline import run as stage
from onnxprune.pruning import prepare, search

SAMPLES = {"x": images(48, 8)}


class Stopwatch:
    """Measures nothing: notes the batches and says what it was told."""

    def __init__(self, ratio: float, interval: tuple[float, float]) -> None:
        self.batches: list[int] = []
        self._ratio, self._interval = ratio, interval

    def __call__(
        self, original: ir.Model, result: ir.Model, feed: Mapping[str, Any], *given: Any
    ) -> Latency:
        rows = len(feed["x"])
        self.batches.append(rows)
        after = 1e-3 * self._ratio
        ratio = self._ratio
        return Latency(1e-3, after, ratio, ratio, ratio, 9, self._interval, batch=rows)


class CountedTable:
    """Stands for the table of kernels: a second for every multiplication."""

    def __init__(self, *given: Any) -> None: ...

    def seconds(self, node: ir.Node, shape_of: ShapeOf) -> float:
        return float(node_macs(node, shape_of))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "LatencyTable", CountedTable)


TIMED: dict[str, Any] = {"calibration": SAMPLES, "round_to": 1, "threads": 1}


@pytest.mark.parametrize(("batch", "rows"), [(None, 2), (1, 1), (7, 7)])
def test_the_batch_is_the_one_asked_for(
    monkeypatch: pytest.MonkeyPatch, batch: int | None, rows: int
) -> None:
    watch = Stopwatch(0.8, (0.79, 0.81))
    monkeypatch.setattr(stage, "measure_pair", watch)
    report = onnxprune.prune(mlp(), calibration=SAMPLES, batch=batch, threads=1).report
    assert watch.batches == [rows]
    assert report.to_dict()["latency"]["batch"] == rows
    assert report.to_dict()["latency"]["reliable"]
    # MACs and memory still refer to the traced size
    assert report.batch == 2


@pytest.mark.usefixtures("counted")
def test_a_target_of_latency_is_measured_on_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(0.9, (0.89, 0.91))
    monkeypatch.setattr(search, "measure_pair", watch)
    onnxprune.prune(mlp(), target={"latency": 0.9}, batch=5, **TIMED)
    assert set(watch.batches) == {5}


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize(("interval", "busy"), [((0.97, 0.99), False), ((0.33, 8.45), True)])
def test_a_target_that_is_missed_on_a_busy_machine_says_so(
    monkeypatch: pytest.MonkeyPatch, interval: tuple[float, float], busy: bool
) -> None:
    monkeypatch.setattr(search, "measure_pair", Stopwatch(0.98, interval))
    with pytest.raises(TargetUnreachable, match=r"latency=0\.5 cannot be reached") as caught:
        onnxprune.prune(mlp(), target={"latency": 0.5}, **TIMED)
    assert ("the machine is too busy to tell: close other programs" in str(caught.value)) == busy


def test_a_batch_that_the_model_does_not_take_is_refused_before_anything_runs() -> None:
    fixed = mlp()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(InputError, match="batch 3: the model takes batches of 2 only"):
        onnxprune.prune(fixed, calibration=SAMPLES, batch=3)
    with pytest.raises(InputError, match="batch must be a whole number of at least 1, not 0"):
        onnxprune.prune(mlp(), calibration=SAMPLES, batch=0)


class TimedByWeights:
    """Says that latency goes with the weights that are left, but less steeply.

    What is asked of the table comes out slower than it says.
    """

    def __init__(self) -> None:
        self.ratios: list[float] = []
        self.seconds: list[float] = []

    def __call__(
        self,
        original: ir.Model,
        result: ir.Model,
        feed: Mapping[str, Any],
        runtime: Any,
        seconds: float,
    ) -> Latency:
        before, after = (stored_parameters(model.graph) for model in (original, result))
        ratio = 0.4 + 0.6 * after / before
        self.ratios.append(ratio)
        self.seconds.append(seconds)
        return Latency(1.0, ratio, ratio, ratio, ratio, 9, (ratio, ratio))


@pytest.mark.usefixtures("counted")
def test_allocations_are_compared_after_one_build_and_one_correction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = TimedByWeights()
    monkeypatch.setattr(search, "measure_pair", watch)
    samples = np.load(MODELS / "digits_resnet_calibration.npz")
    given = {**TIMED, "calibration": {name: samples[name][:64] for name in samples.files}}
    model = onnx.load(MODELS / "digits_resnet.onnx")
    result = onnxprune.prune(model, target={"latency": 0.7}, **given)
    assert len(result.report.trials) > 4
    rough = [seconds for seconds in watch.seconds if seconds == search._ROUGH_SECONDS]
    assert watch.seconds[: len(rough)] == rough
    assert len(rough) == 2
    assert len(watch.seconds) <= len(rough) + 4
    assert watch.ratios[-1] == pytest.approx(0.7, rel=0.05)
    assert result.report.latency is not None
    assert result.report.latency.ratio == watch.ratios[-1]
