from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.paths import ROOT


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_feeds_of_one_length_carry_no_padding_and_every_sample_once() -> None:
    from quality_feeds import batches

    lengths = np.array([3, 5, 3, 2, 5, 3])
    mask = (np.arange(6) < lengths[:, None]).astype(np.int64)
    ids = np.arange(36).reshape(6, 6) * mask
    found = batches({"input_ids": ids, "attention_mask": mask}, 2)
    assert sorted(np.concatenate([rows for rows, _ in found]).tolist()) == list(range(6))
    for rows, feed in found:
        assert feed["attention_mask"].all()
        assert len(rows) <= 2
        np.testing.assert_array_equal(feed["input_ids"], ids[rows, : lengths[rows[0]]])


def test_feeds_without_a_mask_keep_their_order() -> None:
    from quality_feeds import batches

    found = batches({"x": np.arange(5)}, 2)
    assert [feed["x"].tolist() for _, feed in found] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("as_probabilities", [False, True])
def test_class_metrics(as_probabilities: bool) -> None:
    from quality_subjects import class_metrics

    wanted = np.log([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    got = np.log([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    if as_probabilities:
        wanted, got = np.exp(wanted), np.exp(got)
    found = class_metrics(wanted, got, np.array([0, 1, 1]))
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["agreement"] == pytest.approx(2 / 3)
    divergence = 0.2 * np.log(0.2 / 0.6) + 0.8 * np.log(0.8 / 0.4)
    assert found["kl"] == pytest.approx(divergence / 3)


def test_embedding_metrics_ignore_lengths_and_the_sample_itself() -> None:
    from quality_subjects import embedding_metrics

    wanted = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    same = {"cosine": 1, "neighbour": 1, "retrieval": 1}
    assert embedding_metrics(wanted, 3 * wanted) == pytest.approx(same)
    moved = np.array([[1.0, 0.0], [0.1, 0.9], [0.0, 1.0]])
    assert embedding_metrics(wanted, moved)["neighbour"] == pytest.approx(2 / 3)
    turned = wanted @ np.array([[0.0, 1.0], [-1.0, 0.0]])
    found = embedding_metrics(wanted, turned)
    assert (found["neighbour"], found["retrieval"]) == pytest.approx((1, 1 / 3))


def job(tmp_path: Path, **options: Any) -> dict[str, Any]:
    models = ROOT / "models"
    return {
        "model": str(models / "spirals_mlp.onnx"),
        "calibration": str(models / "spirals_calibration.npz"),
        "output": str(tmp_path / "pruned.onnx"),
        "threads": 1,
        "budget": 0.75,
        "samples": 64,
        "options": options,
    }


def test_a_run_says_what_it_took_and_which_options_it_used(tmp_path: Path) -> None:
    from quality_runs import run_job

    result = run_job(job(tmp_path, criterion="l2"), limit=60)
    assert result["seconds"] > 0
    assert result["peak_mb"] > 0
    assert result["used"]["criterion"] == "l2"
    assert (tmp_path / "pruned.onnx").exists()


def test_a_failure_is_a_result(tmp_path: Path) -> None:
    from quality_runs import run_job

    assert "unknown criterion" in run_job(job(tmp_path, criterion="none such"), limit=60)["failed"]
    assert "not finished" in run_job(job(tmp_path), limit=0.01)["failed"]
    assert "code" in run_job(job(tmp_path), limit=60, script=tmp_path / "missing.py")["failed"]
