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


def test_feeds_of_one_sampling_rate_have_its_length_and_the_rate_as_a_scalar() -> None:
    from quality_feeds import batches

    rates = np.array([8000, 16000, 8000, 16000, 8000])
    sound = np.where(np.arange(8) < rates[:, None] // 2000, np.arange(1, 6)[:, None], 0)
    found = batches({"input": sound, "sr": rates}, 2)
    assert sorted(np.concatenate([rows for rows, _ in found]).tolist()) == list(range(5))
    for rows, feed in found:
        assert feed["sr"].shape == ()
        assert feed["sr"].dtype == np.int64
        assert (rates[rows] == feed["sr"]).all()
        assert feed["input"].shape == (len(rows), feed["sr"] // 2000)
        assert (feed["input"] == rows[:, None] + 1).all()


@pytest.mark.parametrize("as_probabilities", [False, True])
def test_class_metrics(as_probabilities: bool) -> None:
    from quality_metrics import class_metrics

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
    from quality_metrics import embedding_metrics

    wanted = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    same = {"cosine": 1, "neighbour": 1, "retrieval": 1}
    assert embedding_metrics(wanted, 3 * wanted) == pytest.approx(same)
    moved = np.array([[1.0, 0.0], [0.1, 0.9], [0.0, 1.0]])
    assert embedding_metrics(wanted, moved)["neighbour"] == pytest.approx(2 / 3)
    turned = wanted @ np.array([[0.0, 1.0], [-1.0, 0.0]])
    found = embedding_metrics(wanted, turned)
    assert (found["neighbour"], found["retrieval"]) == pytest.approx((1, 1 / 3))


def test_map_metrics_count_pixels_of_all_maps_together() -> None:
    from quality_metrics import map_metrics

    truth = np.array([[[0, 0, 1, 1]], [[0, 0, 0, 2]]])
    got = np.array([[[0, 0, 0, 1]], [[0, 0, 0, 2]]])
    found = map_metrics(truth, got, truth)
    assert found["iou"] == pytest.approx((5 / 6 + 1 / 2 + 1) / 3)
    assert found["agreement"] == pytest.approx(7 / 8)


def test_class_maps_take_the_largest_score_of_a_pixel() -> None:
    from quality_metrics import class_maps

    scores = np.zeros((1, 2, 1, 4), np.float32)
    scores[0, 1, 0, 2:] = 1
    found = class_maps((scores,), (-scores,), {"labels": np.array([[[0, 0, 1, 1]]])})
    assert found == {"iou": 0.25, "agreement": 0.5}


def test_both_sampling_rates_are_judged() -> None:
    from quality_metrics import voices

    wanted = np.array([[0.9], [0.9], [0.2], [0.2]])
    got = np.array([[0.6], [0.4], [0.4], [0.6]])
    samples = {"labels": np.array([1, 1, 0, 1]), "sr": np.array([8000, 16000, 8000, 16000])}
    assert voices((wanted,), (got,), samples) == {
        "accuracy_8000": 1.0,
        "agreement_8000": 1.0,
        "accuracy_16000": 0.5,
        "agreement_16000": 0.0,
    }


def test_faces_are_sure_and_apart() -> None:
    from quality_metrics import faces

    boxes = np.array([[0, 0, 4, 4], [10, 0, 14, 4], [0, 0, 4, 3], [10, 2, 14, 6], [20, 0, 24, 4.0]])
    scores = np.array([0.8, 0.9, 0.95, 0.75, 0.7])
    # the third covers the first, the second and the fourth share a third of their area
    assert faces(scores, boxes).tolist() == boxes[[2, 1]].tolist()
    boxes[3, 1] = 2.5  # now they share three tenths at most
    assert faces(scores, boxes).tolist() == boxes[[2, 1, 3]].tolist()
    assert faces(scores / 2, boxes).shape == (0, 4)


def test_a_suppressed_box_suppresses_no_other() -> None:
    from quality_metrics import faces

    boxes = np.array([[0, 0, 4, 2], [2, 0, 6, 2], [4, 0, 8, 2.0]])
    # each covers a third of the next: the middle one goes and no longer stands in anyone's way
    assert faces(np.array([0.9, 0.8, 0.75]), boxes).tolist() == boxes[[0, 2]].tolist()


def test_each_found_face_answers_for_one_of_the_original() -> None:
    from quality_metrics import face_metrics

    box, moved, far = [0, 0, 4, 4], [1, 0, 5, 4], [10, 10, 14, 14]
    wanted, empty = np.array([box, moved], float), np.empty((0, 4))
    assert face_metrics([wanted], [wanted])["f1"] == 1
    found = face_metrics([wanted, wanted, empty], [np.array([box, far], float), empty, wanted[:1]])
    assert found == {"f1": 2 * 1 / (4 + 3), "faces": 3, "again": 1}
    assert face_metrics([empty], [empty])["f1"] == 0


def test_a_judge_sees_every_output_in_the_order_of_the_file(tmp_path: Path) -> None:
    import onnx
    from quality_subjects import DivergenceEvaluator, Subject

    text = """<ir_version: 8, opset_import: ["" : 17]>
    rates (float[n, s] input, int64 sr) => (float[n, 1] mean, float[n] shifted)
    <float[2, 1] w = {1, 1}> {
        first = Constant<value_ints = [0, 1]>()
        front = Gather<axis = 1>(input, first)
        mean = MatMul(front, w)
        rate = Cast<to = 1>(sr)
        axis = Constant<value_ints = [1]>()
        flat = Squeeze(mean, axis)
        shifted = Add(flat, rate)
    }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "rates.onnx")
    rates = np.array([8000, 16000, 16000, 8000, 8000])
    sound = np.tile(np.arange(5, dtype=np.float32)[:, None], (1, 8))
    np.savez(tmp_path / "samples.npz", input=sound, sr=rates, labels=rates)
    file = tmp_path / "samples.npz"
    subject = Subject("rates", tmp_path / "rates.onnx", file, file, batch=2)
    judge = DivergenceEvaluator(subject, tests=None, threads=1)
    assert judge.wanted[0].ravel().tolist() == [0, 2, 4, 6, 8]
    assert judge.wanted[1].tolist() == (2 * np.arange(5) + rates).tolist()


def test_feeds_of_each_rate_are_counted_apart() -> None:
    from quality_subjects import of_each_rate

    low, high = ({"x": np.zeros(1), "sr": np.array(rate)} for rate in (8000, 16000))
    feeds = [low, high, low]
    found = of_each_rate(feeds)
    assert [len(found[kind]) for kind in ("", "_8000", "_16000")] == [3, 2, 1]
    assert found["_16000"][0] is high
    assert (
        list(of_each_rate({"x": np.zeros(1)})) == list(of_each_rate([{"x": np.zeros(1)}])) == [""]
    )


def test_the_model_of_two_rates_runs_the_network_of_the_rate(tmp_path: Path) -> None:
    import onnx
    import onnxruntime as ort
    from two_rates import chosen_by_rate

    text = """<ir_version: 8, opset_import: ["" : 18]>
    network (float[n, %d] input) => (float[n, 1] output) <float[1, 1] w = {%d}> {
        axis = Constant<value_ints = [1]>()
        mean = ReduceMean<keepdims = 1>(input, axis)
        output = MatMul(mean, w)
    }"""
    branches = {
        8000: onnx.parser.parse_model(text % (4, 2)),
        16000: onnx.parser.parse_model(text % (8, 3)),
    }
    model = chosen_by_rate(branches)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for rate, length, answer in ((8000, 4, 2), (16000, 8, 3)):
        feed = {"input": np.ones((5, length), np.float32), "sr": np.array(rate)}
        assert session.run(None, feed)[0].tolist() == [[answer]] * 5


def test_photographs_are_fed_as_the_detector_expects_them(tmp_path: Path) -> None:
    from PIL import Image
    from quality_subjects import photograph

    Image.new("RGB", (4, 2), (127, 255, 0)).save(tmp_path / "flat.png")
    array = photograph(tmp_path / "flat.png")
    assert (array.shape, array.dtype) == ((3, 2, 4), np.float32)
    np.testing.assert_allclose(array[:, 0, 0], [0, 1, -127 / 128])


def test_made_data_are_the_same_for_a_seed() -> None:
    from made_data import RATES, TEXTURES, spoken_words, textured_images, windows

    def made(seed: int) -> list[Any]:
        rng = np.random.default_rng(seed)
        parts = [textured_images(3, rng), spoken_words(3, rng)]
        return [array for pair in parts for array in pair] + list(windows(3, RATES[0], rng))

    first, second, other = made(0), made(0), made(1)
    for array, again in zip(first, second, strict=True):
        np.testing.assert_array_equal(array, again)
    assert any((array != different).any() for array, different in zip(first, other, strict=True))
    images, maps, spectrograms, words, sound, voice = first
    assert (images.shape, maps.shape) == ((3, 3, 64, 64), (3, 64, 64))
    assert 0 < maps.max() < TEXTURES
    assert (spectrograms.shape, words.shape) == ((3, 1, 32, 30), (3,))
    assert (sound.shape, voice.shape) == ((3, 1024), (3,))
    assert {array.dtype for array in (images, spectrograms, sound)} == {np.dtype(np.float32)}
    assert all(np.isfinite(array).all() for array in first)


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
