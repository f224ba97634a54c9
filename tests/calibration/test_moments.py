"""Statistics reduced inside the graph are those numpy finds in the activations themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import ONE_THREAD, outputs, parse
from numpy.typing import NDArray

from onnxprune.calibration.moments import BATCH, Moments, Tap, _Sums, collect
from onnxprune.calibration.samples import read_samples
from onnxprune.calibration.streams import Samples
from onnxprune.errors import CalibrationError
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import load

NETWORK = """<ir_version: 8, opset_import: ["": {opset}]>
    g ({dtype}[N, 3, H, W] input) => ({dtype}[N, A, B, C] y)
    {{ h0 = Conv(input, w1, b1)
       h = Relu(h0)
       y = Transpose<perm = [0, 2, 3, 1]>(h) }}"""

TAPS = [
    Tap("h", (1,), 4),
    Tap("h", (1, 2, 3), 4),
    Tap("h", (3, 1), 4),
    Tap("h", (2, 3, 1), 4),
    Tap("y", (3,), 4),
    Tap("y", (3, 1), 4),
    Tap("input", (1,), 4),
    Tap("input", (2, 1), 4),
]


def network(opset: int = 17, dtype: str = "float") -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {"w1": rng.standard_normal((5, 3, 2, 2)), "b1": rng.standard_normal(5)}
    kind = np.float16 if dtype == "float16" else np.float32
    text = NETWORK.format(opset=opset, dtype=dtype)
    return parse(text, {name: one.astype(kind) for name, one in weights.items()})


def images(count: int = 45, dtype: Any = np.float32) -> NDArray[Any]:
    return np.random.default_rng(1).standard_normal((count, 3, 6, 5)).astype(dtype)


def opened(proto: onnx.ModelProto, source: Any) -> Samples:
    return read_samples(source, input_specs(load(proto).model))


def collected(proto: onnx.ModelProto, taps: list[Tap], source: Any) -> dict[Tap, Moments]:
    return collect(load(proto).model, taps, opened(proto, source), ONE_THREAD)


def activations(proto: onnx.ModelProto, samples: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    given = {one.name for one in proto.graph.output}
    for node in proto.graph.node:
        shown.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in node.output if name not in given
        )
    found = outputs(shown, {"input": samples}) | {"input": samples}
    return {name: value.astype(np.float64) for name, value in found.items()}


def by_position(values: NDArray[np.float64], tap: Tap) -> NDArray[np.float64]:
    """Everything seen at each position of the tap's axes: [*positions, -1]."""
    moved = np.moveaxis(values, tap.axes, range(len(tap.axes)))
    return moved.reshape(*moved.shape[: len(tap.axes)], -1)


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("opset", [9, 13, 17, 18, 21])
def test_they_are_what_numpy_finds(opset: int, dtype: str) -> None:
    """Half precision is computed in single on a CPU: what numpy sees is rounded, they are not."""
    proto = network(opset, dtype)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float" else {"rtol": 1e-3, "atol": 1e-3}
    samples = images(dtype=np.float16 if dtype == "float16" else np.float32)
    values = activations(proto, samples)
    moments = collected(proto, TAPS, {"input": samples})
    assert list(moments) == TAPS
    for tap, found in moments.items():
        seen = by_position(values[tap.tensor], tap)
        assert found.count == len(samples) > BATCH
        np.testing.assert_allclose(found.mean, seen.mean(axis=-1), **close)
        np.testing.assert_allclose(found.mean_square, (seen**2).mean(axis=-1), **close)
        np.testing.assert_allclose(found.mean_magnitude, np.abs(seen).mean(axis=-1), **close)
        np.testing.assert_allclose(found.variance, seen.var(axis=-1), rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(found.steady, np.ptp(seen, axis=-1) == 0)


def test_the_model_is_not_changed_and_repeated_taps_are_watched_once() -> None:
    proto = network()
    loaded = load(proto).model
    names = [value.name for node in loaded.graph for value in node.outputs]
    samples = opened(proto, {"input": images()})
    assert list(collect(loaded, [TAPS[0], TAPS[0]], samples, ONE_THREAD)) == [TAPS[0]]
    assert [value.name for node in loaded.graph for value in node.outputs] == names
    assert len(loaded.graph.outputs) == 1
    assert collect(loaded, [], samples, ONE_THREAD) == {}


def test_samples_may_differ_in_size() -> None:
    feeds = [{"input": images(2)[:, :, :size, :size]} for size in (3, 5, 4)]
    moments = collected(network(), [TAPS[0]], feeds)[TAPS[0]]
    means = [activations(network(), one["input"])["h"].mean(axis=(0, 2, 3)) for one in feeds]
    assert moments.count == 6
    np.testing.assert_allclose(moments.mean, np.mean(means, axis=0), rtol=1e-5)


def test_what_is_kept_does_not_grow_with_the_samples() -> None:
    """Streams of 40 and of 400 samples, each batch gone before the next comes."""
    proto = network()

    def kept(batches: int) -> list[int]:
        sums = _Sums()
        for number in range(batches):
            rows = np.full((10, 5), float(number))
            keys = ("mean", "mean_square", "mean_magnitude", "minimum", "maximum")
            sums.add(dict.fromkeys(keys, rows), TAPS[0], 10)
        assert sums.count == 10 * batches
        stored = [*sums.total.values(), *sums.lowest.values(), *sums.highest.values()]
        return sorted(value.size for value in stored)

    assert kept(4) == kept(40) == [5] * 15
    handed_out: list[int] = []

    def stream() -> Iterator[dict[str, NDArray[Any]]]:
        for number in range(20):
            handed_out.append(number)
            yield {"input": images(2) + number}

    collected(proto, [TAPS[0]], stream)
    assert handed_out == list(range(20)) * (len(handed_out) // 20)


def test_infinite_activations_are_refused_by_name() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3] input) => (float[N, 3] y) { h = Exp(input) y = Neg(h) }"""
    with pytest.raises(CalibrationError, match="h is NaN or infinite"):
        collected(parse(text), [Tap("h", (1,), 2)], {"input": np.full((4, 3), 1e4, np.float32)})


IDENTITY = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 2, W] input) => (float[N, 2, W] y) { y = Neg(input) }"""


