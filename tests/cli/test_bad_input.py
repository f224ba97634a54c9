"""Everything a user can get wrong ends with one line, exit code 2 and nothing written."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest


@pytest.fixture
def spirals(models, tmp_path):
    """A copy in the test's own folder, so that whatever appears beside it is seen."""
    path = tmp_path / "model.onnx"
    path.write_bytes((models / "spirals_mlp.onnx").read_bytes())
    return path


@pytest.fixture
def refuse(run, spirals, tmp_path):
    """Run prune with some arguments and check that it is refused without a trace."""

    def check(*arguments, model=spirals, out=tmp_path / "out.onnx", words=(), code=2):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        run("prune", model, out, *arguments).refused(code, *words)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    return check


def samples(path, **arrays):
    np.savez(path, **arrays)
    return path


def points(rows=8):
    return np.random.default_rng(0).standard_normal((rows, 2)).astype(np.float32)


def test_missing_model(refuse, tmp_path):
    refuse(model=tmp_path / "none.onnx", words=["none.onnx", "no such file"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello, this is text\n" * 10, "text file"),
        (b"PK\x03\x04" + bytes(100), "is not ONNX"),
        (bytes(range(256)) * 4, "not"),
    ],
)
def test_not_onnx(refuse, tmp_path, content, words):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    refuse(model=path, words=["bad.onnx", words])


@pytest.mark.parametrize("part", [0.2, 0.6, 0.99])
def test_truncated_model(refuse, spirals, tmp_path, part):
    data = spirals.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(len(data) * part)])
    refuse(model=path, words=["cut.onnx"])


def test_folder_as_model(refuse, tmp_path):
    refuse(model=tmp_path, words=["is a folder"])


def test_unknown_opset(refuse, spirals):
    proto = onnx.load(spirals)
    proto.opset_import[0].version = 999
    onnx.save(proto, spirals)
    refuse(words=["opset", "999"])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"wrong": points()}, ["'wrong'", "'x'"]),
        ({"x": points(), "more": points()}, ["'more'"]),
        ({"x": points().reshape(4, 4)}, ["'x'"]),
        ({"x": points().astype(np.int64)}, ["int64"]),
        ({"x": np.array([["a", "b"]])}, ["'x'"]),
        ({"x": np.array([[1.0, np.nan]], np.float32)}, ["NaN"]),
        ({"x": np.array([[1.0, np.inf]], np.float32)}, ["infinit"]),
        ({"x": np.zeros((0, 2), np.float32)}, ["no samples"]),
    ],
    ids=["names", "names-more", "shape", "dtype", "text", "nan", "inf", "none"],
)
def test_bad_samples(refuse, tmp_path, arrays, words):
    refuse("--calibration", samples(tmp_path / "s.npz", **arrays), words=[*words, "calibration"])


def test_missing_samples(refuse, tmp_path):
    refuse("--calibration", tmp_path / "none.npz", words=["none.npz", "no such file"])


def test_pickled_samples_are_never_loaded(refuse, tmp_path):
    path = tmp_path / "evil.npy"
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    refuse("--calibration", path, words=["evil.npy"])


