"""What was pruned is trained to answer as the original does, where the options ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.paths import MODELS

import onnxprune
from onnxprune import InputError
from onnxprune.calibration.context import RunContext
from onnxprune.coupling.analysis import analyse
from onnxprune.model.load import load
from onnxprune.model.protobuf import to_proto
from onnxprune.pruning.finetune import kept_indices
from onnxprune.pruning.plan import planned_removal
from onnxprune.pruning.quality import prune_within
from onnxprune.verification.quality import Quality

RESNET = MODELS / "digits_resnet.onnx"
COMMON: dict[str, Any] = {"threads": 1, "measure_latency": False}


@pytest.fixture(scope="module")
def images() -> Any:
    with np.load(MODELS / "digits_resnet_calibration.npz") as file:
        return {"images": file["images"][:256]}


def pruned(images: Any, **options: Any) -> onnxprune.PruneResult:
    options = {"target": {"macs": 0.3}, "finetune": True, "effort": 8, **options}
    return onnxprune.prune(RESNET, calibration=images, **COMMON, **options)


@pytest.fixture(scope="module")
def result(images: Any) -> onnxprune.PruneResult:
    return pruned(images)


def proto(result: onnxprune.PruneResult) -> bytes:
    return to_proto(result._ir).SerializeToString(deterministic=True)


def test_it_comes_closer_to_the_original_on_samples_that_nothing_was_fitted_on(result: Any) -> None:
    tuning = result.report.tuning
    assert tuning.best > 0
    assert tuning.after < 0.9 * tuning.before
    # of 256 samples an eighth is held out, and the rest is trained on
    assert tuning.samples == 224


def test_the_cut_is_certified_and_stays(result: Any, images: Any) -> None:
    plain = pruned(images, finetune=False, target={"macs": 0.3})
    assert result.report.certificate.holds
    assert {node.op_type for node in result._ir.graph} == {node.op_type for node in plain._ir.graph}
    assert result.report.result.macs <= 0.3 * result.report.original.macs * 1.001


def test_components_are_no_longer_the_units_of_the_original(result: Any) -> None:
    context = RunContext()
    analysis = analyse(load(RESNET).model, context, normalised_axes="hidden", file_bytes=1)
    removal = planned_removal(analysis, result.plan)
    (group, *_) = (each for each in analysis.groups if each.name in removal.units)
    tensor = group.readings[0].consumer.tensor
    assert kept_indices(analysis, removal, ())(tensor) is not None
    assert kept_indices(analysis, removal, (group.name,))(tensor) is None


def test_a_plan_repeats_it_byte_for_byte_without_looking_for_a_rate(
    result: Any, images: Any
) -> None:
    assert result.plan.tuning["rate"] > 0
    again = onnxprune.apply(RESNET, result.plan, calibration=images, **COMMON)
    assert proto(again) == proto(result)
    assert again.report.tuning.probes == {}
    read = onnxprune.Plan.from_json(result.plan.to_json())
    assert read.tuning == result.plan.tuning


def test_points_of_a_sweep_are_fine_tuned_too(result: Any, images: Any) -> None:
    (point,) = onnxprune.sweep(
        RESNET, calibration=images, targets=[{"macs": 0.3}], finetune=True, effort=8, **COMMON
    ).points
    assert point.run is not None
    assert proto(point.run) == proto(result)


def test_without_samples_it_is_refused() -> None:
    with pytest.raises(InputError, match="finetune trains on samples; give --calibration"):
        onnxprune.prune(RESNET, finetune=True)


@dataclass
class Bench:
    """A made-up model whose drop fine-tuning halves, and how often it was asked to."""

    asked: int = 0

    @property
    def cost(self) -> Any:
        return SimpleNamespace(after=lambda dead: {"macs": 100, "params": 10})

    def at(self, target: Any) -> Any:
        (share,) = target.values()
        return SimpleNamespace(cut=SimpleNamespace(model=(share, 1.0)), target=target)

    def of(self, model: Any) -> Quality:
        share, left = model
        return Quality("accuracy", 90.0, 90.0 - left * 10 * (1 - share), 100, held_out=True)

    def finetune(self, result: Any) -> Any:
        self.asked += 1
        share, _ = result.cut.model
        return SimpleNamespace(cut=SimpleNamespace(model=(share, 0.5)), target=result.target)


def test_the_same_limit_buys_more() -> None:
    bench: Any = Bench()
    without = prune_within(bench, 2, bench, None)
    tuned = prune_within(bench, 2, bench, None, finetune=bench.finetune)
    assert without.pruned.target == {"macs": pytest.approx(0.8, abs=0.011)}
    assert tuned.pruned.target == {"macs": pytest.approx(0.6, abs=0.011)}
    assert tuned.quality.drop <= 2
    # not every attempt is fine-tuned
    assert bench.asked == 2


def test_a_target_beyond_the_limit_may_be_met_by_fine_tuning() -> None:
    bench: Any = Bench()
    found = prune_within(bench, 3, bench, {"macs": 0.5}, finetune=bench.finetune)
    assert found.pruned.target == {"macs": 0.5}
    assert found.quality.drop == pytest.approx(2.5)
