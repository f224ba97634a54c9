"""--metric and --labels wherever outputs are compared: prune, verify, sweep, sensitivity."""

from __future__ import annotations

import json

import numpy as np
import pytest

QUICK = "--compensate", "mean", "--allocation", "uniform"
"""For what is about limits and not about how well they are met."""


@pytest.fixture
def given(models, tmp_path):
    """A model, samples and labels of its test images, and a metric of one's own."""
    with np.load(models / "digits_mlp_test.npz") as file:
        np.savez(tmp_path / "pixels.npz", pixels=file["pixels"])
        words = [{"digit": int(label)} for label in file["labels"]]
    (tmp_path / "labels.json").write_text(json.dumps(words))
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def right(outputs, reference, labels):\n"
        "    assert outputs.keys() == reference.keys()\n"
        "    (scores,) = (array for array in outputs.values() if array.ndim == 2)\n"
        "    return sum(row.argmax() == each['digit'] for row, each in zip(scores, labels))\n"
    )
    return models / "digits_mlp.onnx", "--calibration", tmp_path / "pixels.npz"


@pytest.fixture
def mine(tmp_path):
    return "--metric", f"{tmp_path / 'mine.py'}:right", "--labels", tmp_path / "labels.json"


@pytest.fixture
def smaller(run, given, tmp_path):
    out = tmp_path / "small.onnx"
    assert run("prune", *given[:1], out, *given[1:], "--target", "macs=0.4", "-q").code == 0
    return out


def test_prune(run, given, mine, tmp_path):
    written = tmp_path / "out.onnx", "--json", tmp_path / "figures.json"
    outcome = run("prune", given[0], *written, *given[1:], *mine, "--target", "macs=0.5")
    assert outcome.code == 0
    quality = json.loads((tmp_path / "figures.json").read_text())["quality"]
    assert (quality["measure"], quality["unit"], quality["samples"]) == ("right", "", 450)
    assert 400 < quality["result"] <= 450
    assert "right" in outcome.out


def test_verify(run, given, mine, smaller):
    outcome = run("verify", given[0], smaller, *given[1:], *mine)
    assert "right" in outcome.out
    both = given[0], smaller, *given[1:], "--json", "-"
    for metric in ("kappa", "r2", "agreement"):
        quality = json.loads(run("verify", *both, "--metric", metric).out)["quality"]
        assert 50 < quality["result"] < quality["original"] == pytest.approx(100)
    assert json.loads(run("verify", *both).out)["quality"] is None


def test_sweep(run, given, mine, tmp_path):
    words = given[0], *given[1:], "--out", tmp_path / "out", "--target", "macs=0.6,0.3"
    outcome = run("sweep", *words, *mine)
    assert outcome.code == 0
    assert "right: the original has 4" in outcome.out
    assert "right: the original has 4%" not in outcome.out
    points = json.loads((tmp_path / "out" / "sweep.json").read_text())["points"]
    assert [point["quality"]["measure"] for point in points] == ["right", "right"]
    assert all(400 < point["quality"]["result"] <= 450 for point in points)
    page = (tmp_path / "out" / "sweep.html").read_text()
    assert f">{points[0]['quality']['result']:.3g}<" in page
    assert run("sweep", *words, "--metric", "kappa", "-q").code == 0
    points = json.loads((tmp_path / "out" / "sweep.json").read_text())["points"]
    assert [point["quality"]["measure"] for point in points] == ["kappa", "kappa"]


def test_sensitivity(run, given, mine, tmp_path):
    file = tmp_path / "s.json"
    words = given[0], *given[1:], "--keep", "0.5,0.1", "--json", file
    outcome = run("sensitivity", *words, "--metric", "kappa")
    assert outcome.code == 0
    assert "drop of quality when cut to" in outcome.out
    for row in json.loads(file.read_text())["rows"]:
        drops = [cut["drop"] for cut in row["cuts"]]
        assert 0 <= drops[0] <= drops[1]
        assert drops[1] > 1
    run("sensitivity", *words, *mine).refused(2, "s.json", "labels, metric differ")


@pytest.mark.parametrize("command", ["prune", "verify", "sweep", "sensitivity"])
def test_unusable_metrics_are_refused_alike(run, given, tmp_path, command):
    others = {"prune": ["out.onnx"], "verify": [given[0]], "sweep": ["--out", tmp_path / "o"]}
    words = given[0], *others.get(command, []), *given[1:]
    run(command, *words, "--metric", "kapa").refused(2, "'kapa'; did you mean 'kappa'?")
    run(command, *words, "--labels", tmp_path / "labels.json").refused(2, "--metric", "map for")
    (tmp_path / "bad.py").write_text("def bad(outputs, reference, labels):\n    return labels[3]")
    bad = f"{tmp_path / 'bad.py'}:bad"
    run(command, *words, "--metric", bad).refused(2, "the metric bad raised TypeError")


def test_best_effort_writes_the_best_and_ends_with_3(run, given, tmp_path):
    words = given[0], tmp_path / "out.onnx", *given[1:], "--target", "macs=0.05", *QUICK
    limit = "--max-drop", "1", "--metric", "kappa"
    run("prune", *words, *limit).refused(3, "more than the 1 allowed; within it, macs=0")
    assert not (tmp_path / "out.onnx").exists()
    outcome = run("prune", *words, *limit, "--best-effort")
    assert outcome.code == 3
    assert "more than the 1 allowed" in outcome.err
    assert "the best was written to" in outcome.err
    assert (tmp_path / "out.onnx").exists()
    assert "limit" in outcome.out


def test_limits_of_a_pipeline(run, given, tmp_path):
    out, figures = tmp_path / "out.onnx", tmp_path / "figures.json"
    words = given[0], out, *given[1:], "--json", figures
    words = *words, "--passes", "prune,remove-lossless", *QUICK
    assert run("prune", *words, "--max-drop", "2", "--metric", "kappa").code == 0
    steps = json.loads(figures.read_text())["steps"]
    assert [step["quality"]["measure"] for step in steps] == ["kappa", "kappa"]
    assert all(step["quality"]["drop"] <= 2 for step in steps)
    out.unlink()
    refused = "--max-drop", "0.5", "--metric", "kappa", "--target", "macs=0.05"
    run("prune", *words, *refused).refused(3, "more than the 0.5 allowed")
    assert not out.exists()
    assert run("prune", *words, *refused, "--best-effort").code == 3
    assert out.exists()
