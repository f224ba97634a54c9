"""What is odd about samples stands on the first screen, in the figures and in the page."""

from __future__ import annotations

import json

import numpy as np
import pytest

import onnxprune

POINTS = np.random.default_rng(0).uniform(-3, 3, (64, 2)).astype(np.float32)


@pytest.fixture
def zeros(tmp_path):
    np.savez(tmp_path / "zeros.npz", x=np.zeros((64, 2), np.float32))
    return tmp_path / "zeros.npz"


def flat(text):
    return " ".join(text.split())


@pytest.mark.parametrize("passes", [[], ["--passes", "remove-lossless,prune"]])
def test_prune(run, models, tmp_path, passes):
    with np.load(models / "digits_resnet_calibration.npz") as file:
        np.savez(tmp_path / "other.npz", images=2 * file["images"][:64])
    outcome = run(
        *("prune", models / "digits_resnet_bn.onnx", tmp_path / "out.onnx"),
        *("--calibration", tmp_path / "other.npz", "--target", "channels=0.9"),
        *("--criterion", "l2", "--compensate", "mean", "--allocation", "uniform", *passes),
        *("--json", tmp_path / "out.json", "--report", tmp_path / "out.html"),
    )
    assert (outcome.code, outcome.err) == (0, "")
    assert "WARNING: the samples do not look like what the model was trained on" in flat(
        outcome.out
    )
    assert outcome.out.index("WARNING") < outcome.out.index("MACs")
    data = json.loads((tmp_path / "out.json").read_text())
    (found,) = data["warnings"] if not passes else data["steps"][0]["warnings"]
    assert "do not look like" in found
    assert (tmp_path / "out.html").read_text().count("The samples do not look like") == 1


def test_without_samples_nothing_was_compared(run, models, tmp_path):
    outcome = run("prune", models / "spirals_mlp.onnx", tmp_path / "out.onnx")
    assert outcome.code == 0
    assert "WARNING: without samples the result was not compared with the original" in flat(
        outcome.out
    )
    assert "--calibration" in outcome.out


def test_good_samples_make_no_warning(run, models, tmp_path):
    np.savez(tmp_path / "good.npz", x=POINTS)
    source = ("--calibration", tmp_path / "good.npz")
    outcome = run("prune", models / "spirals_mlp.onnx", tmp_path / "out.onnx", *source)
    assert outcome.code == 0
    assert "WARNING" not in outcome.out
    assert "WARNING" not in run("verify", *2 * [models / "spirals_mlp.onnx"], *source).out


def test_verify(run, models, zeros):
    outcome = run("verify", *2 * [models / "spirals_mlp.onnx"], "--calibration", zeros)
    assert "WARNING: all samples are the same" in flat(outcome.out)


def test_in_python(models):
    result = onnxprune.prune(models / "spirals_mlp.onnx", target={"channels": 0.01})
    first, second = result.warnings
    assert result.report.warnings == (first, second)
    assert "not compared" in first
    assert second.startswith("one unit is left of ")
    assert "--exclude" in second


def test_studies(run, models, tmp_path):
    np.savez(tmp_path / "few.npz", x=POINTS[:3])
    model, source = models / "spirals_mlp.onnx", ("--calibration", tmp_path / "few.npz")
    quick = ("--criterion", "l2", "--compensate", "mean", "--allocation", "uniform")
    page = tmp_path / "page.html"
    outcome = run("sensitivity", model, *source, *quick, "--html", page)
    assert "WARNING: calibrated on 3 samples" in flat(outcome.out)
    assert "Calibrated on 3 samples" in page.read_text()
    folder = tmp_path / "sweep"
    sweep = ("sweep", model, *source, *quick, "--target", "macs=0.9", "--out", folder)
    for _ in range(2):  # the second time the points are there already
        assert "WARNING: calibrated on 3 samples" in flat(run(*sweep).out)
    assert "Calibrated on 3 samples" in (folder / "sweep.html").read_text()


def test_a_run_that_fails_says_what_is_odd_about_the_samples(run, models, zeros, tmp_path):
    run(
        *("prune", models / "spirals_mlp.onnx", tmp_path / "out.onnx", "--calibration", zeros),
        *("--exclude", "*"),
    ).refused(3, "about the samples: all samples are the same")
