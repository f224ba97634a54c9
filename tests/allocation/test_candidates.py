"""Allocations worth trying: one for each scaling, none twice, all of them meeting the target."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.oracle import ONE_THREAD, Traced
from helpers.paths import MODELS

from onnxprune.allocation.candidates import (
    Candidate,
    knapsack_candidates,
    simple_candidates,
    without_shared,
)
from onnxprune.cost.cut_cost import CutCost
from onnxprune.coupling.groups import find_groups
from onnxprune.coupling.trace import trace
from onnxprune.errors import TargetUnreachable
from onnxprune.importance.removal_order import RankedGroup, removal_order
from onnxprune.model.load import load
from onnxprune.model.observe import observe


def ranked_groups(name: str) -> tuple[list[RankedGroup], CutCost]:
    """Groups of a model with seeded scores, and two scalings of their sums."""
    model = load(MODELS / f"{name}.onnx").model
    coupling = trace(model, observe(model, ONE_THREAD, np.random.default_rng(0)))
    subject = Traced(None, model, coupling, find_groups(coupling))  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    ranked = []
    for group in subject.groups:
        steps = tuple(removal_order(group, rng.random(group.size)))
        errors = np.cumsum([step.score for step in steps]) * rng.uniform(0.1, 10)
        curves = {"raw": errors, "root": np.sqrt(errors), "again": errors}
        ranked.append(RankedGroup(group, steps, curves))
    return ranked, CutCost(model.graph, coupling)


@pytest.mark.parametrize("name", ["digits_resnet", "digits_transformer"])
@pytest.mark.parametrize("target", [{"macs": 0.6}, {"params": 0.7}], ids=str)
def test_every_scaling_gives_a_candidate_that_meets_the_target(
    name: str, target: dict[str, float]
) -> None:
    ranked, cost = ranked_groups(name)
    found = knapsack_candidates(ranked, target, cost)
    ((kind, share),) = target.items()
    assert [one.name for one in found] == ["raw", "root"], "the third is the first once more"
    for one in found:
        assert cost.after(one.removal.removed_units())[kind] <= share * cost.after(())[kind]
        for ranking in ranked:
            dead = set(one.removal.units.get(ranking.group.name, ()))
            count = sum(dead.issuperset(step.units) for step in ranking.steps)
            assert dead == {c for step in ranking.steps[:count] for c in step.units}


def test_the_least_error_is_spent() -> None:
    """No worse than what a uniform allocation costs by the same curves."""
    ranked, cost = ranked_groups("digits_resnet")
    (uniform,) = simple_candidates(ranked, {"macs": 0.5}, cost, comparable=False)
    best = knapsack_candidates(ranked, {"macs": 0.5}, cost)[0]
    assert error(ranked, best, "raw") < error(ranked, uniform, "raw")


@pytest.mark.parametrize("name", ["digits_mlp", "digits_resnet", "digits_transformer"])
@pytest.mark.parametrize(
    "target",
    [
        {"size": 0.8},
        {"memory": 0.8},
        {"macs": 0.7, "params": 0.7},
        {"macs": 0.8, "size": 0.85, "memory": 0.8},
        {"channels": 0.75, "macs": 0.6},
    ],
    ids=str,
)
def test_all_targets_are_met_by_the_curves(name: str, target: dict[str, float]) -> None:
    """With no more error than a uniform allocation, by the same curve, and no less can go."""
    ranked, cost = ranked_groups(name)
    (uniform,) = simple_candidates(ranked, target, cost, comparable=False)
    found = knapsack_candidates(ranked, target, cost)
    assert [one.name for one in found][:1] == ["raw"]
    full = cost.after(())
    for one in found:
        after = cost.after(one.removal.removed_units())
        kinds = target.keys() - {"channels"}
        assert all(after[kind] <= target[kind] * full[kind] for kind in kinds)
        assert error(ranked, one, one.name) <= error(ranked, uniform, one.name)
        for ranking in ranked:
            gone = set(one.removal.units.get(ranking.group.name, ()))
            for step in ranking.steps:
                if step.fraction <= 1 - target.get("channels", 1.0):
                    assert gone.issuperset(step.units)


def error(ranked: list[RankedGroup], candidate: Candidate, curve: str) -> float:
    """Sum of the errors where a candidate ends."""
    total = 0.0
    for one in ranked:
        dead = set(candidate.removal.units.get(one.group.name, ()))
        count = sum(dead.issuperset(step.units) for step in one.steps)
        total += float(one.curves[curve][count - 1]) if count else 0.0
    return total


def test_several_targets_are_spread_by_error() -> None:
    """Not only met: the error is clearly below that of giving up the same everywhere."""
    ranked, cost = ranked_groups("digits_resnet")
    target = {"macs": 0.6, "params": 0.5}
    (uniform,) = simple_candidates(ranked, target, cost, comparable=False)
    best = knapsack_candidates(ranked, target, cost)[0]
    assert error(ranked, best, "raw") < 0.9 * error(ranked, uniform, "raw")


def test_channels_alone_leave_nothing_to_spread() -> None:
    ranked, cost = ranked_groups("digits_mlp")
    assert knapsack_candidates(ranked, {"channels": 0.5}, cost) == []
    assert simple_candidates(ranked, {"channels": 0.5}, cost, comparable=False)


def test_no_curves_and_no_groups_give_no_candidates() -> None:
    ranked, cost = ranked_groups("digits_mlp")
    assert knapsack_candidates([], {"macs": 0.5}, cost) == []
    bare = [replace(one, curves={}) for one in ranked]
    assert knapsack_candidates(bare, {"macs": 0.5}, cost) == []


def test_simple_ways() -> None:
    ranked, cost = ranked_groups("digits_resnet")
    names = [one.name for one in simple_candidates(ranked, {"macs": 0.5}, cost, comparable=True)]
    assert names == ["uniform", "global"]


def test_a_target_out_of_reach() -> None:
    ranked, cost = ranked_groups("digits_mlp")
    with pytest.raises(TargetUnreachable, match=r"the best is macs=0\.\d+, memory=0\.\d+"):
        knapsack_candidates(ranked, {"macs": 0.001, "memory": 0.9}, cost)


def test_groups_that_one_layer_reads() -> None:
    """In a residual network the streams have several readers, the inner channels one."""
    ranked, _ = ranked_groups("digits_resnet")
    left = without_shared(ranked)
    assert 0 < len(left) < len(ranked)
    for one in ranked:
        readers = {r.consumer.weight for r in one.group.readings if r.consumer.weight}
        assert (one in left) == (len(readers) < 2)
