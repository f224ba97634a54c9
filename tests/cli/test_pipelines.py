"""Pipelines on the command line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from helpers.outcome import Outcome

from onnxprune import api
from onnxprune.cost.latency.measure import measure_pair
from onnxprune.errors import InputError
from onnxprune.options import TARGETS
from onnxprune.passes.pipeline import run as stage
from onnxprune.pruning import results

Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def quick_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time no longer than it takes to have figures."""
    monkeypatch.setattr(stage, "measure_pair", lambda *given: measure_pair(*given, seconds=0.0))


@pytest.fixture
def spirals(models: Path) -> list[object]:
    return [models / "spirals_mlp.onnx"]


@pytest.fixture
def samples(models: Path) -> list[object]:
    return ["--calibration", models / "spirals_calibration.npz"]


def test_passes_one_after_another(
    run: Run, spirals: list[object], samples: list[object], tmp_path: Path
) -> None:
    out, figures = tmp_path / "small.onnx", tmp_path / "figures.json"
    names = "remove-lossless,prune,sparsify-weights"
    given = ["--passes", names, "--target", "macs=0.6", "--set", "sparsify-weights.pattern=2:4"]
    done = run("prune", *spirals, out, *samples, *given, "--json", figures)
    assert done.code == 0, done.err
    onnx.checker.check_model(onnx.load(out))
    steps = json.loads(figures.read_text())["steps"]
    assert [one["pass"] for one in steps] == names.split(",")
    assert steps[1]["options"]["target"] == {"macs": 0.6}
    assert steps[2]["options"] == {"pattern": "2:4"}
    assert steps[2]["details"]["zeros"] == pytest.approx(0.5, abs=0.05)
    assert "does not run faster on zeros" in " ".join(done.out.split())
    assert max(map(len, done.out.splitlines())) <= 100


def test_a_file_with_options(
    run: Run, spirals: list[object], samples: list[object], tmp_path: Path
) -> None:
    config, out = tmp_path / "pipeline.yaml", tmp_path / "small.onnx"
    config.write_text("passes:\n  - prune: {target: {macs: 0.6}}\n  - quantize:\n")
    given = ["--config", config, "--set", "quantize.mode=dynamic"]
    done = run("prune", *spirals, out, *samples, *given, "--json", "-")
    assert done.code == 0, done.err
    assert json.loads(done.out)["steps"][1]["details"]["mode"] == "dynamic"


def test_a_report_and_a_plan_that_is_run_again(
    run: Run, spirals: list[object], samples: list[object], tmp_path: Path
) -> None:
    out, plan, page = (tmp_path / name for name in ("a.onnx", "plan.json", "a.html"))
    given = ["--passes", "prune,sparsify-weights", "--target", "macs=0.6", "--threads", 1]
    done = run("prune", *spirals, out, *samples, *given, "--plan", plan, "--report", page)
    assert done.code == 0, done.err
    text = page.read_text(encoding="utf-8")
    assert hashlib.sha256(out.read_bytes()).hexdigest() in text
    assert "onnxprune prune" in text
    assert "sparsify-weights" in text
    again, page = tmp_path / "b.onnx", tmp_path / "b.html"
    words = ["apply", *spirals, plan, again, *samples, "--threads", 1, "--report", page]
    repeated = run(*words)
    assert repeated.code == 0, repeated.err
    assert again.read_bytes() == out.read_bytes()
    assert "Pipeline report" in page.read_text(encoding="utf-8")
    run(*words, "--compensate", "none").refused(2, "plan of a pipeline", "leave out --compensate")


def test_nothing_is_left_behind_when_the_model_cannot_be_written(
    run: Run, spirals: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **named: object) -> None:
        raise InputError("no space left")

    monkeypatch.setattr(results, "save", full)
    out, plan, figures = (tmp_path / name for name in ("a.onnx", "plan.json", "a.json"))
    given = ["--passes", "quantize", "--plan", plan, "--json", figures]
    run("prune", *spirals, out, *given).refused(2, "no space left")
    assert not list(tmp_path.iterdir())


