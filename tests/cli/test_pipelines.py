"""Pipelines on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from conftest import Outcome

from onnxprune.cost.latency import measure_pair
from onnxprune.pipelines import run as running

Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def quick_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time no longer than it takes to have figures."""
    monkeypatch.setattr(running, "measure_pair", lambda *given: measure_pair(*given, seconds=0.0))


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
    assert json.loads(done.out)["steps"][1]["details"] == {"mode": "dynamic"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--passes", "prune,sparsfy"], ["unknown pass 'sparsfy'"]),
        (["--passes", "quantize", "--target", "macs=0.5"], ["--target", "name it in --passes"]),
        (["--passes", "quantize", "--set", "quantise.mode=dynamic"], ["did you mean 'quantize'"]),
        (["--passes", "quantize", "--set", "mode=dynamic"], ["PASS.OPTION=VALUE"]),
        (["--passes", "quantize", "--set", "quantize.mode=fast"], ["one of static, dynamic"]),
        (["--set", "quantize.mode=dynamic"], ["needs --passes or --config"]),
        (["--passes", "quantize", "--plan", "plan.json"], ["--plan"]),
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
    run("passes", "quantise").refused(2, "did you mean 'quantize'")
