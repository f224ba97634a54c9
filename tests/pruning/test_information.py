"""Allocations by what answers lose, and what is said where gradients do not get to the layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import parse
from helpers.paths import MODELS

import onnxprune
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.samples import read_samples
from onnxprune.compensation.compensate import Compensated, Task
from onnxprune.coupling.analysis import analyse
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import load
from onnxprune.model.runtime import Runtime
from onnxprune.options import PruneOptions
from onnxprune.pruning import prepare
from onnxprune.pruning.method import Method
from onnxprune.pruning.prepare import by_information, information
from onnxprune.pruning.run import PruneRun
from onnxprune.pruning.search import Search, trial_batches
from onnxprune.verification.divergence import DivergenceEvaluator

TARGET = {"macs": 0.6}
BY_GRADIENTS = {"fisher", "information", "towards information"}

HIDDEN = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 6] x) => (float[N, 4] y)
    { a = MatMul(x, w1) b = Tanh(a) c = MatMul(b, w2) y = LAST }"""


def digits(count: int) -> dict[str, Any]:
    with np.load(MODELS / "digits_resnet_calibration.npz") as archive:
        return {name: archive[name][:count] for name in archive.files}


def hidden(last: str) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {"two": np.array(2, np.float32)}
    for name, shape in {"w1": (6, 24), "w2": (24, 4)}.items():
        weights[name] = rng.standard_normal(shape).astype(np.float32)
    return parse(HIDDEN.replace("LAST", last), weights)


@pytest.fixture(scope="module")
def run() -> PruneRun:
    """A residual network on digits."""
    loaded = load(MODELS / "digits_resnet_bn.onnx")
    samples = read_samples(digits(64), input_specs(loaded.model))
    context = RunContext(samples=samples, runtime=Runtime(threads=1))
    options = PruneOptions.read({"target": TARGET}, calibrated=True)
    return PruneRun(analyse(loaded.model, context), Method.of(options), context)


def test_they_are_tried_by_default() -> None:
    result = onnxprune.prune(
        onnx.load(MODELS / "digits_resnet_bn.onnx"),
        calibration=digits(64),
        target=TARGET,
        threads=1,
        measure_latency=False,
    )
    assert result.report.trials.keys() >= BY_GRADIENTS
    assert result.report.trials[result.report.allocation] == min(result.report.trials.values())
    assert result.report.note == ""


@pytest.mark.parametrize(("most", "count"), [(256, 64), (20, 21), (33, 64)])
def test_gradients_are_taken_on_some_samples_from_all_over(
    run: PruneRun, monkeypatch: pytest.MonkeyPatch, most: int, count: int
) -> None:
    monkeypatch.setattr(prepare, "_INFORMING", most)
    known = information(run.workspace, run.groups, run.method, run.context).gradients
    assert {each.count for each in known.values()} == {count}


def test_information_adds_up_along_the_order_of_the_curves(run: PruneRun) -> None:
    known = information(run.workspace, run.groups, run.method, run.context).gradients
    ranked = run.ranked(TARGET)
    for entry, informed in zip(ranked, by_information(ranked, known), strict=True):
        assert informed.steps == entry.steps
        scores = dict(
            zip(entry.group.units.tolist(), known[entry.group.name].mean_square / 2, strict=True)
        )
        lost = np.cumsum([sum(scores[unit] for unit in step.units) for step in entry.steps])
        np.testing.assert_allclose(informed.curves["information"], lost)
        mean = np.sqrt(lost * entry.curves["loss"])
        np.testing.assert_allclose(informed.curves["towards information"], mean)


def test_groups_are_compared_in_one_unit(run: PruneRun) -> None:
    known = information(run.workspace, run.groups, run.method, run.context).gradients
    first, *others = run.ranked(TARGET)
    curves = {name: curve for name, curve in first.curves.items() if name != "loss"}
    ranked = [replace(first, curves=curves), *others]
    for entry, informed in zip(ranked, by_information(ranked, known), strict=True):
        mean = np.sqrt(informed.curves["information"] * entry.curves["raw"])
        np.testing.assert_allclose(informed.curves["towards information"], mean)


