"""`onnxprune finetune`: files in, one file out, and one line where something is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.reducing import graph, weights

import onnxprune

SIGNATURE = "(float[N, 8] x) => (float[N, 3] y)"
BODY = "h = Gemm (x, a, b) r = Relu (h) y = Gemm (r, c, d)"
QUICK = ("--threads", 1, "--effort", 8)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A model, its teacher with more hidden units, and samples."""
    paths = {name: tmp_path / f"{name}.onnx" for name in ("model", "teacher", "out")}
    for name, width in (("model", 6), ("teacher", 16)):
        made = weights(width, a=(8, width), b=(width,), c=(width, 3), d=(3,))
        onnx.save(graph(SIGNATURE, BODY, {n: 0.3 * v for n, v in made.items()}), paths[name])
    paths["samples"] = tmp_path / "samples.npz"
    rng = np.random.default_rng(0)
    np.savez(paths["samples"], x=rng.standard_normal((128, 8)).astype(np.float32))
    return paths


@pytest.fixture
def finetune(run: Any, files: dict[str, Path]) -> Any:
    def call(*arguments: object, out: Path | None = None) -> Any:
        given = ("--calibration", files["samples"], *QUICK, *arguments)
        return run("finetune", files["model"], out or files["out"], *given)

    return call


def test_it_writes_the_model_the_plan_the_figures_and_the_page(
    run: Any, finetune: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    plan, figures, page = (tmp_path / name for name in ("plan.json", "figures.json", "page.html"))
    outcome = finetune(
        *("--teacher", files["teacher"], "--force"),
        *("--plan", plan, "--json", figures, "--report", page),
    )
    assert (outcome.code, outcome.err) == (0, "")
    for text in ("fine-tuned", "divergence from teacher.onnx on held-out samples", "moved most"):
        assert text in outcome.out
    onnx.checker.check_model(files["out"], full_check=True)
    (step,) = json.loads(figures.read_text())["steps"]
    assert step["tuning"]["after"] < step["tuning"]["before"]
    assert step["tuning"]["teacher"] == str(files["teacher"])
    assert "Fine-tuning report" in page.read_text(encoding="utf-8")
    # the plan repeats it, to the byte
    again = tmp_path / "again.onnx"
    samples = ("--calibration", files["samples"])
    assert run("apply", files["model"], plan, again, *samples, "--threads", 1, "-q").code == 0
    assert again.read_bytes() == files["out"].read_bytes()


def test_without_teacher_and_labels_the_model_is_written_as_it_was(
    finetune: Any, files: dict[str, Path]
) -> None:
    outcome = finetune()
    assert outcome.code == 0
    assert "its own teacher" in outcome.out
    before, after = (onnx.load(files[name]).graph.initializer for name in ("model", "out"))
    assert before == after


def test_where_nothing_is_better_it_says_so(finetune: Any, files: dict[str, Path]) -> None:
    outcome = finetune("--teacher", files["model"])
    assert outcome.code == 0
    assert "no check-point was better" in outcome.out
    assert files["out"].exists()


def test_labels_show_what_they_were_for(
    finetune: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    with np.load(files["samples"]) as file:
        np.save(tmp_path / "labels.npy", (file["x"][:, 0] > 0).astype(np.int64))
    outcome = finetune("--labels", tmp_path / "labels.npy", "--effort", 30)
    assert outcome.code == 0
    assert "accuracy" in outcome.out
    assert "loss of labels on held-out samples" in outcome.out
    assert "on 32 samples (held out)" in outcome.out


def test_prune_tells_the_course_too(run: Any, models: Path, tmp_path: Path) -> None:
    figures, page = tmp_path / "figures.json", tmp_path / "page.html"
    outcome = run(
        *("prune", models / "digits_mlp.onnx", tmp_path / "small.onnx", "--target", "macs=0.4"),
        *("--calibration", models / "digits_mlp_calibration.npz", "--finetune", "--effort", 2),
        *("--threads", 1, "--json", figures, "--report", page),
    )
    assert outcome.code == 0, outcome.err
    assert "divergence from the original on held-out samples" in outcome.out
    tuning = json.loads(figures.read_text())["tuning"]
    assert tuning["after"] <= tuning["before"]
    text = page.read_text(encoding="utf-8")
    assert "Pruning report" in text
    assert 'id="finetuning"' in text


def test_the_plan_of_prune_repeats_its_fine_tuning(run: Any, models: Path, tmp_path: Path) -> None:
    model, plan = models / "digits_mlp.onnx", tmp_path / "plan.json"
    first, again = tmp_path / "first.onnx", tmp_path / "again.onnx"
    samples = ("--calibration", models / "digits_mlp_calibration.npz", "--threads", 1, "-q")
    target = ("--target", "macs=0.4", "--finetune", "--effort", 3)
    assert run("prune", model, first, *target, *samples, "--plan", plan).code == 0
    tuning = json.loads(plan.read_text())["tuning"]
    assert tuning["rate"] > 0
    assert tuning["best"] > 0
    assert run("apply", model, plan, again, *samples).code == 0
    assert again.read_bytes() == first.read_bytes()


def test_prune_without_it_has_no_course(run: Any, models: Path, tmp_path: Path) -> None:
    outcome = run("prune", models / "digits_mlp.onnx", tmp_path / "small.onnx", "--json", "-")
    assert json.loads(outcome.out)["tuning"] is None


def test_too_few_samples_and_other_interfaces_end_with_two(
    finetune: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    other, few, labels = tmp_path / "other.onnx", tmp_path / "few.npz", tmp_path / "labels.txt"
    text = "(float[N, 8] z) => (float[N, 3] y)"
    onnx.save(graph(text, "y = MatMul (z, c)", weights(c=(8, 3))), other)
    np.savez(few, x=np.zeros((3, 8), np.float32))
    labels.write_text("0\n1\n")
    teacher = ("--teacher", files["teacher"])
    finetune("--teacher", other).refused(2, "inputs z, the model x", "same inputs and outputs")
    finetune("--teacher", tmp_path / "none.onnx").refused(2, "none.onnx: no such file")
    finetune(*teacher, "--calibration", few).refused(2, "too few samples")
    finetune(*teacher, "--labels", labels).refused(2, "2 labels for 128 samples")
    finetune(*teacher, "--effort", "much").refused(2, "--effort", "low, normal, high")
    finetune(*teacher, out=files["teacher"]).refused(2, "overwrite")
    assert not files["out"].exists()


def test_nothing_left_to_tune_ends_with_three(
    run: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    model, teacher = tmp_path / "plain.onnx", tmp_path / "other.onnx"
    for path, body in ((model, "y = Relu (x)"), (teacher, "y = Tanh (x)")):
        onnx.save(graph("(float[N, 8] x) => (float[N, 8] y)", body, {}), path)
    given = ("--calibration", files["samples"], "--teacher", teacher, *QUICK)
    run("finetune", model, files["out"], *given).refused(3, "nothing can be fine-tuned")
    assert not files["out"].exists()


def test_answers_that_do_not_follow_the_teacher_end_with_four(
    finetune: Any, files: dict[str, Path]
) -> None:
    given = ("--teacher", files["teacher"], "--effort", 1)
    finetune(*given).refused(4, "no longer follow", "--force")
    assert not files["out"].exists()
    assert finetune(*given, "--force").code == 0


def test_the_pass_in_a_pipeline(run: Any, models: Path, tmp_path: Path) -> None:
    outcome = run(
        *("prune", models / "digits_mlp.onnx", tmp_path / "o.onnx", "--passes", "prune,finetune"),
        *("--target", "macs=0.4", "--set", "finetune.effort=2", "--threads", 1),
        *("--calibration", models / "digits_mlp_calibration.npz"),
    )
    assert outcome.code == 0, outcome.err
    assert "divergence from the original on held-out samples" in outcome.out
    listed = run("passes", "finetune")
    assert "teacher (any value; optional)" in listed.out


def test_the_function_is_public() -> None:
    assert "finetune" in onnxprune.__all__
