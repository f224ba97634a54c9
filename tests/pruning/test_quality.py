"""The largest reduction within a limit of quality."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.paths import MODELS

import onnxprune
from onnxprune import InputError, NothingPrunable, TargetUnreachable
from onnxprune.pruning.quality import prune_within
from onnxprune.verification.quality import Quality


@dataclass
class Bench:
    """A made-up model: what is lost at a share of the MACs, and how little may remain."""

    loss: Any
    least: float = 0.0
    macs: int = 100

    @property
    def cost(self):
        return self

    def after(self, dead):
        return {"macs": self.macs, "params": 10}

    def at(self, target):
        (share,) = target.values()
        if share < self.least:
            raise TargetUnreachable("too much")
        if share > 0.995:
            raise NothingPrunable("nothing goes")
        return SimpleNamespace(cut=SimpleNamespace(model=share), target=target)

    def of(self, share):
        return Quality("accuracy", 90.0, 90.0 - self.loss(share), 100, held_out=True)


@pytest.fixture
def within():
    """Prune a made-up model, whose result is the share that it keeps."""

    return lambda bench, most, goal=None: prune_within(bench, most, bench, goal)


@pytest.mark.parametrize(("most", "share"), [(0, 0.9), (1, 0.8), (5, 0.4), (8.9, 0.01)])
def test_as_far_as_the_limit_allows(within, most, share):
    bench = Bench(lambda kept: max(0, 0.9 - kept) * 10)
    found = within(bench, most)
    assert found.pruned.target == {"macs": pytest.approx(share, abs=0.011)}
    assert found.quality.drop <= most


def test_parameters_count_where_nothing_is_multiplied(within):
    assert within(Bench(lambda kept: 0, macs=0), 1).pruned.target.keys() == {"params"}


def test_what_cannot_be_reached_bounds_the_way(within):
    found = within(Bench(lambda kept: 0, least=0.3), 1)
    assert found.pruned.target["macs"] == pytest.approx(0.3, abs=0.011)


def test_a_goal_within_the_limit_is_met_and_not_passed(within):
    assert within(Bench(lambda kept: 1), 2, {"params": 0.6}).pruned.target == {"params": 0.6}


def test_a_goal_beyond_the_limit_is_refused_with_how_far_one_can_go(within):
    bench = Bench(lambda kept: 10 * (1 - kept))
    with pytest.raises(TargetUnreachable, match=r"macs=0.5 costs 5 .*more than the 2 .*macs=0.8"):
        within(bench, 2, {"macs": 0.5})


def test_nothing_within_the_limit(within):
    with pytest.raises(NothingPrunable, match=r"within a drop of 1; macs=.* costs 3"):
        within(Bench(lambda kept: 3), 1)


@pytest.fixture(scope="module")
def labelled():
    with np.load(MODELS / "digits_mlp_test.npz") as file:
        return {"calibration": {"pixels": file["pixels"]}, "labels": file["labels"]}


def prune(**options):
    return onnxprune.prune(
        MODELS / "digits_mlp.onnx", measure_latency=False, compensate="mean", **options
    )


def test_accuracy_within_points_on_samples_that_nothing_saw(labelled):
    result = prune(max_drop=2.0, **labelled)
    quality = result.report.quality
    assert (quality.measure, quality.held_out, quality.samples) == ("accuracy", True, 112)
    assert 0 <= quality.drop <= 2
    assert result.report.result.macs < 0.9 * result.report.original.macs
    assert result.report.to_dict()["quality"]["drop"] == quality.drop
    again = onnxprune.apply(
        MODELS / "digits_mlp.onnx", result.plan, calibration=labelled["calibration"]
    )
    assert again.plan.initializers == result.plan.initializers
    first, second = (
        [one.const_value.numpy() for one in each.model.graph.initializers.values()]
        for each in (result, again)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_labels_alone_change_nothing_but_the_report(labelled):
    with_labels = prune(target={"macs": 0.6}, **labelled)
    without = prune(target={"macs": 0.6}, calibration=labelled["calibration"])
    assert with_labels.plan == without.plan
    assert with_labels.report.quality.measure == "accuracy"
    assert not with_labels.report.quality.held_out
    assert without.report.quality is None


@pytest.mark.parametrize("limit", [-1, float("nan"), float("inf"), "much"])
def test_limits_that_are_none(labelled, limit):
    with pytest.raises(InputError, match="max_drop"):
        prune(max_drop=limit, **labelled)


@pytest.mark.parametrize("options", [{"max_drop": 1}, {"labels": [1, 2]}, {"metric": len}])
def test_measuring_takes_samples(options):
    with pytest.raises(InputError, match="calibration"):
        onnxprune.prune(MODELS / "digits_mlp.onnx", **options)


def test_best_effort_beyond_the_goal_is_the_farthest_within_the_limit():
    bench = Bench(lambda kept: 10 * (1 - kept))
    found = prune_within(bench, 2, bench, {"macs": 0.5}, best_effort=True)
    assert found.pruned.target == {"macs": pytest.approx(0.8, abs=0.011)}
    assert "macs=0.5 costs 5" in found.missed
    assert prune_within(bench, 6, bench, {"macs": 0.5}, best_effort=True).missed == ""


def test_best_effort_where_nothing_holds_is_what_loses_least():
    bench = Bench(lambda kept: 3 + (1 - kept))
    found = prune_within(bench, 1, bench, None, best_effort=True)
    assert found.pruned.target["macs"] == pytest.approx(0.99, abs=0.01)
    assert "within a drop of 1" in found.missed


def test_the_report_says_what_was_not_met(labelled):
    result = prune(max_drop=0.0, target={"macs": 0.1}, best_effort=True, **labelled)
    assert "macs=0.1 costs" in result.missed
    assert result.report.missed == result.missed
    assert result.report.to_dict()["missed"] == result.missed
    with pytest.raises(TargetUnreachable):
        prune(max_drop=0.0, target={"macs": 0.1}, **labelled)


def test_best_effort_needs_a_limit(labelled):
    with pytest.raises(InputError, match="best_effort is for max_drop"):
        prune(best_effort=True, **labelled)
