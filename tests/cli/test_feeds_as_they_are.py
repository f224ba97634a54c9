"""Models whose inputs are not all rows of samples: a rate, a state, texts beside images."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

VOICE = """<ir_version: 10, opset_import: ["" : 18]>
voice (float[batch, time] input, float[2, batch, 16] state, int64 sr)
    => (float[batch, 3] scores, float[2, batch, 16] next)
    <int64[1] first = {0}, int64[1] time = {1}> {
    level = ReduceMean(input, time)
    wide = MatMul(level, a)
    kept = ReduceMean<keepdims = 0>(state, first)
    moved = MatMul(kept, b)
    both = Add(wide, moved)
    rate = Cast<to = 1>(sr)
    scaled = Div(both, rate)
    h = Relu(scaled)
    scores = MatMul(h, c)
    same = MatMul(h, d)
    single = Unsqueeze(same, first)
    next = Add(state, single)
}
"""
CLIP = """<ir_version: 10, opset_import: ["" : 18]>
clip (int64[texts, length] input_ids, float[images, 12] pixel_values)
    => (float[texts, images] logits) <int64[1] one = {1}> {
    words = Gather(table, input_ids)
    text = ReduceMean<keepdims = 0>(words, one)
    t1 = MatMul(text, a)
    t2 = Relu(t1)
    t3 = MatMul(t2, b)
    i1 = MatMul(pixel_values, c)
    i2 = Relu(i1)
    i3 = MatMul(i2, d)
    turned = Transpose<perm = [1, 0]>(i3)
    logits = MatMul(t3, turned)
}
"""


def model(text, path, **shapes):
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        weight = rng.standard_normal(shape).astype(np.float32) / shape[0] ** 0.5
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.save(proto, path)
    return path


def voice(count, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "input": 8 * rng.standard_normal((count, 4)).astype(np.float32),
        "state": 8 * rng.standard_normal((2, count, 16)).astype(np.float32),
        "sr": np.array(8),
    }


def pairs(texts, images, seed):
    rng = np.random.default_rng(seed)
    return {
        "input_ids": rng.integers(0, 20, (texts, 6)),
        "pixel_values": rng.standard_normal((images, 12)).astype(np.float32),
    }


@pytest.fixture
def voice_model(tmp_path):
    shapes = {"a": (1, 24), "b": (16, 24), "c": (24, 3), "d": (24, 16)}
    return model(VOICE, tmp_path / "voice.onnx", **shapes)


@pytest.fixture
def clip_model(tmp_path):
    shapes = {"table": (20, 8), "a": (8, 24), "b": (24, 8), "c": (12, 24), "d": (24, 8)}
    return model(CLIP, tmp_path / "clip.onnx", **shapes)


def archive(folder, feeds):
    """All of them in one file, joined where samples lie."""
    joined = {
        "input": np.concatenate([feed["input"] for feed in feeds]),
        "state": np.concatenate([feed["state"] for feed in feeds], axis=1),
        "sr": feeds[0]["sr"],
    }
    np.savez(folder / "all.npz", **joined)
    return folder / "all.npz"


def files(folder, feeds):
    (folder / "feeds").mkdir()
    for number, feed in enumerate(feeds):
        np.savez(folder / "feeds" / f"{number:02}.npz", **feed)
    return folder / "feeds"


def script(folder, feeds):
    files(folder, feeds)
    (folder / "reader.py").write_text(
        "import numpy as np\nfrom pathlib import Path\n\n\ndef feeds():\n"
        "    for path in sorted(Path(__file__).with_name('feeds').iterdir()):\n"
        "        yield dict(np.load(path))\n"
    )
    return f"{folder / 'reader.py'}:feeds"


OPTIONS = [
    ["--target", "macs=0.6"],
    ["--criterion", "fisher"],
    ["--criterion", "std", "--steps", "2"],
    ["--max-drop", "5", "--allocation", "uniform"],
]


@pytest.mark.parametrize("form", [archive, files, script])
@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_a_state_and_a_rate(run, voice_model, tmp_path, form, options):
    source = form(tmp_path, [voice(4, seed) for seed in range(8)])
    given = ("--calibration", source, *options, "--force")
    outcome = run("prune", voice_model, tmp_path / "out.onnx", *given)
    assert (outcome.code, outcome.err) == (0, "")
    assert run("verify", voice_model, tmp_path / "out.onnx", "--calibration", source).code == 0


@pytest.mark.parametrize("form", [archive, files, script])
def test_labels_of_a_model_with_a_state(run, voice_model, tmp_path, form):
    source = form(tmp_path, [voice(4, seed) for seed in range(8)])
    np.save(tmp_path / "labels.npy", np.arange(32) % 3)
    outcome = run(
        *("prune", voice_model, tmp_path / "out.onnx", "--calibration", source),
        *("--labels", tmp_path / "labels.npy", "--max-drop", "30", "--force"),
        *("--allocation", "uniform"),
    )
    assert outcome.code == 0


@pytest.mark.parametrize("form", [files, script])
@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_texts_beside_images(run, clip_model, tmp_path, form, options):
    source = form(tmp_path, [pairs(2 + seed % 2, 3, seed) for seed in range(12)])
    outcome = run("prune", clip_model, tmp_path / "out.onnx", "--calibration", source, *options)
    assert (outcome.code, outcome.err) == (0, "")


def test_pairs_in_one_file(run, clip_model, tmp_path):
    np.savez(tmp_path / "pairs.npz", **pairs(24, 24, 0))
    source = ("--calibration", tmp_path / "pairs.npz")
    outcome = run("prune", clip_model, tmp_path / "out.onnx", *source, "--target", "macs=0.7")
    assert (outcome.code, outcome.err) == (0, "")


SIDE = """<ir_version: 10, opset_import: ["" : 18]>
side (float[BATCH, 6] x, float[BATCH2] anchors) => (float[BATCH, 3] y) {
    s = Mul(x, anchors) h = MatMul(s, a) r = Relu(h) y = MatMul(r, b)
}
"""


@pytest.mark.parametrize("form", ["file", "folder", "script"])
@pytest.mark.parametrize("batch", ["N", "1"])
def test_a_side_input_of_fixed_shape(run, tmp_path, form, batch):
    text = SIDE.replace("BATCH2", "6").replace("BATCH", batch)
    subject = model(text, tmp_path / "side.onnx", a=(6, 24), b=(24, 3))
    x = np.random.default_rng(0).standard_normal((16, 6)).astype(np.float32)
    anchors = np.linspace(1, 2, 6, dtype=np.float32)
    if form == "file":
        np.savez(tmp_path / "all.npz", x=x, anchors=anchors)
        source = tmp_path / "all.npz"
    else:
        feeds = [{"x": row[None], "anchors": anchors} for row in x]
        source = (files if form == "folder" else script)(tmp_path, feeds)
    outcome = run(
        *("prune", subject, tmp_path / "out.onnx", "--calibration", source),
        *("--criterion", "taylor", "--target", "macs=0.7", "--max-drop", "50"),
    )
    assert (outcome.code, outcome.err) == (0, "")
