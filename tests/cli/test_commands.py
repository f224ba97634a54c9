"""The four commands as a user runs them, and what they leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
import pytest
from helpers.samples import few_samples_file

import onnxprune
from onnxprune.errors import VerificationError
from onnxprune.pruning.run import PruneRun


def command(*arguments, **environment):
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "onnxprune", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
        check=False,
    )


def test_help_and_version():
    version = command("--version")
    assert (version.returncode, version.stdout) == (0, f"onnxprune {onnxprune.__version__}\n")
    text = command("--help").stdout
    assert all(name in text for name in ("inspect", "prune", "verify", "apply", "exit codes"))


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_answers_without_heavy_imports(argument):
    heavy = ("numpy", "onnx", "onnx_ir", "onnxruntime", "onnx_graphsurgeon", "rich")
    code = (
        "import sys, onnxprune.cli\n"
        f"try: onnxprune.cli.main([{argument!r}])\n"
        f"finally: print([m for m in {heavy} if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "[]\n"


def test_prune_writes_a_smaller_model_that_still_works(run, models, tmp_path):
    out, plan, figures = tmp_path / "small.onnx", tmp_path / "plan.json", tmp_path / "f.json"
    outcome = run(
        *("prune", models / "spirals_mlp.onnx", out, "--plan", plan, "--json", figures),
        *("--calibration", models / "spirals_calibration.npz"),
        *("--target", "channels=0.5", "--criterion", "std", "--threads", 1),
    )
    assert (outcome.code, outcome.err) == (0, "")
    onnx.checker.check_model(out, full_check=True)
    report = json.loads(figures.read_text())
    assert report["result"]["bytes"] == out.stat().st_size
    assert report["original"]["bytes"] == (models / "spirals_mlp.onnx").stat().st_size
    assert report["certificate"]["holds"] is True
    assert report["options"]["criterion"] == "std"
    weights = {one.name: one.dims for one in onnx.load(out).graph.initializer}
    assert report["result"]["params"] == sum(int(np.prod(dims)) for dims in weights.values())
    assert json.loads(plan.read_text())["format"] == "onnxprune-plan"
    for text in ("MACs", "26.9 %", "certificate", "holds", "100.0 %", "batch 2", "0.weight[0]"):
        assert text in outcome.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.json", "plan.json", "small.onnx"]


def test_figures_on_standard_output(run, models, tmp_path):
    outcome = run("prune", models / "digits_mlp.onnx", tmp_path / "o.onnx", "--json", "-")
    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out)["out"].endswith("o.onnx")
    inspected = run("inspect", models / "digits_resnet_bn.onnx", "--json", "-")
    assert {"sizes", "nodes", "groups", "refused"} <= json.loads(inspected.out).keys()


def test_quiet_prints_nothing(run, models, tmp_path):
    assert run("prune", models / "digits_mlp.onnx", tmp_path / "o.onnx", "-q").out == ""
    assert run("inspect", models / "digits_mlp.onnx", "-q").out == ""


@pytest.mark.parametrize("model", ["digits_mlp", "digits_resnet", "digits_transformer"])
def test_inspect(run, models, model):
    outcome = run("inspect", models / f"{model}.onnx")
    assert (outcome.code, outcome.err) == (0, "")
    for text in ("MACs", "parameters", "group that can be pruned", "not pruned because"):
        assert text in outcome.out


def test_verify(run, models, tmp_path):
    model, data = models / "digits_resnet.onnx", few_samples_file(tmp_path, "digits_resnet")
    out = tmp_path / "o.onnx"
    assert run("prune", model, out, "--calibration", data, "--target", "macs=0.9").code == 0
    outcome = run("verify", model, out, "--calibration", data, "--json", "-")
    compared = json.loads(outcome.out)
    assert compared["outputs"][0]["agreement"] > 0.9
    assert compared["pruned"]["macs"] < compared["original"]["macs"]
    assert "same answer" in run("verify", model, out, "--calibration", data).out


@pytest.mark.parametrize("compensate", ["mean", "none"])
def test_same_bytes_in_every_process_and_from_the_plan(run, models, tmp_path, compensate):
    model, data = models / "digits_resnet_bn.onnx", few_samples_file(tmp_path, "digits_resnet_bn")
    options = ["--calibration", data, "--compensate", compensate]
    forced = "--force"
    written = []
    for seed in ("1", "2"):
        out, plan = tmp_path / f"{seed}.onnx", tmp_path / f"{seed}.json"
        done = command(
            *("prune", model, out, *options, "--criterion", "random", "--seed", 3, "--plan", plan),
            *("--target", "macs=0.6", forced),
            PYTHONHASHSEED=seed,
        )
        assert done.returncode == 0, done.stderr
        written.append((out.read_bytes(), plan.read_bytes()))
    assert written[0] == written[1]
    again = tmp_path / "again.onnx"
    assert run("apply", model, tmp_path / "1.json", again, *options).code == 0
    assert again.read_bytes() == written[0][0]
    other = tmp_path / "other.onnx"
    options += ["--criterion", "random", "--seed", 4, "--target", "macs=0.6", forced]
    assert run("prune", model, other, *options).code == 0
    assert other.read_bytes() != written[0][0]


def test_defaults_give_the_same_bytes_in_every_process_and_from_the_plan(run, models, tmp_path):
    """Which units go is decided on the way, and decided alike when the plan is carried out."""
    model, data = models / "digits_resnet.onnx", few_samples_file(tmp_path, "digits_resnet")
    plan, figures = tmp_path / "p.json", tmp_path / "f.json"
    written = []
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.onnx"
        options = ["--calibration", data, "--target", "macs=0.6", "--threads", 1]
        done = command(
            *("prune", model, out, *options, "--plan", plan, "--json", figures), PYTHONHASHSEED=seed
        )
        assert done.returncode == 0, done.stderr
        written.append((out.read_bytes(), plan.read_bytes()))
    assert written[0] == written[1]
    again = tmp_path / "again.onnx"
    assert run("apply", model, plan, again, "--calibration", data, "--threads", 1).code == 0
    assert again.read_bytes() == written[0][0]
    report = json.loads(figures.read_text())
    assert report["options"]["criterion"] == "reconstruction"
    assert report["options"]["compensate"] == "least-squares"
    assert report["allocation"] in report["trials"]
    assert report["trials"][report["allocation"]] == min(report["trials"].values())
    assert any(one["solved"] and one["after"] < one["before"] for one in report["repairs"])
    for text in ("allocation", f"'{report['allocation']}', the best of", "layers re-fitted"):
        assert text in done.stdout


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_allocation(run, models, tmp_path, allocation):
    model, data = models / "digits_mlp.onnx", models / "digits_mlp_calibration.npz"
    out, figures = tmp_path / "o.onnx", tmp_path / "f.json"
    outcome = run(
        *("prune", model, out, "--calibration", data, "--target", "macs=0.6", "--json", figures),
        *("--criterion", "variance", "--allocation", allocation),
    )
    assert (outcome.code, outcome.err) == (0, "")
    report = json.loads(figures.read_text())
    assert report["options"]["allocation"] == report["allocation"] == allocation
    assert report["trials"] == {}
    assert "the best of" not in outcome.out


@pytest.mark.parametrize("name", ["lossless", "components"])
def test_steps_can_be_left_out(run, models, tmp_path, name):
    for option, wanted in (([], True), ([f"--no-{name}"], False), ([f"--{name}"], True)):
        plan = tmp_path / "p.json"
        outcome = run(
            *("prune", models / "spirals_mlp.onnx", tmp_path / "o.onnx", "--plan", plan, *option),
            *("--calibration", models / "spirals_calibration.npz"),
        )
        assert outcome.code == 0, outcome.err
        assert json.loads(plan.read_text())["options"][name] is wanted


def test_augment(run, models, tmp_path):
    """Digits make no sense flipped; it is only that the option arrives."""
    plan = tmp_path / "p.json"
    outcome = run(
        *("prune", models / "digits_resnet.onnx", tmp_path / "o.onnx", "--plan", plan),
        *("--calibration", few_samples_file(tmp_path, "digits_resnet"), "--target", "channels=0.9"),
        *("--augment", "flip,shift"),
    )
    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(plan.read_text())["options"]["augment"] == ["flip", "shift"]


def test_include_and_exclude(run, models, tmp_path):
    model, plan = models / "spirals_mlp.onnx", tmp_path / "p.json"
    for option, left in (("--include", ["2.weight[0]"]), ("--exclude", ["0.weight[0]"])):
        assert run("prune", model, tmp_path / "o.onnx", option, "2.bias", "--plan", plan).code == 0
        assert [one["id"] for one in json.loads(plan.read_text())["groups"]] == left


def test_apply_says_when_nothing_was_compensated(run, models, tmp_path):
    model, data = models / "spirals_mlp.onnx", models / "spirals_calibration.npz"
    plan, out = tmp_path / "p.json", tmp_path / "o.onnx"
    assert run("prune", model, out, "--calibration", data, "--plan", plan).code == 0
    remark = "without --calibration nothing was compensated"
    assert remark in " ".join(run("apply", model, plan, out).out.split())
    assert remark not in run("apply", model, plan, out, "--calibration", data).out
    assert remark not in run("apply", model, plan, out, "--compensate", "none").out


def unprunable(path):
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> net (float[N, 4] x) => (float[N, 4] y) '
        "<float[4, 4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}> { y = MatMul(x, w) }"
    )
    onnx.save(proto, path)
    return path


def test_nothing_prunable(run, tmp_path):
    model, out = unprunable(tmp_path / "m.onnx"), tmp_path / "o.onnx"
    run("prune", model, out).refused(3, "nothing can be pruned", "w[1]")
    assert not out.exists()
    assert run("inspect", model).code == 0


def test_unreachable_target_names_the_best(run, models, tmp_path):
    out, plan = tmp_path / "o.onnx", tmp_path / "p.json"
    outcome = run(
        *("prune", models / "spirals_mlp.onnx", out, "--plan", plan, "--target", "params=0.001")
    )
    outcome.refused(3, "params=0.001", "cannot be reached", "the best is params=0.0")
    assert not out.exists()
    assert not plan.exists()


def test_failed_verification_writes_nothing(run, models, tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise VerificationError("the sliced model differs")

    monkeypatch.setattr(PruneRun, "at", fail)
    plan = tmp_path / "p.json"
    outcome = run("prune", models / "spirals_mlp.onnx", tmp_path / "o.onnx", "--plan", plan)
    outcome.refused(4, "differs")
    assert not list(tmp_path.iterdir())


def test_internal_error(run, models, tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(PruneRun, "at", fail)
    arguments = ["prune", models / "spirals_mlp.onnx", tmp_path / "o.onnx"]
    outcome = run(*arguments)
    assert outcome.code == 1
    expected = "onnxprune: internal error: RuntimeError: first second; run again with --debug\n"
    assert outcome.err == expected
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError):
        run(*arguments, "--debug")


def test_interrupted(run, models, tmp_path, monkeypatch):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxprune.model.save.serialise", interrupt)
    extra = ["--plan", tmp_path / "p.json", "--json", tmp_path / "f.json"]
    outcome = run("prune", models / "spirals_mlp.onnx", tmp_path / "o.onnx", *extra)
    assert outcome.code == 130
    assert outcome.err == "onnxprune: interrupted; nothing was written\n"
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_no_model(run, models, tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    run("prune", models / "spirals_mlp.onnx", tmp_path / "o.onnx").refused(2, "No space left")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_reader_that_stops_early(models, unbuffered):
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxprune", "inspect", str(models / "digits_resnet.onnx")],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0


def test_piped_text_is_plain(models):
    done = command(
        *("inspect", models / "digits_resnet.onnx", "-v"), COLUMNS="60", TERM="xterm-256color"
    )
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    ascii_only = command("inspect", models / "digits_resnet.onnx", PYTHONIOENCODING="ascii")
    assert ascii_only.returncode == 0
    assert "###" in ascii_only.stdout