def test_groups_without_gradients_cannot_be_compared(run: PruneRun) -> None:
    known = dict(information(run.workspace, run.groups, run.method, run.context).gradients)
    del known[run.groups[0].name]
    assert not by_information(run.ranked(TARGET), known)


def test_they_may_cut_groups_that_several_layers_read(run: PruneRun) -> None:
    search = run._search(TARGET)
    left = {entry.group.name for entry in search.ranked}
    assert left - {entry.group.name for entry in search._unshared(TARGET)}
    assert {entry.group.name for entry in search.informed.curves} == left


def test_the_best_are_compared_on_more_samples(run: PruneRun) -> None:
    workspace = run.workspace
    assert workspace.calibration is not None
    (name, rows), *_ = workspace.calibration.feeds[0].items()
    single = [{name: row[None]} for row in rows[:32]]
    calibration = replace(workspace.calibration, feeds=single * 20)
    many = replace(workspace, calibration=calibration)
    few, more = (trial_batches(many, run.cost, factor) for factor in (1, 2))
    assert len(few) == 64
    assert len(more) == 2 * 64


@pytest.fixture
def tried(run: PruneRun, monkeypatch: pytest.MonkeyPatch) -> tuple[Search, list[Any]]:
    """A search, and the trials that it makes: what is removed, rounds in which targets move."""
    search, tasks = run._search(TARGET), []
    compensation = run.method.compensation

    def noted(task: Task) -> Compensated:
        tasks.append((task.removal, task.effort.settings.iterations))
        return compensation.apply(task)

    method = replace(run.method, compensation=replace(compensation, apply=noted))
    return replace(search, method=method), tasks


def test_most_allocations_are_tried_with_little_effort_only(
    tried: tuple[Search, list[Any]],
) -> None:
    search, tasks = tried
    best, trials = search.best(TARGET)
    assert len(trials) > 4
    assert trials[best.name] == min(trials.values())
    efforts = [rounds for _, rounds in tasks]
    assert efforts.count(0) == len(trials)
    assert 1 < len(efforts) - efforts.count(0) <= 3


def test_allocations_that_remove_the_same_are_tried_once(
    tried: tuple[Search, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    search, tasks = tried
    candidates = search.candidates(TARGET)
    again = [replace(each, name=f"{each.name} again") for each in candidates]
    monkeypatch.setattr(Search, "candidates", lambda *given: [*candidates, *again])
    _, trials = search.best(TARGET)
    assert not [name for name in trials if name.endswith("again")]
    first = [str(removal.units) for removal, rounds in tasks if not rounds]
    assert len(set(first)) == len(first) == len(trials)


def test_nothing_that_was_fitted_is_compared_on(run: PruneRun) -> None:
    search = run._search(TARGET)
    calibration = run.workspace.calibration
    assert calibration is not None
    fitted = {
        id(feed)
        for factor in (1, 2)
        for feed in calibration.some(trial_batches(run.workspace, run.cost, factor)).feeds[::2]
    }
    assert fitted.isdisjoint(map(id, search._judge._feeds))


@pytest.mark.parametrize(
    ("last", "blocked"), [("Relu(c)", False), ("Mod<fmod = 1>(c, two)", True)], ids=["Relu", "Mod"]
)
def test_layers_that_no_gradient_gets_to_are_told(last: str, blocked: bool) -> None:
    x = np.random.default_rng(1).standard_normal((64, 6)).astype(np.float32)
    note = onnxprune.prune(
        hidden(last),
        calibration={"x": x},
        target={"macs": 0.8},
        threads=1,
        measure_latency=False,
        force=True,
    ).report.note
    assert ("in all layers errors count alike" in note) == blocked
    assert ("no allocation by Fisher information was tried" in note) == blocked
    assert ("there is no rule for this op" in note) == blocked


def test_allocations_without_finite_divergence_still_give_one(
    run: PruneRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN has no place in an order: a trial that gives it counts as one that cannot be built."""
    monkeypatch.setattr(DivergenceEvaluator, "divergence", lambda self, model: float("nan"))
    candidate, trials = run._search(TARGET).best(TARGET)
    assert candidate.removal.units
    assert set(trials.values()) == {float("inf")}
