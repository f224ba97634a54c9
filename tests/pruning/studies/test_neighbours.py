"""Trials that budgets of a sweep share: all at the outermost, the best of these in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import parse

import onnxprune
from onnxprune import Sweep
from onnxprune.allocation.candidates import Candidate
from onnxprune.pruning.method import Method
from onnxprune.pruning.run import PruneRun
from onnxprune.pruning.search import Search
from onnxprune.pruning.studies.neighbours import SharedTrials
from onnxprune.pruning.studies.study import study_options

SHARES = (0.8, 0.7, 0.6, 0.5)


NETWORK = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 6] x) => (float[N, 4] y)
    { a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = Relu(c) e = MatMul(d, w3) f = Tanh(e)
      h = MatMul(f, w4) i = Relu(h) y = MatMul(i, w5) }"""
WIDTHS = {"w1": (6, 32), "w2": (32, 24), "w3": (24, 40), "w4": (40, 16), "w5": (16, 4)}


def network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    made = {n: rng.standard_normal(shape).astype(np.float32) / 4 for n, shape in WIDTHS.items()}
    return parse(NETWORK, made)


def samples() -> dict[str, Any]:
    return {"x": np.random.default_rng(1).standard_normal((96, 6)).astype(np.float32)}


def sweep(*targets: Mapping[str, float], **options: Any) -> Sweep:
    given = {"calibration": samples(), "threads": 1, "measure_latency": False, **options}
    return onnxprune.sweep(network(), targets=targets, **given)


def macs(*shares: float) -> list[dict[str, float]]:
    return [{"macs": share} for share in shares]


Tried = list[tuple[Mapping[str, float], Sequence[str], Mapping[str, float]]]


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Tried:
    """What each search was for, the names it was restricted to, and what it tried."""
    found: Tried = []
    best = Search.best

    def noted(search: Search, aim: Mapping[str, float]) -> tuple[Candidate, dict[str, float]]:
        candidate, trials = best(search, aim)
        found.append((dict(search.target), search.names, trials))
        return candidate, trials

    monkeypatch.setattr(Search, "best", noted)
    return found


def test_budgets_in_between_try_what_was_best_at_the_outermost(tried: Tried) -> None:
    found = sweep(*macs(*SHARES))
    assert [point.status for point in found.points] == ["done"] * 4
    assert [dict(point.target) for point in found.points] == macs(*SHARES)
    assert [target for target, *_ in tried] == macs(0.8, 0.5, 0.7, 0.6)
    trials = {target["macs"]: each for target, _, each in tried}
    names = {target["macs"]: each for target, each, _ in tried}
    assert not names[0.8]
    assert not names[0.5]
    most = sorted(trials[0.8], key=trials[0.8].__getitem__)
    least = sorted(trials[0.5], key=trials[0.5].__getitem__)
    assert set(names[0.7]) == {*most[:2], *least[:1]}
    assert set(names[0.6]) == {*least[:2], *most[:1]}
    for share in (0.7, 0.6):
        assert set(trials[share]) <= set(names[share])
        assert len(trials[share]) < len(trials[0.8])


def test_an_outermost_budget_is_what_prune_gives() -> None:
    alone = onnxprune.prune(
        network(),
        calibration=samples(),
        target={"macs": 0.5},
        threads=1,
        measure_latency=False,
        force=True,
    )
    assert isinstance(alone.model, onnx.ModelProto)
    point = sweep(*macs(*SHARES)).find({"macs": 0.5})
    assert point is not None
    assert point.run is not None
    assert isinstance(point.run.model, onnx.ModelProto)
    assert point.run.model.SerializeToString() == alone.model.SerializeToString()


def test_the_plan_of_a_budget_in_between_gives_the_same_model() -> None:
    point = sweep(*macs(*SHARES)).find({"macs": 0.6})
    assert point is not None
    assert point.run is not None
    again = onnxprune.apply(
        network(), point.run.plan, calibration=samples(), threads=1, measure_latency=False
    )
    assert isinstance(point.run.model, onnx.ModelProto)
    assert isinstance(again.model, onnx.ModelProto)
    assert point.run.model.SerializeToString() == again.model.SerializeToString()


def test_a_sweep_that_goes_on_tries_the_same(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, tried: Tried
) -> None:
    whole = sweep(*macs(*SHARES))
    names = {target["macs"]: each for target, each, _ in tried}
    tried.clear()
    at = PruneRun.at

    def interrupted(run: PruneRun, target: Mapping[str, float]) -> Any:
        if target == {"macs": 0.6}:
            raise KeyboardInterrupt
        return at(run, target)

    with monkeypatch.context() as patch:
        patch.setattr(PruneRun, "at", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep(*macs(*SHARES), folder=tmp_path / "out")
    tried.clear()
    again = sweep(*macs(*SHARES), folder=tmp_path / "out")
    assert tried[-1][:2] == ({"macs": 0.6}, names[0.6])
    point, same = again.find({"macs": 0.6}), whole.find({"macs": 0.6})
    assert point is not None
    assert same is not None
    assert point.divergence == same.divergence


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (macs(0.8, 0.7, 0.6), {}),
        ([*macs(0.8, 0.7), {"params": 0.7}, {"params": 0.6}], {}),
        ([{"macs": share, "params": 0.9} for share in SHARES], {}),
        (macs(*SHARES), {"compensate": "mean"}),
        (macs(*SHARES), {"allocation": "uniform"}),
        (macs(*SHARES), {"steps": 2}),
        (macs(*SHARES), {"blocks": True}),
    ],
    ids=str,
)
def test_few_budgets_and_those_with_nothing_to_share_are_on_their_own(
    targets: Sequence[Mapping[str, float]], options: dict[str, Any]
) -> None:
    method = study_options(targets[0], options)
    run = PruneRun.__new__(PruneRun)
    run.method = Method.of(method)
    shared = SharedTrials(run, targets)
    assert shared.outermost_first(targets) == list(targets)
    assert all(shared.run_for(target) is run for target in targets)
