"""Samples in every form the contract names give the same model."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper
import pytest


@pytest.fixture
def samples(models):
    return np.load(models / "spirals_calibration.npz")["x"][:64]


def npz(folder, samples):
    np.savez(folder / "s.npz", x=samples)
    return folder / "s.npz"


def npy(folder, samples):
    np.save(folder / "s.npy", samples)
    return folder / "s.npy"


def folder_of_npz(folder, samples):
    (folder / "parts").mkdir()
    for number, part in enumerate(np.split(samples, 4)):
        np.savez_compressed(folder / "parts" / f"{number}.npz", x=part)
    return folder / "parts"


def test_data_sets(folder, samples):
    for number, part in enumerate(np.split(samples, 4)):
        each = folder / "sets" / f"test_data_set_{number}"
        each.mkdir(parents=True)
        tensor = onnx.numpy_helper.from_array(part, "x")
        (each / "input_0.pb").write_bytes(tensor.SerializeToString())
    return folder / "sets"


def function(folder, samples):
    np.save(folder / "raw.npy", samples)
    (folder / "feeds.py").write_text(
        "import numpy as np\nfrom pathlib import Path\n\n\ndef feeds():\n"
        "    for part in np.split(np.load(Path(__file__).with_name('raw.npy')), 4):\n"
        "        yield {'x': part}\n"
    )
    return f"{folder / 'feeds.py'}:feeds"


test_data_sets.__test__ = False


@pytest.mark.parametrize("form", [npy, folder_of_npz, test_data_sets, function])
def test_form(run, models, samples, tmp_path, form):
    outputs = []
    for number, source in enumerate((npz(tmp_path, samples), form(tmp_path, samples))):
        plan = tmp_path / f"{number}.json"
        outcome = run(
            *("prune", models / "spirals_mlp.onnx", tmp_path / f"{number}.onnx"),
            *("--calibration", source, "--criterion", "std", "--plan", plan),
        )
        assert (outcome.code, outcome.err) == (0, "")
        outputs.append(plan.read_bytes())
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def feeds():\n    yield {'wrong': 1}\n", "wrong"),
        ("def feeds():\n    raise ValueError('boom')\n", "boom"),
        ("def feeds():\n    return iter(())\n", "no samples"),
        ("def other():\n    pass\n", "no function 'feeds'"),
        ("this is no Python", "SyntaxError"),
    ],
)
def test_functions_that_fail(run, models, tmp_path, text, words):
    (tmp_path / "bad.py").write_text(text)
    out = tmp_path / "o.onnx"
    outcome = run(
        *(
            "prune",
            models / "spirals_mlp.onnx",
            out,
            "--calibration",
            f"{tmp_path / 'bad.py'}:feeds",
        )
    )
    outcome.refused(2, "bad.py:feeds", words)
    assert not out.exists()
