"""Channels that vary: what their readers compute keeps its mean, and one bias cannot do better."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from helpers.folding import fold, network, producer, remove_channels
from helpers.networks import Map, Net
from helpers.oracle import ONE_THREAD, outputs, parse, traced
from helpers.readers import (
    WIDTH,
    conv,
    conv_transpose,
    gemm,
    matmul,
    matmul_from_the_left,
    matmul_on_tokens,
    normalised,
    plain,
)
from hypothesis import given, note, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxprune.compensation.fold_means import fold_means

CHANNELS = (1, 4)
SIZES = {1: (6,), 2: (4, 4)}
MADE = {conv: 1, conv_transpose: 1, gemm: 1, matmul: 1, matmul_from_the_left: 1}
"""Readers, and the output axis that their weight makes (else the last)."""


def shifted_images(rank: int, base: int) -> NDArray[Any]:
    """A set with every cyclic shift of each image: its mean is the same at every place."""
    size = SIZES[rank]
    images = np.random.default_rng(0).standard_normal((base, 3, *size))
    axes = tuple(range(2, 2 + rank))
    every = [np.roll(images, shift, axes) for shift in np.ndindex(*size)]
    return np.concatenate(every).astype(np.float32)


def mean_by(values: NDArray[Any], axis: int) -> NDArray[np.float64]:
    others = tuple(one for one in range(values.ndim) if one != axis % values.ndim)
    return np.asarray(values.astype(np.float64).mean(axis=others))


@settings(max_examples=100)
@given(data=st.data())
def test_the_mean_of_what_readers_compute_is_kept(data: st.DataObject) -> None:
    opset = data.draw(st.sampled_from((11, 13, 18, 21)), "opset")
    rank = data.draw(st.sampled_from((1, 2)), "rank")
    known = (*MADE, matmul_on_tokens)
    readers = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=2), "readers")
    between = data.draw(st.sampled_from((plain, normalised)), "between")
    seed = data.draw(st.integers(0, 2**16), "seed")
    net = Net(lambda options: data.draw(st.sampled_from(options)), seed, opset)
    hidden, weight = producer(net, WIDTH, (), rank)
    x = between(net, Map(hidden, (WIDTH, *SIZES[rank])))
    results = [reader(net, x) for reader in readers]
    proto = network(net, [3, *SIZES[rank]], results)
    note(onnx.printer.to_text(proto))
    samples = {"input": shifted_images(rank, 3)}
    small = remove_channels(proto, weight, CHANNELS, samples)
    before, after = outputs(proto, samples), outputs(small, samples)
    for name, reader in zip(results, readers, strict=True):
        axis = MADE.get(reader, -1)
        wanted, got = mean_by(before[name], axis), mean_by(after[name], axis)
        scale = np.abs(before[name]).mean()
        assert np.abs(wanted - got).max() < 1e-5 * scale
        assert np.abs(before[name] - after[name]).max() > 1e-3 * scale


MLP = """<ir_version: 8, opset_import: ["": 17]>
    mlp (float[N, 3] input) => (float[N, 4] y)
    { h0 = Gemm<transB = 1>(input, w1, b1)
      h = Relu(h0)
      y = Gemm<transB = 1>(h, w2, b2) }"""


def mlp() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    shapes = {"w1": (WIDTH, 3), "b1": (WIDTH,), "w2": (4, WIDTH), "b2": (4,)}
    return parse(MLP, {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})


def test_the_new_bias_is_the_formula_of_the_docstring() -> None:
    """b' = b + W_P mean(x_P), here with numpy alone."""
    proto = mlp()
    samples = {"input": np.random.default_rng(1).standard_normal((50, 3)).astype(np.float32)}
    given_ = {one.name: onnx.numpy_helper.to_array(one) for one in proto.graph.initializer}
    hidden = np.maximum(samples["input"] @ given_["w1"].T + given_["b1"], 0)
    gone = list(CHANNELS)
    wanted = given_["b2"] + given_["w2"][:, gone] @ hidden[:, gone].mean(axis=0)
    small = remove_channels(proto, "w1", CHANNELS, samples)
    got = {one.name: onnx.numpy_helper.to_array(one) for one in small.graph.initializer}
    np.testing.assert_allclose(got["b2"], wanted, rtol=1e-5)
    np.testing.assert_array_equal(got["w2"], np.delete(given_["w2"], gone, axis=1))
    assert [n.op_type for n in small.graph.node] == ["Gemm", "Relu", "Gemm"]


def test_samples_count_alike_however_they_fall_into_batches() -> None:
    """33 samples are a batch of 32 and one of 1; a reader with the batch last sees the same mean.

    The weight stands on the left and the samples are columns.
    """
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3] input) => (float[4, N] y)
        { t = Transpose<perm = [1, 0]>(input)
          h0 = MatMul(w1, t)
          h = Relu(h0)
          y = MatMul(w2, h) }"""
    rng = np.random.default_rng(0)
    weights = {"w1": rng.standard_normal((WIDTH, 3)), "w2": rng.standard_normal((4, WIDTH))}
    proto = parse(text, {name: one.astype(np.float32) for name, one in weights.items()})
    rows = rng.standard_normal((33, 3)).astype(np.float32)
    rows[32] = 50
    samples = {"input": rows}
    small = remove_channels(proto, "w1", CHANNELS, samples)
    before, after = outputs(proto, samples)["y"], outputs(small, samples)["y"]
    np.testing.assert_allclose(after.mean(axis=1), before.mean(axis=1), rtol=1e-4)


def test_products_of_two_activations_are_left_alone() -> None:
    """There is no bias to fold into: the same nodes, cut, and nothing more."""
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 5, 3] input) => (float[N, 5, 5] y)
        { q = MatMul(input, wq)
          k = MatMul(input, wk)
          kt = Transpose<perm = [0, 2, 1]>(k)
          y = MatMul(q, kt) }"""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((3, WIDTH)).astype(np.float32) for name in ("wq", "wk")}
    proto = parse(text, weights)
    samples = {"input": rng.standard_normal((40, 5, 3)).astype(np.float32)}
    small = remove_channels(proto, "wq", CHANNELS, samples, axis=1)
    assert [n.op_type for n in small.graph.node] == [n.op_type for n in proto.graph.node]
    shapes = {one.name: tuple(one.dims) for one in small.graph.initializer}
    assert shapes == {"wq": (3, 4), "wk": (3, 4)}


def test_it_says_whether_it_changed_anything() -> None:
    subject, samples = traced(mlp()), {"input": np.zeros((4, 3), np.float32)}
    dead = [int(subject.units("w1", 0)[0])]
    full, cut = fold(subject, [], samples)
    assert not fold_means(full, subject.cut([]), {}, [samples], ONE_THREAD)
    full, cut = fold(subject, dead, samples)
    assert ir.to_proto(full.model) != ir.to_proto(subject.model)
    assert cut.touches("w1")
