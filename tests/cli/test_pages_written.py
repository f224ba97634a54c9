"""Which command writes which page, and what stands in the way of it."""

from __future__ import annotations

import hashlib
import json

import pytest


@pytest.fixture
def given(models):
    return models / "digits_mlp.onnx", "--calibration", models / "digits_mlp_calibration.npz"


def test_prune_and_apply_write_a_report(run, given, tmp_path):
    model, *samples = given
    out, plan, page = (tmp_path / name for name in ("a.onnx", "plan.json", "a.html"))
    words = ["prune", model, out, *samples, "--target", "macs=0.7", "--plan", plan]
    assert run(*words, "--report", page).code == 0
    text = page.read_text(encoding="utf-8")
    assert f"onnxprune prune {model} {out} --calibration" in text
    assert hashlib.sha256(out.read_bytes()).hexdigest() in text
    assert hashlib.sha256(model.read_bytes()).hexdigest() in text
    assert "Error curves" in text
    again = tmp_path / "b.html"
    assert run("apply", model, plan, tmp_path / "b.onnx", *samples, "--report", again).code == 0
    assert "Certificate holds" in again.read_text(encoding="utf-8")
    assert "Error curves" not in again.read_text(encoding="utf-8")


def test_a_report_is_refused_before_any_work(run, given, tmp_path):
    model, *samples = given
    out = tmp_path / "a.onnx"
    words = ["prune", model, out, *samples]
    run(*words, "--report", model).refused(2, "would overwrite the input")
    run(*words, "--report", out).refused(2, "two outputs have this name")
    run(*words, "--report", tmp_path / "none" / "a.html").refused(2, "does not exist")
    assert not out.exists()


def test_baselines_stand_beside_the_points_and_are_not_computed_again(run, given, tmp_path):
    model, *samples = given
    words = ["sweep", model, *samples, "--out", tmp_path, "--target", "macs=0.7", "--baselines"]
    assert run(*words).code == 0
    data = json.loads((tmp_path / "sweep.json").read_text())
    assert [one["baseline"] for one in data["baselines"]] == ["random", "l1"]
    assert all(one["status"] == "done" for one in data["baselines"])
    assert "random" in (tmp_path / "sweep.html").read_text(encoding="utf-8")
    assert run(*words).code == 0
    assert json.loads((tmp_path / "sweep.json").read_text()) == data


def test_sensitivity_writes_a_heat_map(run, given, tmp_path):
    model, *samples = given
    page, figures = tmp_path / "map.html", tmp_path / "map.json"
    words = ["sensitivity", model, *samples, "--keep", "0.5", "--html", page, "--json", figures]
    assert run(*words).code == 0
    assert "keep 50 %" in page.read_text(encoding="utf-8")
    merged = tmp_path / "merged.html"
    assert run("sensitivity", "--merge", figures, "--html", merged).code == 0
    assert "keep 50 %" in merged.read_text(encoding="utf-8")
    run("sensitivity", "--merge", figures, "--html", figures).refused(2, "would overwrite")
