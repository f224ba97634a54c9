"""Targets are met, by all that is needed and nothing more."""

from __future__ import annotations

import re

import numpy as np
import pytest
from helpers.oracle import ONE_THREAD, Traced
from helpers.paths import MODELS

from onnxprune.allocation.prefixes import choose
from onnxprune.cost.cut_cost import CutCost
from onnxprune.coupling.cut import Removal
from onnxprune.coupling.groups import find_groups
from onnxprune.coupling.trace import trace
from onnxprune.errors import TargetUnreachable
from onnxprune.importance.removal_order import RemovalStep, removal_order
from onnxprune.model.load import load
from onnxprune.model.observe import observe

NAMES = ["digits_mlp", "digits_resnet_bn", "digits_transformer"]
TARGETS = [
    {"macs": 0.5},
    {"params": 0.3},
    {"macs": 0.7, "params": 0.6},
    {"channels": 0.75, "params": 0.4},
    {"size": 0.9},
    {"memory": 0.8, "macs": 0.7},
]


class Problem:
    """Groups of a model, their removal orders by seeded scores, and the cost model."""

    def __init__(self, subject: Traced, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.subject = subject
        self.groups = subject.groups
        self.orders = [removal_order(one, rng.random(one.size)) for one in self.groups]
        self.cost = CutCost(subject.model.graph, subject.coupling)
        self.full = self.cost.after(())

    def choose(self, target: dict[str, float], comparable: bool = False) -> Removal:
        return choose(self.groups, self.orders, target, self.cost, comparable=comparable)

    def prefixes(self, removal: Removal) -> list[int]:
        """How many steps of each group were taken; fails when that is not a prefix."""
        counts = []
        for group, order in zip(self.groups, self.orders, strict=True):
            dead = set(removal.units.get(group.name, ()))
            count = sum(set(step.units) <= dead for step in order)
            assert dead == {one for step in order[:count] for one in step.units}
            counts.append(count)
        return counts

    def shares(self, counts: list[int]) -> dict[str, float]:
        pairs = zip(self.orders, counts, strict=True)
        dead = [one for order, n in pairs for step in order[:n] for one in step.units]
        after = self.cost.after(dead)
        return {kind: after[kind] / self.full[kind] for kind in after}

    def fractions(self, counts: list[int]) -> list[float]:
        pairs = zip(self.orders, counts, strict=True)
        return [order[n - 1].fraction if n else 0.0 for order, n in pairs]


@pytest.fixture(scope="module", params=NAMES)
def problem(request: pytest.FixtureRequest) -> Problem:
    model = load(MODELS / f"{request.param}.onnx").model
    coupling = trace(model, observe(model, ONE_THREAD, np.random.default_rng(0)))
    return Problem(Traced(None, model, coupling, find_groups(coupling)))  # type: ignore[arg-type]


def met(problem: Problem, counts: list[int], target: dict[str, float]) -> bool:
    shares = problem.shares(counts)
    return all(shares[kind] <= share for kind, share in target.items() if kind != "channels")


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_targets_are_met_and_one_step_less_misses_them(
    problem: Problem, target: dict[str, float]
) -> None:
    counts = problem.prefixes(problem.choose(target))
    assert met(problem, counts, target)
    fractions = problem.fractions(counts)
    last = max((f, i) for i, f in enumerate(fractions))[1]
    fewer = [n - (i == last) for i, n in enumerate(counts)]
    if fractions[last] > 1 - target.get("channels", 1.0) + 1e-9:
        assert not met(problem, fewer, target)


def test_every_group_gives_up_the_same_fraction(problem: Problem) -> None:
    """No step below the highest fraction reached was left out."""
    counts = problem.prefixes(problem.choose({"params": 0.5}))
    level = max(problem.fractions(counts))
    for order, count in zip(problem.orders, counts, strict=True):
        assert all(step.fraction >= level - 1e-9 for step in order[count:])


@pytest.mark.parametrize("share", [0.9, 0.5, 0.25])
def test_channels_are_what_remains_of_each_group(problem: Problem, share: float) -> None:
    counts = problem.prefixes(problem.choose({"channels": share}))
    for order, count in zip(problem.orders, counts, strict=True):
        assert all(step.fraction <= 1 - share + 1e-9 for step in order[:count])
        assert all(step.fraction > 1 - share + 1e-9 for step in order[count:])


def test_a_channels_target_comes_first_and_others_add_to_it(problem: Problem) -> None:
    alone = problem.prefixes(problem.choose({"channels": 0.75}))
    both = problem.prefixes(problem.choose({"channels": 0.75, "macs": 0.3}))
    assert all(a <= b for a, b in zip(alone, both, strict=True))
    assert problem.shares(both)["macs"] <= 0.3 < problem.shares(alone)["macs"]


def test_everything_may_stay(problem: Problem) -> None:
    for kind in ("channels", "params", "macs"):
        assert problem.choose({kind: 1.0}).units == {}


def test_what_cannot_be_reached_names_the_best_that_can(problem: Problem) -> None:
    best = problem.shares([len(order) for order in problem.orders])
    with pytest.raises(TargetUnreachable, match=r"macs=0\.0001, params=0\.9") as error:
        problem.choose({"macs": 0.0001, "params": 0.9})
    named = dict(re.findall(r"(\w+)=([\d.]+)", str(error.value).split("best is")[1]))
    asked = {kind: best[kind] for kind in ("macs", "params")}
    assert {kind: float(text) for kind, text in named.items()} == pytest.approx(asked, abs=1e-3)
    within_reach = best["macs"] + 1e-9
    counts = problem.prefixes(problem.choose({"macs": within_reach}))
    assert problem.shares(counts)["macs"] <= within_reach


def test_the_same_question_has_the_same_answer(problem: Problem) -> None:
    for comparable in (False, True):
        first, second = (problem.choose({"macs": 0.6}, comparable) for _ in range(2))
        assert first == second


@pytest.mark.parametrize("target", TARGETS[:3], ids=str)
def test_comparable_scores_meet_the_same_targets(
    problem: Problem, target: dict[str, float]
) -> None:
    counts = problem.prefixes(problem.choose(target, comparable=True))
    assert met(problem, counts, target)
    fewer = [[n - (i == j) for i, n in enumerate(counts)] for j in range(len(counts)) if counts[j]]
    assert not all(met(problem, one, target) for one in fewer)


def test_comparable_scores_take_from_where_least_is_lost(problem: Problem) -> None:
    """One group does not matter at all: everything it may lose goes before anything else does."""
    idle = len(problem.groups) // 2
    orders = [
        [RemovalStep(s.units, s.fraction, s.score * (i != idle)) for s in order]
        for i, order in enumerate(problem.orders)
    ]
    removed = choose(problem.groups, orders, {"params": 0.999}, problem.cost, comparable=True)
    assert set(removed.units) == {problem.groups[idle].name}
    overruled = choose(problem.groups, orders, {"channels": 0.5}, problem.cost, comparable=True)
    assert set(overruled.units) == {group.name for group in problem.groups}
