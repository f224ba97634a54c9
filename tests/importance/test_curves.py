"""Error curves: monotone, and what they say is what the best weights there are would lose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import parse
from helpers.paths import MODELS
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.moments import Calibration
from onnxprune.calibration.samples import read_samples
from onnxprune.coupling.analysis import Analysis, analyse, statistics_of
from onnxprune.importance.criterion import RankingInputs
from onnxprune.importance.reconstruction import Reconstruction
from onnxprune.importance.removal_order import RankedGroup
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import load
from onnxprune.model.runtime import Runtime, matrix_threads
from onnxprune.options import PruneOptions

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with matrix_threads(1):
        yield


def ranked(
    proto: onnx.ModelProto, source: Any, **options: Any
) -> tuple[Analysis, list[RankedGroup], list[Any]]:
    model = load(proto).model
    samples = read_samples(source, input_specs(model))
    chosen = PruneOptions(
        **{"criterion": "reconstruction", "target": {"macs": 0.5}, "runtime": Runtime(threads=1)}
        | options
    )
    context = RunContext(samples, None, chosen.runtime, chosen.seed)
    analysis = analyse(model, context)
    feeds = list(samples.batches(16))
    calibration = Calibration(samples, statistics_of(analysis, context), feeds)
    inputs = RankingInputs(analysis, context, calibration)
    return analysis, Reconstruction().rank(inputs, analysis.groups), feeds


@pytest.mark.parametrize("name", ["digits_resnet", "digits_mlp", "digits_transformer"])
def test_curves_rise_with_every_step(name: str) -> None:
    archive = np.load(MODELS / f"{name}_calibration.npz")
    samples = {key: archive[key][:64] for key in archive.files}
    analysis, found, _ = ranked(onnx.load(MODELS / f"{name}.onnx"), samples)
    assert [one.group.name for one in found] == [one.name for one in analysis.groups]
    for one in (part for whole in found for part in (whole, *whole.parts)):
        assert {"raw", "root", "stream", "balanced"} <= one.curves.keys()
        for curve in one.curves.values():
            assert curve.shape == (len(one.steps),)
            assert np.isfinite(curve).all()
            assert (curve >= 0).all()
            assert (np.diff(curve) >= 0).all()
        classes = [c for step in one.steps for c in step.units]
        assert len(set(classes)) == len(classes)
    for one in found:
        if one.group.closed[0] and len(one.group.axes) == 1:
            assert one.steps[-1].fraction < 1


def lstsq_error(rows: NDArray[Any], wanted: NDArray[Any], kept: NDArray[np.bool_]) -> float:
    left = np.concatenate([rows[:, kept], np.ones((len(rows), 1))], axis=1)
    rest = wanted - left @ np.linalg.lstsq(left, wanted, rcond=None)[0]
    return float((rest**2).sum(axis=1).mean())


def values(shapes: dict[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_the_raw_error_is_that_of_least_squares_on_the_samples() -> None:
    """A convolution with pads: nine unknowns for each channel."""
    body = f"""{HEAD} g (float[N, 3, 4, 4] x) => (float[N, 5, 4, 4] y)
        {{ a = Conv(x, w1)  h = Relu(a)  y = Conv<pads = [1, 1, 1, 1]>(h, w2) }}"""
    weights = values({"w1": (8, 3, 1, 1), "w2": (5, 8, 3, 3)})
    x = np.random.default_rng(1).standard_normal((40, 3, 4, 4)).astype(np.float32)
    _, (one,), _ = ranked(parse(body, weights), {"x": x})
    hidden = np.maximum(np.einsum("nchw,oc->nohw", x, weights["w1"][:, :, 0, 0]), 0)
    padded = np.pad(hidden, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    rows = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 8 * 9).astype(np.float64)
    wanted = rows @ weights["w2"].reshape(5, -1).T
    kept = np.ones(8, bool)
    unit = {int(c): u for u, c in enumerate(one.group.units)}
    for step, error in zip(one.steps, one.curves["raw"], strict=True):
        kept[[unit[c] for c in step.units]] = False
        true = lstsq_error(rows, wanted, np.repeat(kept, 9))
        assert error == pytest.approx(true, rel=0.05, abs=1e-2 * wanted.var(axis=0).sum())


def test_units_that_are_combinations_of_others_go_first() -> None:
    body = f"""{HEAD} g (float[N, 8] x) => (float[N, 4] y)
        {{ a = MatMul(x, w1)  h = Relu(a)  y = MatMul(h, w2) }}"""
    weights = values({"w1": (8, 6), "w2": (6, 4)})
    weights["w1"][:, 4] = 2 * weights["w1"][:, 1]
    x = np.random.default_rng(1).standard_normal((64, 8)).astype(np.float32)
    _, (one,), _ = ranked(parse(body, weights), {"x": x})
    first = one.group.units.tolist().index(one.steps[0].units[0])
    assert first in (1, 4)
    assert one.curves["raw"][0] < 1e-2 * one.curves["raw"][1]


def test_every_width_can_be_reached() -> None:
    """Wide groups are eliminated several units at a time, but lose them one by one."""
    body = f"""{HEAD} g (float[N, 8] x) => (float[N, 4] y)
        {{ a = MatMul(x, w1)  h = Relu(a)  y = MatMul(h, w2) }}"""
    weights = values({"w1": (8, 160), "w2": (160, 4)})
    x = np.random.default_rng(1).standard_normal((400, 8)).astype(np.float32)
    _, (one,), _ = ranked(parse(body, weights), {"x": x})
    assert [len(step.units) for step in one.steps] == [1] * 159
    fractions = [step.fraction for step in one.steps]
    np.testing.assert_allclose(fractions, np.arange(1, 160) / 160)
    eight = one.bundled(8)
    assert [len(step.units) for step in eight.steps] == [8] * 19
    np.testing.assert_allclose(eight.curves["raw"], one.curves["raw"][7::8])


@pytest.mark.parametrize(
    "reader",
    [
        "y = MatMul(h, w2)",
        "t = Transpose<perm = [2, 1, 0]>(h) z = MatMul(w3, t) y = Transpose<perm = [2, 1, 0]>(z)",
        'y = Einsum<equation = "ntk,ko->nto">(h, w2)',
    ],
)
def test_feeds_of_different_lengths(reader: str) -> None:
    """Rows are drawn from those there are, with the batch on any axis."""
    if "w3" in reader:
        reader = """t = Transpose<perm = [0, 2, 1]>(h)
            z = MatMul(w3, t) y = Transpose<perm = [0, 2, 1]>(z)"""
    body = f"""{HEAD} g (float[N, T, 8] x) => (float[N, T, 4] y)
        {{ a = MatMul(x, w1)  h = Relu(a)  {reader} }}"""
    weights = values({"w1": (8, 6), "w2": (6, 4)})
    weights["w3"] = np.ascontiguousarray(weights["w2"].T)
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((n, t, 8)).astype(np.float32)} for n, t in LENGTHS]
    _, (one,), _ = ranked(parse(body, weights), feeds)
    x = np.concatenate([feed["x"].reshape(-1, 8) for feed in feeds])
    rows = np.maximum(x @ weights["w1"], 0).astype(np.float64)
    kept = np.ones(6, bool)
    unit = {int(c): u for u, c in enumerate(one.group.units)}
    for step, error in zip(one.steps, one.curves["raw"], strict=True):
        kept[[unit[c] for c in step.units]] = False
        true = lstsq_error(rows, rows @ weights["w2"], kept)
        assert error == pytest.approx(true, rel=0.02)


LENGTHS = ((4, 3), (2, 20), (7, 5), (1, 30), (5, 1))


def test_an_activation_that_comes_transposed() -> None:
    """Gemm with transA: the first axis of what it reads counts unknowns, not samples."""
    body = f"""{HEAD} g (float[N, 8] x) => (float[N, 4] y)
        {{ a = MatMul(x, w1)  h = Relu(a)  t = Transpose<perm = [1, 0]>(h)
           y = Gemm<transA = 1>(t, w2) }}"""
    weights = values({"w1": (8, 40), "w2": (40, 4)})
    x = np.random.default_rng(1).standard_normal((150, 8)).astype(np.float32)
    _, (one,), _ = ranked(parse(body, weights), {"x": x})
    rows = np.maximum(x @ weights["w1"], 0).astype(np.float64)
    true = lstsq_error(rows, rows @ weights["w2"], np.zeros(40, bool))
    assert one.curves["raw"][-1] < true
    assert one.curves["raw"][-1] > 0.5 * true


def test_large_means_leave_the_variance_visible() -> None:
    body = f"""{HEAD} g (float[N, 8] x) => (float[N, 4] y)
        {{ a = Gemm(x, w1, b1)  h = Relu(a)  y = MatMul(h, w2) }}"""
    weights = values({"w1": (8, 6), "w2": (6, 4)}) | {"b1": np.full(6, 2e4, np.float32)}
    x = np.random.default_rng(1).standard_normal((400, 8)).astype(np.float32)
    _, (one,), _ = ranked(parse(body, weights), {"x": x})
    rows = (x @ weights["w1"]).astype(np.float64)
    kept = np.ones(6, bool)
    unit = {int(c): u for u, c in enumerate(one.group.units)}
    for step, error in zip(one.steps, one.curves["raw"], strict=True):
        kept[[unit[c] for c in step.units]] = False
        assert error == pytest.approx(lstsq_error(rows, rows @ weights["w2"], kept), rel=0.05)


def test_groups_of_a_convolution_are_parts_of_one_error() -> None:
    """Of the same function, as one convolution and as two groups, errors are the same shares."""
    body = """{head} g (float[N, 8] x) => (float[N, 4, 1] y)
        {{ a = MatMul(x, w1)  h = Relu(a)  u = Unsqueeze(h, two)
           y = Conv<group = {groups}>(u, w2) }}"""
    weights: dict[str, Any] = values({"w1": (8, 6), "w2": (4, 3, 1)})
    weights["two"] = np.array([2])
    x = np.random.default_rng(1).standard_normal((200, 8)).astype(np.float32)
    text = body.format(head=HEAD, groups=2)
    _, (split,), _ = ranked(parse(text, weights), {"x": x})
    dense = np.zeros((4, 6, 1), np.float32)
    dense[:2, :3], dense[2:, 3:] = weights["w2"][:2], weights["w2"][2:]
    text = body.format(head=HEAD, groups=1)
    _, (whole,), _ = ranked(parse(text, weights | {"w2": dense}), {"x": x})
    ratios = [one.curves["stream"] / one.curves["raw"] for one in (split, whole)]
    np.testing.assert_allclose(ratios[0], ratios[1][0], rtol=1e-3)


def test_readers_inside_a_body() -> None:
    """What a branch reads is no regression of this walk, and no reason to fail."""
    body = f"""{HEAD} g (float[N, 8] x, bool go) => (float[N, 4] y)
        {{ a = MatMul(x, w1)  h = Relu(a)
           y = If (go) <
             then_branch = t () => (float[N, 4] u) {{ u = MatMul(h, w2) }},
             else_branch = e () => (float[N, 4] v) {{ v = MatMul(h, w3) }}
           > }}"""
    weights = values({"w1": (8, 6), "w2": (6, 4), "w3": (6, 4)})
    rng = np.random.default_rng(1)
    feeds = [
        {"x": rng.standard_normal((16, 8)).astype(np.float32), "go": np.array(go)}
        for go in (True, False)
    ]
    _, found, _ = ranked(parse(body, weights), feeds)
    assert all(np.isfinite(one.curves["raw"]).all() for one in found)
