"""A sweep: every point is what `prune` gives, and what was finished is never computed again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import feed, parse
from helpers.paths import MODELS

import onnxprune
from onnxprune import InputError, Sweep
from onnxprune.errors import VerificationError
from onnxprune.pruning.run import PruneRun
from onnxprune.pruning.studies.sweep import SweepPoint, file_stem
from onnxprune.report.records import Study

TWO_LAYERS = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 6] x) => (float[N, 4] y)
    { a = MatMul(x, w1)
      b = Relu(a)
      c = MatMul(b, w2)
      d = Relu(c)
      y = MatMul(d, w3) }"""


def network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    shapes = {"w1": (6, 16), "w2": (16, 12), "w3": (12, 4)}
    weights = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    return parse(TWO_LAYERS, weights)


def samples(seed: int = 0) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).standard_normal((96, 6)).astype(np.float32)}


def sweep(**options: Any) -> Sweep:
    given = {"calibration": samples(), "threads": 1, "measure_latency": False} | options
    return onnxprune.sweep(network(), **given)


def budgets(*fractions: float) -> list[dict[str, float]]:
    return [{"macs": one} for one in fractions]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def counted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Targets that are pruned to from now on."""
    asked: list[dict[str, float]] = []
    real = PruneRun.at

    def at(run: PruneRun, target: Any) -> Any:
        asked.append(dict(target))
        return real(run, target)

    monkeypatch.setattr(PruneRun, "at", at)
    return asked


def labelled(which: str, name: str = "digits_mlp") -> dict[str, Any]:
    """Some digits, and what is known of each."""
    with np.load(MODELS / f"{name}_test.npz") as file:
        inputs = {name: file[name][:64] for name in file.files if name != "labels"}
        known = file["labels"][:64]
    numbers = np.random.default_rng(0).standard_normal((64, 10))
    return {"calibration": inputs, "labels": known if which == "the file's" else numbers}


ALL_TARGETS = ({"macs": 0.7}, {"channels": 0.5}, {"params": 0.6}, {"macs": 0.8, "params": 0.7})


@pytest.mark.parametrize(
    ("name", "targets", "options"),
    [
        ("digits_resnet", ALL_TARGETS[::3], {}),
        ("digits_mlp", ALL_TARGETS, {}),
        ("digits_resnet", ALL_TARGETS, {"compensate": "mean", "criterion": "l2"}),
        ("digits_resnet", ALL_TARGETS, {"compensate": "none", "criterion": "random", "seed": 3}),
        ("digits_mlp", ALL_TARGETS, {"round_to": 4}),
        ("digits_mlp", ALL_TARGETS, {"criterion": "taylor", "labels": "the file's"}),
        (
            "digits_mlp",
            ALL_TARGETS,
            {"criterion": "fisher", "labels": "the file's", "loss": "cross-entropy"},
        ),
        (
            "digits_mlp",
            ALL_TARGETS,
            {"criterion": "taylor", "labels": "of another task", "loss": "mse"},
        ),
    ],
    ids=str,
)
def test_every_point_is_what_prune_gives(
    name: str, targets: tuple[dict[str, float], ...], options: dict[str, Any]
) -> None:
    source = MODELS / f"{name}.onnx"
    given: dict[str, Any] = {
        "calibration": labelled("the file's", name)["calibration"],
        "threads": 1,
        "measure_latency": False,
        **options,
    }
    if "labels" in options:
        given |= labelled(options["labels"])
    found = onnxprune.sweep(onnx.load(source), targets=targets, **given)
    assert [dict(one.target) for one in found.points] == list(targets)
    for point in found.points:
        alone = onnxprune.prune(onnx.load(source), target=point.target, force=True, **given)
        assert point.run is not None
        assert isinstance(point.run.model, onnx.ModelProto)
        assert isinstance(alone.model, onnx.ModelProto)
        assert point.run.model.SerializeToString() == alone.model.SerializeToString()
        assert point.run.plan.to_json() == alone.plan.to_json()
        figures = alone.report.to_dict()
        assert point.result == figures["result"]
        assert point.quality == figures["quality"]
        assert (point.quality is None) == ("labels" not in options)


def test_points_say_what_they_cost_and_how_far_they_are() -> None:
    found = sweep(targets=budgets(0.8, 0.4), measure_latency=True)
    large, small = found.points
    assert 0.3 < small.remains("macs") <= 0.4 < large.remains("macs") <= 0.8
    assert small.divergence is not None
    assert large.divergence is not None
    assert 0 < large.divergence < small.divergence
    assert small.latency is not None
    assert small.latency["low"] <= small.latency["ratio"] <= small.latency["high"]
    (output,) = small.outputs
    assert output["snr_db"] == pytest.approx(-20 * np.log10(output["relative_error"]))
    assert small.channels is not None
    assert 0 < small.channels < 1
    assert found.pareto() == found.points


def test_a_budget_out_of_reach_is_a_point_with_a_reason() -> None:
    found = sweep(targets=budgets(0.5, 0.0001))
    assert [one.status for one in found.points] == ["done", "unreachable"]
    assert "cannot be reached; the best is" in found.points[1].reason
    assert found.pareto() == found.points[:1]


def test_a_result_that_fails_is_a_point_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise VerificationError("it differs")

    monkeypatch.setattr(PruneRun, "at", fail)
    (point,) = sweep(targets=budgets(0.5)).points
    assert (point.status, point.reason, point.done) == ("failed", "it differs", False)


def point(macs: float, divergence: float, params: float = 1.0) -> SweepPoint:
    costs = {"macs": int(1000 * macs), "params": int(1000 * params)}
    original = {"macs": 1000, "params": 1000}
    return SweepPoint({"macs": macs}, original=original, result=costs, divergence=divergence)


def test_points_that_another_beats_are_not_pareto() -> None:
    study = Study("m", "s", {}, {})
    good, beaten, small = point(0.7, 0.1), point(0.8, 0.2), point(0.3, 0.9)
    found = Sweep(study, (good, beaten, small))
    assert found.pareto() == (good, small)
    assert [one["pareto"] for one in found.to_dict()["points"]] == [True, False, True]
    # among targets of two kinds, a point has to be beaten in both
    other = SweepPoint({"params": 0.5}, "unreachable", "no")
    dearer = point(0.7, 0.1, params=0.9)
    lean = point(0.8, 0.2, params=0.2)
    assert Sweep(study, (dearer, lean, other)).pareto() == (dearer, lean)


def test_equal_points_do_not_beat_each_other() -> None:
    twins = (point(0.5, 0.1), point(0.5, 0.1))
    assert Sweep(Study("m", "s", {}, {}), twins).pareto() == twins


@pytest.mark.parametrize(
    ("target", "stem"),
    [
        ({"macs": 0.5}, "macs-0.50"),
        ({"macs": 0.505}, "macs-0.505"),
        ({"macs": 0.5, "params": 0.25}, "macs-0.50+params-0.25"),
    ],
)
def test_file_names_tell_targets_apart(target: dict[str, float], stem: str) -> None:
    assert file_stem(target) == stem


def test_models_of_the_pareto_points_are_saved(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    found = sweep(targets=budgets(0.8, 0.5), folder=folder, save=True)
    names = {f"macs-{one}.{end}" for one in ("0.80", "0.50") for end in ("onnx", "plan.json")}
    names |= {"sweep.html", "sweep.json", "sweep.svg"}
    assert {path.name for path in folder.iterdir()} == names
    alone = onnxprune.prune(
        network(), calibration=samples(), target={"macs": 0.5}, threads=1, measure_latency=False
    )
    alone.save(tmp_path / "alone.onnx")
    assert (folder / "macs-0.50.onnx").read_bytes() == (tmp_path / "alone.onnx").read_bytes()
    assert [one.file for one in found.points] == ["macs-0.80.onnx", "macs-0.50.onnx"]
    data = json.loads((folder / "sweep.json").read_text())
    assert [one["file"] for one in data["points"]] == ["macs-0.80.onnx", "macs-0.50.onnx"]
    x = feed(network(), 2)
    assert onnxprune.verify(network(), folder / "macs-0.50.onnx", calibration=x, threads=1)


def test_models_that_are_beaten_later_do_not_stay(tmp_path: Path) -> None:
    """Kept results are those of the file: a model that is no longer listed is gone."""
    folder = tmp_path / "out"
    sweep(targets=budgets(0.8), folder=folder, save=True)
    text = json.loads((folder / "sweep.json").read_text())
    text["points"][0]["divergence"] = 1e6
    (folder / "sweep.json").write_text(json.dumps(text))
    found = sweep(targets=budgets(0.8, 0.5), folder=folder, save=True)
    assert [one.file for one in found.points] == [None, "macs-0.50.onnx"]
    assert not (folder / "macs-0.80.onnx").exists()
    assert not (folder / "macs-0.80.plan.json").exists()


def test_a_sweep_in_memory_can_be_saved_later(tmp_path: Path) -> None:
    at_once, later = tmp_path / "at_once", tmp_path / "later"
    sweep(targets=budgets(0.8, 0.5), folder=at_once, save=True)
    saved = sweep(targets=budgets(0.8, 0.5)).save(later)
    assert [one.file for one in saved.points] == ["macs-0.80.onnx", "macs-0.50.onnx"]
    assert contents(at_once).keys() == contents(later).keys()
    for name in ("macs-0.80.onnx", "macs-0.50.plan.json"):
        assert (at_once / name).read_bytes() == (later / name).read_bytes()


def test_an_interrupted_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    asked = counted(monkeypatch)
    real = PruneRun.at

    def interrupted(run: PruneRun, target: Any) -> Any:
        if target == {"macs": 0.5}:
            raise KeyboardInterrupt
        return real(run, target)

    with monkeypatch.context() as patch:
        patch.setattr(PruneRun, "at", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep(targets=budgets(0.8, 0.5, 0.4), folder=folder)
    assert [dict(one.target) for one in Sweep.load(folder).points] == budgets(0.8)
    first = Sweep.load(folder).points[0]
    asked.clear()
    found = sweep(targets=budgets(0.8, 0.5, 0.4), folder=folder)
    assert asked == budgets(0.5, 0.4)
    assert [dict(one.target) for one in found.points] == budgets(0.8, 0.5, 0.4)
    assert found.points[0] == first
    again = contents(folder)
    asked.clear()
    assert sweep(targets=budgets(0.8, 0.5, 0.4), folder=folder).points == Sweep.load(folder).points
    assert asked == []
    assert contents(folder) == again


def test_labels_say_how_good_every_point_and_baseline_is() -> None:
    given = labelled("the file's")
    found = onnxprune.sweep(
        MODELS / "digits_mlp.onnx",
        targets=budgets(0.7, 0.3),
        baselines=["random"],
        threads=1,
        measure_latency=False,
        **given,
    )
    for one in (*found.points, *found.baselines):
        assert one.quality is not None
        assert one.quality["measure"] == "accuracy"
        assert one.quality["samples"] == 64
        assert one.run is None or one.quality == one.run.report.to_dict()["quality"]
        assert SweepPoint.from_dict(one.to_dict()).quality == one.quality
    # at chance, three tenths of the network tell few digits
    assert found.points[1].quality["result"] > found.baselines[1].quality["result"]  # type: ignore[index]


def test_labels_belong_to_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(96) % 4
    sweep(targets=budgets(0.8), folder=tmp_path, labels=labels)
    asked = counted(monkeypatch)
    sweep(targets=budgets(0.8), folder=tmp_path, labels=labels.tolist())
    assert asked == []
    sweep(targets=budgets(0.8), folder=tmp_path, labels=labels[::-1])
    sweep(targets=budgets(0.8), folder=tmp_path)
    assert asked == budgets(0.8) * 2
    assert Sweep.load(tmp_path).points[0].quality is None


@pytest.mark.parametrize(
    "change",
    [{"calibration": samples(1)}, {"seed": 5}, {"compensate": "mean"}, {"exclude": ["w1"]}],
    ids=lambda change: next(iter(change)),
)
def test_points_of_another_study_are_computed_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    folder = tmp_path / "out"
    sweep(targets=budgets(0.8), folder=folder)
    asked = counted(monkeypatch)
    found = sweep(targets=budgets(0.9), folder=folder, **change)
    assert asked == budgets(0.9)
    assert [dict(one.target) for one in found.points] == budgets(0.9)


def test_further_budgets_join_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    sweep(targets=budgets(0.8), folder=folder)
    asked = counted(monkeypatch)
    found = sweep(targets=budgets(0.5), folder=folder)
    assert asked == budgets(0.5)
    assert [dict(one.target) for one in found.points] == budgets(0.5, 0.8)


def test_points_whose_model_is_wanted_but_missing_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    sweep(targets=budgets(0.8, 0.5), folder=folder)
    asked = counted(monkeypatch)
    sweep(targets=budgets(0.8, 0.5), folder=folder, save=True)
    assert asked == budgets(0.8, 0.5)
    (folder / "macs-0.50.onnx").unlink()
    asked.clear()
    sweep(targets=budgets(0.8, 0.5), folder=folder, save=True)
    assert asked == budgets(0.5)
    assert (folder / "macs-0.50.onnx").is_file()


@pytest.mark.parametrize("text", ["", "{}", '{"format": "onnxprune-sweep", "version": 1}', "[1]"])
def test_a_damaged_file_is_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    sweep(targets=budgets(0.8), folder=tmp_path)
    assert [dict(one.target) for one in Sweep.load(tmp_path).points] == budgets(0.8)


def test_infinite_divergence_survives_the_file(tmp_path: Path) -> None:
    study = Study("m", "s", {}, {})
    Sweep(study, (point(0.5, float("inf")),)).write(tmp_path)
    assert Sweep.load(tmp_path).points[0].divergence == float("inf")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": []}, "no target"),
        ({"targets": [{"nonsense": 0.5}]}, "unknown target 'nonsense'"),
        ({"targets": budgets(0.5, 1.5)}, "out of range"),
        ({"calibration": None}, "--calibration"),
        ({"save": True}, "folder"),
        ({"criterion": "nonsense"}, "nonsense"),
        ({"labels": [1, 2]}, "2 labels for 96 samples"),
        ({"labels": np.full((96, 7), 1)}, "fit no output"),
    ],
)
def test_bad_arguments(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        sweep(**options)


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    source = tmp_path / "macs-0.50.onnx"
    onnx.save(network(), source)
    before = source.read_bytes()
    with pytest.raises(InputError, match="would overwrite the input"):
        onnxprune.sweep(
            source, calibration=samples(), targets=budgets(0.5), folder=tmp_path, save=True
        )
    assert contents(tmp_path) == {source.name: before}
