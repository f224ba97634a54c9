"""Samples that cannot work are told from good ones, and each warning has a next step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.paths import MODELS

from onnxprune.calibration.checks import sample_warnings
from onnxprune.calibration.samples import read_samples
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import load
from onnxprune.model.runtime import Runtime

RNG = np.random.default_rng(0)
ONE_THREAD = Runtime(threads=1)


def model(text: str, **weights: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array.astype(np.float32), name)
        for name, array in weights.items()
    )
    return load(proto).model


def warnings(subject: ir.Model, source: object) -> list[str]:
    samples = read_samples(source, input_specs(subject))
    return list(sample_warnings(subject, samples, ONE_THREAD))


def only(found: list[str]) -> str:
    assert len(found) == 1, found
    return found[0]


MLP = model(
    """<ir_version: 10, opset_import: ["" : 18]>
    mlp (float[N, 6] x) => (float[N, 3] y) { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }""",
    a=RNG.standard_normal((6, 8)),
    b=RNG.standard_normal((8, 3)),
)
POINTS = RNG.standard_normal((40, 6)).astype(np.float32)


class TestInputs:
    def test_good_ones_are_not_spoken_of(self) -> None:
        assert warnings(MLP, POINTS) == []

    @pytest.mark.parametrize(("count", "words"), [(1, "one sample"), (3, "3 samples")])
    def test_too_few(self, count: int, words: str) -> None:
        found = only(warnings(MLP, POINTS[:count]))
        assert words in found
        assert "give a few hundred" in found

    def test_all_the_same(self) -> None:
        found = only(warnings(MLP, np.repeat(POINTS[:1], 20, axis=0)))
        assert "all samples are the same" in found
        assert "give different ones" in found

    def test_zeros(self) -> None:
        assert "all samples are the same" in only(warnings(MLP, np.zeros((20, 6), np.float32)))

    def test_one_input_of_several_is_zero(self) -> None:
        subject = model(
            """<ir_version: 10, opset_import: ["" : 18]>
            cell (float[N, 6] x, float[2, N, 4] state, int64 sr, int64[N, 2] mask)
                => (float[N, 6] y) <int64[1] first = {0}, int64[1] last = {1}> {
                s = ReduceSum<keepdims = 0>(state, first) t = ReduceSum(s, last)
                m = ReduceSum(mask, last) c = Cast<to = 1>(m) r = Cast<to = 1>(sr)
                a = Add(x, t) b = Add(a, c) y = Mul(b, r)
            }"""
        )
        feed = {
            "x": POINTS,
            "state": np.zeros((2, 40, 4), np.float32),
            "sr": np.array(16000),
            "mask": np.ones((40, 2), np.int64),
        }
        found = only(warnings(subject, feed))
        assert "'state' is 0 everywhere" in found
        assert "as the model gets them in use" in found

    def test_samples_sorted_by_class_are_looked_at_all_over_the_set(self) -> None:
        centres = 20 * np.eye(6, dtype=np.float32)
        assert warnings(MLP, np.repeat(centres, 200, axis=0)) == []


class TestOutputs:
    def test_one_that_never_varies(self) -> None:
        subject = model(
            """<ir_version: 10, opset_import: ["" : 18]>
            dead (float[N, 6] x) => (float[N, 3] y) {
                h = Abs(x) n = Neg(h) r = Relu(n) m = MatMul(r, b) y = Tanh(m)
            }""",
            b=RNG.standard_normal((6, 3)),
        )
        found = only(warnings(subject, POINTS))
        assert "'y' is the same for all samples" in found
        assert "give samples that differ" in found

    def test_always_the_same_answer(self) -> None:
        found = only(warnings(MLP, np.abs(POINTS[:1]) * np.linspace(1, 2, 40)[:, None]))
        assert "largest scores in the original's 'y' are at the same places" in found
        assert "give samples of everything" in found

    def test_outputs_without_answers_need_not_have_some(self) -> None:
        subject = model(
            """<ir_version: 10, opset_import: ["" : 18]>
            mlp (float[N, 6] x) => (float[N, 3] y) { h = MatMul(x, a) y = Tanh(h) }""",
            a=np.ones((6, 3)),
        )
        assert warnings(subject, POINTS) == []


def digits() -> np.ndarray:
    with np.load(MODELS / "digits_resnet_calibration.npz") as file:
        return np.asarray(file["images"])


class TestImages:
    """The network was trained on digits of 0 to 1."""

    @pytest.mark.parametrize("count", [4, 128])
    def test_those_of_training(self, count: int) -> None:
        assert warnings(load(MODELS / "digits_resnet_bn.onnx").model, digits()[:count]) == []

    @pytest.mark.parametrize(
        "change",
        [
            lambda x: 255 * x,
            lambda x: x / 255,
            lambda x: (x - 0.5) / 0.25,
            lambda x: RNG.standard_normal(x.shape),
        ],
        ids=["0 to 255", "divided twice", "normalised", "noise"],
    )
    def test_other_ranges_show_in_the_statistics_of_training(self, change) -> None:
        subject = load(MODELS / "digits_resnet_bn.onnx").model
        images = change(digits()[:64]).astype(np.float32)
        found = [text for text in warnings(subject, images) if "trained on" in text]
        assert "check range, mean, standard deviation" in only(found)

    def test_pixels_are_a_hint_where_no_statistics_are_left(self) -> None:
        subject = load(MODELS / "digits_resnet.onnx").model
        assert warnings(subject, digits()[:64]) == []
        *_, found = warnings(subject, 255 * digits()[:64])
        assert "'images' holds pixels from 0 to 255; if the model" in found
        assert "--images mean=" in found

    @pytest.mark.parametrize("first", ["Sub(x, mean)", "Mul(x, mean)"])
    def test_a_model_that_normalises_pixels_gets_no_hint(self, first: str) -> None:
        subject = model(
            f"""<ir_version: 10, opset_import: ["" : 18]>
            net (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {{
                t = Transpose<perm = [0, 1, 3, 2]>(x) p = {first.replace("(x", "(t")}
                h = Conv(p, w) y = Tanh(h)
            }}""",
            mean=np.array(0.01),
            w=RNG.standard_normal((4, 3, 3, 3)) / 100,
        )
        pixels = RNG.integers(0, 256, (16, 3, 8, 8)).astype(np.float32)
        assert warnings(subject, pixels) == []

    def test_statistics_that_were_never_trained_say_nothing(self) -> None:
        weights: Mapping[str, np.ndarray] = {
            "s": np.ones(4),
            "b": np.zeros(4),
            "m": np.zeros(4),
            "v": np.ones(4),
        }
        subject = model(
            """<ir_version: 10, opset_import: ["" : 18]>
            net (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
                h = Conv(x, w) n = BatchNormalization(h, s, b, m, v) y = Tanh(n)
            }""",
            w=RNG.standard_normal((4, 3, 3, 3)) / 100,
            **weights,
        )
        assert warnings(subject, RNG.standard_normal((16, 3, 8, 8)).astype(np.float32)) == []