def test_what_passes_leave_beside_the_model_is_named(
    run: Run, spirals: list[object], tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import onnx_ir as ir\n"
        "class Note(ir.passes.InPlacePass):\n"
        "    files = {'.note.txt': 'a note'}\n"
        "    def call(self, model):\n"
        "        return ir.passes.PassResult(model, False)\n"
    )
    done = run("prune", *spirals, tmp_path / "a.onnx", "--passes", f"{mine}:Note")
    assert done.code == 0, done.err
    assert (tmp_path / "a.note.txt").read_text() == "a note"
    assert "a.note.txt" in "".join(done.out.split())


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        (["prune.target.macs=0.6"], [{"target": {"macs": 0.6}}, {"target": {"macs": 0.6}}]),
        (
            ["prune.target={macs: 0.7}", "prune#2.target.macs=0.6", "prune#1.lossless=false"],
            [{"target": {"macs": 0.7}, "lossless": False}, {"target": {"macs": 0.6}}],
        ),
        (
            ["prune.include=[w*, v*]", "prune.target.macs=0.9", "prune.steps=2"],
            [{"include": ["w*", "v*"], "target": {"macs": 0.9}, "steps": 2}] * 2,
        ),
    ],
)
def test_options_of_passes_that_are_run_twice(
    run: Run,
    spirals: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: list[str],
    options: list[dict[str, object]],
) -> None:
    described: list[list[dict[str, object]]] = []

    def stopped(model: object, passes: list[dict[str, object]], **given: object) -> None:
        described.append(passes)
        raise InputError("seen")

    monkeypatch.setattr(api, "run_pipeline", stopped)
    given = [word for one in settings for word in ("--set", one)]
    run("prune", *spirals, tmp_path / "a.onnx", "--passes", "prune,prune", *given).refused(2)
    assert described == [[{"prune": one} for one in options]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--passes", "prune,sparsfy"], ["unknown pass 'sparsfy'"]),
        (["--passes", "quantize", "--target", "macs=0.5"], ["--target", "name it in --passes"]),
        (["--passes", "quantize", "--set", "quantise.mode=dynamic"], ["did you mean 'quantize'"]),
        (["--passes", "quantize", "--set", "mode=dynamic"], ["PASS.OPTION=VALUE"]),
        (["--passes", "quantize", "--set", "quantize.mode=fast"], ["one of static, dynamic"]),
        (["--set", "quantize.mode=dynamic"], ["needs --passes or --config"]),
        (["--passes", "prune", "--set", "prune.target.mac=0.5"], ["did you mean 'macs'"]),
        (["--passes", "prune", "--set", "prune#1.steps=2"], ["no pass 'prune#1' is run"]),
        (["--passes", "prune,prune", "--set", "prune#3.steps=2"], ["did you mean 'prune#2'"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "cannot be read"]),
    ],
)
def test_mistakes(
    run: Run, spirals: list[object], tmp_path: Path, given: list[str], words: list[str]
) -> None:
    out = tmp_path / "small.onnx"
    run("prune", *spirals, out, *given).refused(2, *words)
    assert not out.exists()


def test_the_list_of_passes(run: Run) -> None:
    listed = run("passes")
    assert listed.code == 0
    for name in ("remove-lossless", "prune", "sparsify-weights", "merge-duplicates", "quantize"):
        assert f"{name}: " in listed.out
    assert max(map(len, listed.out.splitlines())) <= 100
    data = json.loads(run("passes", "quantize", "--json", "-").out)
    (only,) = data["passes"]
    assert {one["name"] for one in only["options"]} >= {"mode", "per_channel"}
    assert json.loads(run("passes", "quantize", "--json").out) == data
    run("passes", "quantise").refused(2, "did you mean 'quantize'")


def test_the_schema_of_the_file(run: Run) -> None:
    schema = json.loads(run("passes", "--schema").out)
    entry = schema["properties"]["passes"]["items"]["anyOf"][-1]["properties"]
    prune = entry["prune"]["properties"]
    assert set(prune["target"]["properties"]) == set(TARGETS)
    assert prune["of"]["enum"] == ["original", "current"]
    assert prune["steps"] == {"description": prune["steps"]["description"]} | {
        "type": "integer",
        "default": 1,
        "minimum": 1,
    }
    assert entry["quantize"]["properties"]["method"]["enum"] == ["minmax", "entropy", "percentile"]