def test_truncated_samples(refuse, tmp_path):
    path = samples(tmp_path / "s.npz", x=points(500))
    path.write_bytes(path.read_bytes()[:900])
    refuse("--calibration", path, words=["s.npz"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--criterion", "nonsense"], ["nonsense", "l1", "variance"]),
        (["--criterion", "std"], ["std", "--calibration"]),
        (["--compensate", "nonsense"], ["nonsense", "mean"]),
        (["--compensate", "mean"], ["mean", "--calibration"]),
        (["--compensate", "least-squares"], ["least-squares", "--calibration"]),
        (["--criterion", "reconstruction"], ["reconstruction", "--calibration"]),
        (["--augment", "flip,nonsense"], ["nonsense", "flip", "shift"]),
        (["--allocation", "nonsense"], ["nonsense", "auto", "uniform", "global"]),
        (["--target", "speed=0.5"], ["speed", "channels", "params", "macs"]),
        (["--target", "latency=2"], ["latency=2", "range"]),
        (["--max-drop", "1"], ["max_drop", "--calibration"]),
        (["--labels", "missing.npy"], ["labels", "--calibration"]),
        (["--max-drop", "much"], ["--max-drop", "much"]),
        (["--round-to", "0"], ["--round-to", "at least 1 or auto"]),
        (["--round-to", "wide"], ["--round-to", "wide"]),
        (["--steps", "0"], ["steps"]),
        (["--target", "macs=1.5"], ["macs=1.5", "range"]),
        (["--target", "macs=0"], ["macs=0", "range"]),
        (["--target", "macs=-0.5"], ["range"]),
        (["--target", "macs=nan"], ["range"]),
        (["--target", "macs=half"], ["half"]),
        (["--target", "macs"], ["KIND=FRACTION"]),
        (["--target", "macs="], ["KIND=FRACTION"]),
        (["--target", "macs=0.5", "--target", "macs=0.6"], ["twice"]),
        (["--include", "nothing*"], ["nothing*", "matches no"]),
        (["--exclude", "nothing*"], ["nothing*", "matches no"]),
        (["--seed", "-1"], ["-1"]),
        (["--seed", "one"], ["one"]),
        (["--threads", "-2"], ["-2"]),
        (["--providers", "NoSuchProvider"], ["NoSuchProvider", "CPUExecutionProvider"]),
        (["--nonsense"], ["--nonsense", "--help"]),
        (["-q", "-v"], ["not allowed with"]),
        (["--crit", "l1"], ["--crit"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_bad_options(refuse, arguments, words):
    refuse(*arguments, words=words)


@pytest.mark.parametrize("arguments", [[], ["prune"], ["nonsense"], ["verify", "a", "b"]])
def test_usage(run, arguments):
    run(*arguments).refused(2, "--help")


def test_output_is_the_input(refuse, spirals, tmp_path):
    refuse(out=spirals, words=["overwrite the input"])
    link = tmp_path / "link.onnx"
    link.symlink_to(spirals)
    refuse(out=link, words=["overwrite the input"])


def test_side_output_is_an_input(refuse, spirals, tmp_path):
    refuse("--plan", spirals, words=["overwrite the input"])
    refuse("--json", spirals, words=["overwrite the input"])
    data = samples(tmp_path / "s.npz", x=points())
    refuse("--calibration", data, out=data, words=["overwrite the input", "s.npz"])


def test_output_is_the_inputs_external_data(refuse, spirals, tmp_path):
    onnx.save(onnx.load(spirals), spirals, save_as_external_data=True, location="model.onnx.data")
    refuse(out=tmp_path / "model.onnx.data", words=["overwrite the input"])


def test_outputs_collide(refuse, tmp_path):
    refuse("--plan", tmp_path / "out.onnx", words=["two outputs"])
    refuse("--plan", tmp_path / "p", "--json", tmp_path / "p", words=["two outputs"])


@pytest.mark.parametrize("option", ["out", "--plan", "--json"])
def test_unwritable_output(refuse, tmp_path, option):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path, words in (
        (tmp_path / "none" / "x", "does not exist"),
        (tmp_path / "folder", "not a regular file"),
        (tmp_path / "file" / "x", "not a folder"),
    ):
        if option == "out":
            refuse(out=path, words=[words])
        else:
            refuse(option, path, words=[words])


def test_outputs_are_checked_before_the_model_is_read(refuse, tmp_path):
    refuse("--plan", tmp_path / "none" / "p", model=tmp_path / "no.onnx", words=["does not exist"])


@pytest.fixture
def plan(run, spirals, tmp_path):
    path = tmp_path / "plan.json"
    assert run("prune", spirals, tmp_path / "x.onnx", "--plan", path).code == 0
    (tmp_path / "x.onnx").unlink()
    return path


def altered(change):
    def apply(text):
        data = json.loads(text)
        change(data)
        return json.dumps(data)

    return apply


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "", ["is not JSON"]),
        (lambda text: text[: len(text) // 2], ["is not JSON"]),
        (lambda text: "[]", ["no plan of onnxprune"]),
        (lambda text: '{"format": "other"}', ["no plan of onnxprune"]),
        (altered(lambda data: data.update(version=99)), ["99"]),
        (altered(lambda data: data.pop("groups")), ["complete", "groups"]),
        (altered(lambda data: data["groups"][0].update(id="none")), ["none"]),
        (altered(lambda data: data["groups"][0].update(size=3)), ["does not fit"]),
        (altered(lambda data: data["groups"][0].update(removed=[1000])), ["does not fit"]),
        (altered(lambda data: data["groups"][0].update(removed=[-1])), ["complete"]),
        (altered(lambda data: data["groups"][0].update(removed=list(range(50)))), ["plan"]),
        (altered(lambda data: data["model"].update(sha256="0")), ["another model"]),
        (altered(lambda data: data["options"].update(target={"x": 2})), ["'x'"]),
        (altered(lambda data: data["options"].update(target=[1])), ["plan"]),
        (altered(lambda data: data["options"].update(seed="one")), ["plan"]),
        (altered(lambda data: data.update(options=3)), ["complete"]),
    ],
)
def test_bad_plan(run, spirals, plan, tmp_path, change, words):
    plan.write_text(change(plan.read_text()))
    out = tmp_path / "out.onnx"
    run("apply", spirals, plan, out).refused(2, *words)
    assert not out.exists()


def test_plan_for_another_model(run, models, plan, tmp_path):
    out = tmp_path / "out.onnx"
    run("apply", models / "digits_mlp.onnx", plan, out).refused(2, "another model")
    assert not out.exists()


def test_missing_or_binary_plan(run, spirals, tmp_path):
    run("apply", spirals, tmp_path / "none.json", tmp_path / "o.onnx").refused(2, "none.json")
    run("apply", spirals, spirals, tmp_path / "o.onnx").refused(2, "no plan file")


def test_verify_of_models_with_different_interfaces(run, models):
    first, second = models / "spirals_mlp.onnx", models / "digits_mlp.onnx"
    data = models / "spirals_calibration.npz"
    run("verify", first, second, "--calibration", data).refused(4, "inputs differ")