def steady(samples: NDArray[Any]) -> list[bool]:
    tap = Tap("y", (1,), 3)
    moments = collected(parse(IDENTITY), [tap], {"input": samples.astype(np.float32)})
    return [bool(one) for one in moments[tap].steady]


def test_a_constant_is_steady_and_so_is_one_that_differs_from_place_to_place() -> None:
    samples = np.zeros((40, 2, 4))
    samples[:, 0], samples[:, 1] = 2.5, [1, 2, 3, 4]
    assert steady(samples) == [True, True]
    samples[39, 1, 2] += 1e-3
    assert steady(samples) == [True, False]


def test_a_spot_that_moves_is_not_steady() -> None:
    """Mean, minimum and maximum are the same in every sample; the place is not."""
    samples = np.zeros((40, 2, 4))
    samples[np.arange(40), 0, np.arange(40) % 4] = 1
    samples[:, 1, 0] = 1
    assert steady(samples) == [False, True]


def test_one_sample_proves_nothing() -> None:
    assert steady(np.ones((1, 2, 4))) == [False, False]


def test_time_on_the_first_axis_is_not_taken_for_samples() -> None:
    """A value that is the same at all times, but not in all samples, is not steady."""
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 1, 2] input) => (float[T, N, 2] y)
        { wide = Expand(input, shape) y = Transpose<perm = [1, 0, 2]>(wide) }"""
    proto = parse(text, {"shape": np.array([1, 4, 1])})
    tap = Tap("y", (2,), 3)
    samples = np.random.default_rng(0).standard_normal((20, 1, 2)).astype(np.float32)
    samples[:, :, 1] = 3
    moments = collected(proto, [tap], {"input": samples})[tap]
    assert moments.steady.tolist() == [False, True]
    assert moments.count == 20


def test_samples_on_the_last_axis_count_alike() -> None:
    """A tap that keeps axis 0: 33 samples fall into batches of 32 and 1."""
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3] input) => (float[3, N] y) { y = Transpose<perm = [1, 0]>(input) }"""
    samples = np.random.default_rng(0).standard_normal((33, 3)).astype(np.float32)
    samples[32], samples[:, 2] = 50, 4
    tap = Tap("y", (0,), 2)
    moments = collected(parse(text), [tap], {"input": samples})[tap]
    np.testing.assert_allclose(moments.mean, samples.mean(axis=0), rtol=1e-6)
    assert moments.steady.tolist() == [False, False, True]


def test_units_that_share_an_axis_with_the_samples_are_told_apart() -> None:
    """[N, 2, 3] as [2 N, 3]: the entries of a sample come again for the next, in any batch."""
    text = (
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 2, 3] x) => (float[M, 3] y) '
        "{ r = Reshape(x, s) y = Relu(r) }"
    )
    proto = parse(text, {"s": np.array([-1, 3])})
    x = np.random.default_rng(0).standard_normal((BATCH + 5, 2, 3)).astype(np.float32)
    tap = Tap("r", (0, 1), 2, extent=4, period=2)
    found = collect(load(proto).model, [tap], opened(proto, x), ONE_THREAD)[tap]
    assert found.count == BATCH + 5
    wanted = x.astype(np.float64)
    np.testing.assert_allclose(found.mean, np.tile(wanted.mean(axis=0), (2, 1)), atol=1e-6)
    squares = np.tile((wanted**2).mean(axis=0), (2, 1))
    np.testing.assert_allclose(found.mean_square, squares, rtol=1e-5)
    assert found.steady.shape == (4, 3)
