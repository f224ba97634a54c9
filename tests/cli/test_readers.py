"""Images, texts and audio files as they lie on a disk, in every command that takes samples."""

from __future__ import annotations

import json
import wave

import numpy as np
import onnx
import pytest

import onnxprune

RNG = np.random.default_rng(0)


def save(path, text, **shapes):
    proto = onnx.parser.parse_model(text)
    for name, shape in shapes.items():
        weight = RNG.standard_normal(shape).astype(np.float32) / shape[0] ** 0.5
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.save(proto, path)
    return path


@pytest.fixture
def photographs(tmp_path):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(24):
        pixels = RNG.integers(0, 256, (10, 12, 3)).astype(np.uint8)
        image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def eyes(tmp_path):
    return save(
        tmp_path / "eyes.onnx",
        """<ir_version: 10, opset_import: ["" : 18]>
        eyes (float[N, 3, 8, 8] image) => (float[N, 4] y) {
            h = Conv(image, a) r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p)
            y = MatMul(f, b)
        }""",
        a=(16, 3, 3, 3),
        b=(16, 4),
    )


IMAGES = ("--images", "size=8x8,mean=127,std=128,bgr,crop")


def test_images_in_every_command(run, eyes, photographs, tmp_path):
    source = ("--calibration", photographs, *IMAGES)
    small, plan = tmp_path / "small.onnx", tmp_path / "plan.json"
    assert run("prune", eyes, small, *source, "--plan", plan, "--target", "macs=0.6").code == 0
    again = tmp_path / "again.onnx"
    for command in (
        ("apply", eyes, plan, again, *source),
        ("verify", eyes, small, *source),
        ("inspect", eyes, *source),
        ("sensitivity", eyes, *source),
        ("sweep", eyes, *source, "--out", tmp_path / "sweep", "--target", "macs=0.7"),
        ("prune", eyes, tmp_path / "int8.onnx", *source, "--passes", "prune,quantize"),
    ):
        outcome = run(*command)
        assert (outcome.code, outcome.err) == (0, ""), command[0]
    assert again.read_bytes() == small.read_bytes()


def test_python_and_command_line_read_the_same(run, eyes, photographs, tmp_path):
    options = {"size": (8, 8), "mean": 127, "std": 128, "order": "bgr", "fit": "crop"}
    images = onnxprune.Images(photographs, **options)
    result = onnxprune.prune(eyes, calibration=images, target={"macs": 0.6})
    result.save(tmp_path / "python.onnx")
    run(
        *("prune", eyes, tmp_path / "line.onnx", "--calibration", photographs, *IMAGES),
        *("--target", "macs=0.6"),
    )
    assert (tmp_path / "python.onnx").read_bytes() == (tmp_path / "line.onnx").read_bytes()


def test_a_folder_of_images_alone_names_the_option(run, eyes, photographs, tmp_path):
    run("prune", eyes, tmp_path / "out.onnx", "--calibration", photographs).refused(
        2, "holds images", "--images size=8x8,mean=127,std=128,rgb"
    )


def test_a_script_may_give_a_reader(run, eyes, photographs, tmp_path):
    script = tmp_path / "data.py"
    script.write_text(
        "import onnxprune\n\n\ndef photographs():\n"
        f"    return onnxprune.Images({str(photographs)!r}, mean=127, std=128)\n"
    )
    outcome = run("inspect", eyes, "--calibration", f"{script}:photographs")
    assert (outcome.code, outcome.err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--images", "sise=8x8"], ["no option 'sise=8x8'", "'size'"]),
        (["--images", "green"], ["no option 'green'", "rgb"]),
        (["--images", "size=8"], ["size must be WIDTHxHEIGHT"]),
        (["--images", "rgb,bgr"], ["order is given twice"]),
        (["--images", "rgb", "--audio", "rate=8"], ["--images and --audio", "give one"]),
    ],
)
def test_options_that_cannot_be(run, eyes, photographs, tmp_path, arguments, words):
    run("prune", eyes, tmp_path / "out.onnx", "--calibration", photographs, *arguments).refused(
        2, *words
    )


def test_a_reader_without_samples(run, eyes, tmp_path):
    run("prune", eyes, tmp_path / "out.onnx", *IMAGES).refused(2, "--images", "--calibration")


def test_texts(run, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = [f"w{number}" for number in range(30)]
    vocabulary = {word: number for number, word in enumerate(["[UNK]", *words])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    lines = [" ".join(RNG.choice(words, RNG.integers(2, 6))) for _ in range(40)]
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    model = save(
        tmp_path / "words.onnx",
        """<ir_version: 10, opset_import: ["" : 18]>
        words (int64[N, length] input_ids, int64[N, length] attention_mask) => (float[N, 4] y)
        <int64[1] one = {1}, int64[1] two = {2}> {
            e = Gather(table, input_ids) m = Cast<to = 1>(attention_mask) u = Unsqueeze(m, two)
            w = Mul(e, u) s = ReduceSum<keepdims = 0>(w, one) h = MatMul(s, a) r = Relu(h)
            y = MatMul(r, b)
        }""",
        table=(31, 8),
        a=(8, 16),
        b=(16, 4),
    )
    for length in ("", ",length=4"):
        tokenizer = f"{tmp_path / 'tokenizer.json'}{length}"
        outcome = run(
            *("prune", model, tmp_path / "out.onnx", "--calibration", tmp_path / "texts.txt"),
            *("--tokenizer", tokenizer, "--target", "macs=0.7", "--json", tmp_path / "out.json"),
        )
        assert (outcome.code, outcome.err) == (0, "")
        assert json.loads((tmp_path / "out.json").read_text())["outputs"]


@pytest.mark.parametrize("state", [False, True])
def test_audio(run, tmp_path, state):
    folder = tmp_path / "wav"
    folder.mkdir()
    for number in range(6):
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            noise = RNG.integers(-9000, 9000, 100) * (number + 1) // 6
            file.writeframes(noise.astype("<i2").tobytes())
    given = ", float[N, 16] state" if state else ""
    model = save(
        tmp_path / "voice.onnx",
        f"""<ir_version: 10, opset_import: ["" : 18]>
        voice (float[N, time] input{given}, int64 sr)
            => (float[N, 3] y{", float[N, 16] next" if state else ""})
        <int64[1] one = {{1}}> {{
            q = Mul(input, input) l = ReduceSum(q, one) h = MatMul(l, a)
            {"k = MatMul(state, d) t = Add(h, k)" if state else "t = Identity(h)"}
            r = Relu(t) y = MatMul(r, b) {"c = MatMul(r, e) next = Tanh(c)" if state else ""}
        }}""",
        a=(1, 16),
        b=(16, 3),
        **({"d": (16, 16), "e": (16, 16)} if state else {}),
    )
    more = ["--state", "next=state"] if state else []
    outcome = run(
        *("prune", model, tmp_path / "out.onnx", "--calibration", folder, "--target", "macs=0.7"),
        *("--audio", "rate=8000,length=20", *more),
    )
    assert (outcome.code, outcome.err) == (0, "")
