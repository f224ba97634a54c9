"""Sequences that a recurrent model is fed with its own state."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.aligning import chain, weights
from onnx import parser

import onnxprune
from onnxprune import CalibrationError, ClosedLoop
from onnxprune.calibration.samples import model_samples, read_samples
from onnxprune.cli import main
from onnxprune.model.inputs import input_specs
from onnxprune.model.runtime import Runtime

RUNTIME = Runtime(threads=1)
RNG = np.random.default_rng(0)
SEQUENCES = [RNG.random((5, 3), np.float32), RNG.random((2, 3), np.float32)]


def network(body: str, inputs: str, outputs: str) -> ir.Model:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{ {body} }}'
    return ir.from_proto(parser.parse_model(text))


SUM = network(
    "hn = Add(x, h) y = Neg(hn)", "float[n,3] x, float[n,3] h", "float[n,3] y, float[n,3] hn"
)


def fed(loop, model=SUM):
    samples = model_samples(loop, model, RUNTIME)
    first, second = (list(samples.batches(8)) for _ in range(2))
    pairs = zip(first, second, strict=True)
    assert all(np.array_equal(a[name], b[name]) for a, b in pairs for name in a)
    return first


def expected(sequences, start=0.0):
    return [
        start + sequence[:step].sum(axis=0)
        for sequence in sequences
        for step in range(len(sequence))
    ]


def test_every_step_is_fed_with_the_state_of_the_step_before():
    feeds = fed(ClosedLoop([{"x": sequence} for sequence in SEQUENCES], {"hn": "h"}))
    assert np.array_equal(np.concatenate([feed["x"] for feed in feeds]), np.concatenate(SEQUENCES))
    states = np.concatenate([feed["h"] for feed in feeds])
    assert np.allclose(states, expected(SEQUENCES))


def test_states_are_named_in_either_order():
    assert len(fed(ClosedLoop([{"x": SEQUENCES[0]}], {"h": "hn"}))) == 5


def test_every_sequence_begins_with_the_initial_state():
    start = np.full((1, 3), 2, np.float32)
    loop = ClosedLoop([{"x": sequence} for sequence in SEQUENCES], {"hn": "h"}, {"h": start})
    states = np.concatenate([feed["h"] for feed in fed(loop)])
    assert np.allclose(states, expected(SEQUENCES, 2.0))


def test_several_sequences_side_by_side():
    """Arrays with one axis more than the input are whole feeds, one for each step."""
    side_by_side = RNG.random((4, 2, 3), np.float32)
    feeds = fed(ClosedLoop([{"x": side_by_side}], {"hn": "h"}))
    assert [feed["h"].shape for feed in feeds] == [(2, 3)] * 4
    assert np.allclose(feeds[3]["h"], side_by_side[:3].sum(axis=0))


def test_sequences_of_feeds():
    sequence = ({"x": row[None]} for row in SEQUENCES[0])
    assert np.allclose(fed(ClosedLoop([sequence], {"hn": "h"}))[4]["h"], expected(SEQUENCES)[4])


VOICE = network(
    """
        r = Cast<to = 1>(sr) s = Mul(x, r) m = ReduceMean<axes = [1], keepdims = 1>(s)
        hn = Add(h, m) y = Neg(m)
    """,
    "float[b,3] x, float[2,b,1] h, int64 sr",
    "float[b,1] y, float[2,b,1] hn",
)


def test_inputs_without_steps_are_the_same_at_all_of_them():
    """The state has the batch second, and the sampling rate is one number."""
    feeds = fed(ClosedLoop([{"x": SEQUENCES[0], "sr": np.int64(2)}], {"hn": "h"}), VOICE)
    assert [int(feed["sr"]) for feed in feeds] == [2] * 5
    assert [feed["h"].shape for feed in feeds] == [(2, 1, 1)] * 5
    assert np.allclose(feeds[2]["h"], 2 * SEQUENCES[0][:2].mean(axis=1).sum())


def test_what_a_function_gives_may_be_a_closed_loop(tmp_path):
    script = tmp_path / "voice.py"
    script.write_text(
        "import numpy as np, onnxprune\n"
        "def loop():\n    return onnxprune.ClosedLoop([{'x': np.ones((4, 3), np.float32)}],"
        " {'hn': 'h'})\n"
    )
    assert np.allclose(fed(f"{script}:loop")[3]["h"], 3)
    assert len(fed(lambda: ClosedLoop([{"x": SEQUENCES[0]}], {"hn": "h"}))) == 5


def test_an_ordinary_function_is_started_once_for_each_pass():
    calls = []

    def feeds():
        calls.append(1)
        return [{"x": np.ones((2, 3), np.float32), "h": np.ones((2, 3), np.float32)}]

    samples = read_samples(feeds, input_specs(SUM))
    assert [len(list(samples.batches(2))) for _ in range(2)] == [1, 1]
    assert len(calls) == 2


@pytest.mark.parametrize("folder", [True, False])
def test_files(tmp_path, folder):
    for number, sequence in enumerate(SEQUENCES):
        np.savez(tmp_path / f"{number}.npz", x=sequence)
    feeds = fed(ClosedLoop(tmp_path if folder else tmp_path / "0.npz", {"hn": "h"}))
    assert len(feeds) == (7 if folder else 5)


@pytest.mark.parametrize(
    ("loop", "words"),
    [
        (ClosedLoop([{"x": SEQUENCES[0]}], {"hm": "h"}), "no output 'hm'; did you mean 'hn'"),
        (ClosedLoop([{"x": SEQUENCES[0]}], {"hn": "g"}), "no input 'g'"),
        (ClosedLoop([{"x": SEQUENCES[0]}], {}), "at least one"),
        (ClosedLoop([{"x": SEQUENCES[0]}], {"hn": "h"}, {"x": 0}), "initial names 'x'"),
        (ClosedLoop([{"z": SEQUENCES[0]}], {"hn": "h"}), "sequence 0: 'z' is not an input"),
        (ClosedLoop([{"x": np.ones((0, 3))}], {"hn": "h"}), "no array of it runs over steps"),
        (ClosedLoop([[np.ones(3)]], {"hn": "h"}), "sequence 0: a step is"),
        (ClosedLoop([7], {"hn": "h"}), "sequence 0: TypeError"),
        (ClosedLoop([], {"hn": "h"}), "no sequences"),
        (ClosedLoop({"x": SEQUENCES[0]}, {"hn": "h"}), "iterable of sequences"),
        (ClosedLoop("missing.npz", {"hn": "h"}), "missing.npz: cannot be read"),
        (ClosedLoop("data.txt", {"hn": "h"}), "data.txt: sequences are"),
        (ClosedLoop([{"x": SEQUENCES[0]}], {"hn": "h", "y": "x"}), "every input is a state"),
    ],
)
def test_what_does_not_fit_is_named(loop, words):
    with pytest.raises(CalibrationError, match=words):
        fed(loop)


def test_sizes_of_a_state_that_nothing_says_have_to_be_given():
    model = network(
        "hn = Identity(h) y = Neg(x)", "float[n,3] x, float[n,k] h", "float[n,3] y, float[n,k] hn"
    )
    with pytest.raises(CalibrationError, match="give initial="):
        fed(ClosedLoop([{"x": SEQUENCES[0]}], {"hn": "h"}), model)
    loop = ClosedLoop([{"x": SEQUENCES[0]}], {"hn": "h"}, {"h": np.ones((1, 4), np.float32)})
    assert fed(loop, model)[4]["h"].shape == (1, 4)


def recurrent():
    """A cell with a hidden layer of eight units, and a state of four numbers."""
    text = """(float[n,3] x, float[n,4] h) => (float[n,4] hn)
        { c = Concat<axis = 1>(x, h) a = Gemm(c, u) r = Relu(a) b = Gemm(r, v) hn = Tanh(b) }"""
    return chain(text, weights(u=(7, 8), v=(8, 4)))


def test_pruning_with_the_models_own_state(tmp_path):
    model = tmp_path / "cell.onnx"
    onnx.save(recurrent(), model)
    sequences = [{"x": RNG.normal(size=(16, 3)).astype(np.float32)} for _ in range(4)]
    result = onnxprune.prune(
        model,
        calibration=ClosedLoop(sequences, {"hn": "h"}),
        target={"channels": 0.5},
        measure_latency=False,
        threads=1,
    )
    assert result.report.certificate.holds
    for number, sequence in enumerate(sequences):
        np.savez(tmp_path / f"{number}.npz", **sequence)
    words = ["prune", model, tmp_path / "out.onnx", "--calibration", tmp_path, "--threads", 1, "-q"]
    words += ["--state", "hn=h", "--target", "channels=0.5"]
    assert main(list(map(str, words))) == 0
    assert (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--state", "hn"], "OUTPUT=INPUT"), (["--state", "hn=h"], "--calibration")],
)
def test_states_on_the_command_line_that_cannot_be(tmp_path, capsys, words, message):
    model = tmp_path / "cell.onnx"
    onnx.save(recurrent(), model)
    assert main(["prune", str(model), str(tmp_path / "out.onnx"), *words]) == 2
    assert message in capsys.readouterr().err
