"""`sweep` and `sensitivity` as a user runs them."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from onnxprune import VerificationError
from onnxprune.pruning.run import PruneRun
from onnxprune.pruning.studies import sensitivity as sensing


@pytest.fixture
def given(models):
    """A model and what calibrates it."""
    return models / "digits_mlp.onnx", "--calibration", models / "digits_mlp_calibration.npz"


@pytest.fixture
def refuse(run, tmp_path):
    """Run a command and check that it is refused without a trace."""

    def check(*arguments, words=(), code=2):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
        run(*arguments).refused(code, *words)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        assert [path for path in tmp_path.rglob("*") if path.is_dir()] == folders

    return check


def test_sweep_writes_figures_curve_and_models(run, given, tmp_path):
    out = tmp_path / "out"
    budgets = ("--target", "macs=0.7,0.4", "--target", "params=0.0001")
    outcome = run("sweep", *given, "--out", out, *budgets, "--save", "--threads", 1)
    assert (outcome.code, outcome.err) == (0, "")
    for text in ("macs=0.7", "macs=0.4", "MACs", "latency", "same answer", "divergence"):
        assert text in outcome.out
    assert "params=0.0001 unreachable: the target" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 100
    data = json.loads((out / "sweep.json").read_text())
    assert data["format"] == "onnxprune-sweep"
    assert [one["target"] for one in data["points"]] == [
        {"macs": 0.7},
        {"macs": 0.4},
        {"params": 0.0001},
    ]
    point = data["points"][1]
    assert point["pareto"] is True
    assert point["result"]["macs"] <= 0.4 * point["original"]["macs"]
    assert point["result"]["bytes"] == (out / point["file"]).stat().st_size
    assert {"ratio", "low", "high"} <= point["latency"].keys()
    assert {"agreement", "cosine", "relative_error", "snr_db"} <= point["outputs"][0].keys()
    onnx.checker.check_model(out / "macs-0.40.onnx", full_check=True)
    assert (out / "sweep.svg").read_text().startswith("<svg")


def test_sweep_and_prune_give_the_same_file(run, given, tmp_path):
    assert run("sweep", *given, "--out", tmp_path, "--target", "macs=0.5", "--save").code == 0
    alone = tmp_path / "alone.onnx"
    model, *calibration = given
    assert run("prune", model, alone, *calibration, "--target", "macs=0.5").code == 0
    assert (tmp_path / "macs-0.50.onnx").read_bytes() == alone.read_bytes()


def test_sweep_without_saving_leaves_no_models(run, given, tmp_path):
    outcome = run(
        *("sweep", *given, "--out", tmp_path / "o", "--target", "macs=0.5"),
        *("--no-latency", "--json", "-", "--compensate", "mean"),
    )
    (point,) = json.loads(outcome.out)["points"]
    assert point["latency"] is None
    assert point["file"] is None
    names = ["sweep.html", "sweep.json", "sweep.svg"]
    assert sorted(one.name for one in (tmp_path / "o").iterdir()) == names


def test_sweep_has_default_budgets(run, given, tmp_path, monkeypatch):
    asked = []

    def fail(_run, target):
        asked.append(target)
        raise VerificationError("not today")

    monkeypatch.setattr(PruneRun, "at", fail)
    run("sweep", *given, "--out", tmp_path)
    # the outermost come first: what does best there is tried in between
    assert asked == [{"macs": share} for share in (0.9, 0.3, 0.8, 0.7, 0.6, 0.5, 0.4)]


@pytest.fixture
def labelled(models, tmp_path):
    """A model, samples of it and their labels."""
    with np.load(models / "digits_mlp_test.npz") as file:
        np.savez(tmp_path / "samples.npz", pixels=file["pixels"][:128])
        np.save(tmp_path / "labels.npy", file["labels"][:128])
    calibration = "--calibration", tmp_path / "samples.npz"
    return models / "digits_mlp.onnx", *calibration, "--labels", tmp_path / "labels.npy"


def test_labels_say_how_good_the_results_of_a_sweep_are(run, labelled, tmp_path):
    out = tmp_path / "out"
    chosen = ("--criterion", "taylor", "--target", "macs=0.5", "--save", "--threads", 1)
    outcome = run("sweep", *labelled, "--out", out, *chosen)
    assert (outcome.code, outcome.err) == (0, "")
    assert "accuracy: the original has" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 100
    (point,) = json.loads((out / "sweep.json").read_text())["points"]
    assert point["quality"]["measure"] == "accuracy"
    assert "Accuracy by MACs" in (out / "sweep.html").read_text()
    alone = ("--criterion", "taylor", "--target", "macs=0.5", "--threads", 1, "--force")
    assert run("prune", *labelled[:1], tmp_path / "alone.onnx", *labelled[1:], *alone).code == 0
    assert (out / "macs-0.50.onnx").read_bytes() == (tmp_path / "alone.onnx").read_bytes()


def test_labels_belong_to_a_sensitivity(run, refuse, labelled, tmp_path):
    file = tmp_path / "s.json"
    chosen = ("--criterion", "fisher", "--keep", "0.5", "--json", file, "--threads", 1)
    assert run("sensitivity", *labelled, *chosen, "-q").code == 0
    assert json.loads(file.read_text())["missing"] == []
    refuse("sensitivity", *labelled[:3], *chosen, words=["s.json", "labels differ"])
    refuse("sensitivity", "--merge", file, *labelled[3:], words=["--merge measures nothing"])
    refuse("sensitivity", *labelled[:3], "--labels", file, words=["labels", "cannot be read"])


def test_sweep_that_reaches_nothing_ends_with_3(run, given, tmp_path):
    outcome = run("sweep", *given, "--out", tmp_path, "--target", "macs=0.00001", "-q")
    outcome.refused(3, "no budget can be reached", "the best is")
    (point,) = json.loads((tmp_path / "sweep.json").read_text())["points"]
    assert point["status"] == "unreachable"
    assert not (tmp_path / "sweep.svg").exists()


@pytest.mark.parametrize("finished", [0, 1])
def test_interrupted_sweep_says_what_is_there(run, given, tmp_path, monkeypatch, finished):
    real = PruneRun.at
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) > finished:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(PruneRun, "at", interrupted)
    outcome = run("sweep", *given, "--out", tmp_path / "o", "--target", "macs=0.7,0.5", "-q")
    assert outcome.code == 130
    expected = "sweep.json holds what was finished" if finished else "nothing was written"
    assert expected in outcome.err


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("macs", "KIND=F,F"),
        ("macs=", "KIND=F,F"),
        ("macs=0.5,", "KIND=F,F"),
        ("macs=a", "not a number"),
        ("macs=0.5,1.2", "out of range"),
        ("depth=0.5", "unknown target 'depth'"),
    ],
)
def test_bad_budgets(refuse, given, tmp_path, target, words):
    refuse("sweep", *given, "--out", tmp_path / "o", "--target", target, words=[words])


def test_bad_folders(refuse, given, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    refuse("sweep", *given, "--out", file, words=["file", "name a folder"])
    refuse("sweep", *given, "--out", tmp_path / "none" / "o", words=["does not exist"])
    refuse("sweep", *given, "--out", "/proc/o", words=["/proc/o", "cannot be written"])


def test_bad_input_of_sweep(refuse, given, models, tmp_path):
    model, *calibration = given
    out = ("--out", tmp_path / "o")
    refuse("sweep", model, *out, words=["--calibration"])
    refuse("sweep", *given, words=["--out"])
    refuse("sweep", tmp_path / "none.onnx", *calibration, *out, words=["no such file"])
    refuse("sweep", *given, *out, "--criterion", "nonsense", words=["nonsense"])
    refuse("sweep", *given, *out, "--exclude", "nonsense", words=["nonsense"])
    other = models / "spirals_calibration.npz"
    refuse("sweep", model, "--calibration", other, *out, words=["calibration"])


def test_sensitivity(run, given, tmp_path):
    file = tmp_path / "s.json"
    outcome = run("sensitivity", *given, "--keep", "0.5,0.25", "--json", file, "--threads", 1)
    assert (outcome.code, outcome.err) == (0, "")
    for text in ("group: divergence when cut to", "50 %", "25 %", "saves"):
        assert text in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 100
    data = json.loads(file.read_text())
    assert data["format"] == "onnxprune-sensitivity"
    assert data["missing"] == []
    assert [one["keep"] for one in data["rows"][0]["cuts"]] == [0.5, 0.25]
    printed = [line.split()[0] for line in outcome.out.splitlines() if "channel" in line]
    worst = {one["group"]: max(cut["divergence"] for cut in one["cuts"]) for one in data["rows"]}
    assert printed == sorted(worst, key=lambda name: -worst[name])


def test_sensitivity_in_parts(run, given, tmp_path):
    whole, parts = tmp_path / "whole.json", [tmp_path / f"{n}.json" for n in (1, 2)]
    assert run("sensitivity", *given, "--json", whole, "-q", "--threads", 1).code == 0
    for number, part in enumerate(parts, 1):
        shard = ("--shard", f"{number}/2", "--json", part, "-q", "--threads", 1)
        assert run("sensitivity", *given, *shard).code == 0
    merged = tmp_path / "merged.json"
    outcome = run("sensitivity", "--merge", parts[0])
    assert "not measured yet (1)" in outcome.out
    outcome = run("sensitivity", "--merge", *parts, "--json", merged)
    assert (outcome.code, outcome.err) == (0, "")
    assert "missing" not in outcome.out
    assert merged.read_bytes() == whole.read_bytes()
    shown = run("sensitivity", "--merge", merged, "--json", "-")
    assert json.loads(shown.out) == json.loads(whole.read_text())


def test_sensitivity_goes_on(run, given, tmp_path, monkeypatch):
    file = tmp_path / "s.json"
    command = ("sensitivity", *given, "--json", file, "-q", "--threads", 1)
    real = sensing._Trials.of
    calls = []

    def interrupted(self, one, keep):
        calls.append(one.group.name)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(self, one, keep)

    with monkeypatch.context() as patch:
        patch.setattr(sensing._Trials, "of", interrupted)
        outcome = run(*command)
    assert outcome.code == 130
    assert "s.json holds what was finished" in outcome.err
    assert len(json.loads(file.read_text())["rows"]) == 1
    assert run(*command).code == 0
    assert json.loads(file.read_text())["missing"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--shard", "2"), "I/N"),
        (("--shard", "a/b"), "I/N"),
        (("--shard", "1/2/3"), "I/N"),
        (("--shard", "0/2"), "0/2 does not exist"),
        (("--shard", "3/2"), "3/2 does not exist"),
        (("--keep", "half"), "fractions such as"),
        (("--keep", "0.5,"), "fractions such as"),
        (("--keep", "1"), "above 0 and below 1"),
        (("--keep", "0.5,0"), "above 0 and below 1"),
        (("--keep", "nan"), "above 0 and below 1"),
        (("--merge", "a.json"), "--merge measures nothing"),
        (("--threads", "-1"), "--threads"),
    ],
)
def test_bad_options_of_sensitivity(refuse, given, arguments, words):
    refuse("sensitivity", *given, *arguments, words=[words])


def test_bad_files_of_sensitivity(refuse, run, given, models, tmp_path):
    model = given[0]
    refuse("sensitivity", words=["MODEL", "--merge"])
    refuse("sensitivity", model, words=["--calibration"])
    refuse("sensitivity", "--merge", tmp_path / "none.json", words=["none.json"])
    text = tmp_path / "text.json"
    text.write_text("no json")
    refuse("sensitivity", "--merge", text, words=["text.json", "not a JSON file"])
    refuse("sensitivity", *given, "--json", text, words=["text.json", "not a JSON file"])
    text.write_text('{"format": "onnxprune-plan"}')
    refuse("sensitivity", *given, "--json", text, words=["not a file of the format"])
    refuse("sensitivity", *given, "--json", tmp_path / "none" / "s.json", words=["does not exist"])
    other = tmp_path / "s.json"
    assert run("sensitivity", *given, "--json", other, "--shard", "1/9", "-q").code == 0
    refuse("sensitivity", *given, "--json", other, "--seed", 3, words=["seed differ"])
    broken = json.loads(other.read_text())
    del broken["rows"]
    text.write_text(json.dumps(broken))
    refuse("sensitivity", "--merge", other, text, words=["text.json", "damaged"])
    del broken["study"]["model"]
    text.write_text(json.dumps(broken))
    refuse("sensitivity", "--merge", text, words=["text.json", "damaged"])
