"""Layers solved anew: what can be restored is; never much worse than folded means."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.folding import network, pruned
from helpers.networks import Map, Net
from helpers.oracle import Traced, difference, outputs, parse, traced
from helpers.paths import MODELS
from helpers.readers import ON_MAPS, ON_VECTORS, WIDTH
from helpers.solving import EXACT, HEAD, Feed, batches, classes_of, floats, images, solve
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st

from onnxprune.verification.divergence import divergence

SIZES = {1: (7,), 2: (5, 6)}


def dependent_map(net: Net, rank: int, activation: bool) -> tuple[str, str]:
    """Channels 1 and 4 of six are combinations of the others of their half, in every pixel."""
    weight = net.rng.standard_normal((WIDTH, 8, *[1] * rank)).astype(np.float32)
    bias = net.rng.standard_normal(WIDTH).astype(np.float32)
    for made, first, second in ((1, 0, 2), (4, 3, 5)):
        factors = (2.0, 0.0) if activation else (-1.0, 0.5)
        for array in (weight, bias):
            array[made] = factors[0] * array[first] + factors[1] * array[second]
    name = net.constant(weight)
    made_by = net.op("Conv", "input", name, net.constant(bias))
    return (net.op("Relu", made_by) if activation else made_by), name


@settings(max_examples=40)
@given(data=st.data())
def test_combinations_of_what_is_kept_are_restored(data: st.DataObject) -> None:
    """Whatever the reader: pads, strides, dilations, groups, transposed, Gemm, MatMul, Einsum."""
    rank = data.draw(st.sampled_from((1, 2)), "rank")
    reader = data.draw(st.sampled_from((*ON_MAPS, *ON_VECTORS)), "reader")
    activation = data.draw(st.booleans(), "activation")
    net = Net(lambda options: data.draw(st.sampled_from(options)), 5, 17)
    hidden, weight = dependent_map(net, rank, activation)
    result = reader(net, Map(hidden, (WIDTH, *SIZES[rank])))
    proto = network(net, [8, *SIZES[rank]], [result])
    note(onnx.printer.to_text(proto))
    assume("ncp,co->on" not in onnx.printer.to_text(proto))
    feeds = batches({"input": images(500, 8, *SIZES[rank])}, 125)
    dead = classes_of(proto, weight, 0, (1, 4))
    found = solve(proto, dead, feeds, EXACT)
    fresh = {"input": images(9, 8, *SIZES[rank], seed=7)}
    assert difference(outputs(proto, fresh), outputs(found.sliced, fresh)) < 2e-3


ATTENTION = f"""{HEAD} g (float[N, T, 8] x) => (float[N, T, 8] y)
    {{ q = MatMul(x, wq)
       k = MatMul(x, wk)
       v0 = MatMul(x, wv)
       v = Add(v0, bv)
       qs = Reshape(q, apart)
       ks = Reshape(k, apart)
       vs = Reshape(v, apart)
       qt = Transpose<perm = [0, 2, 1, 3]>(qs)
       kt = Transpose<perm = [0, 2, 3, 1]>(ks)
       vt = Transpose<perm = [0, 2, 1, 3]>(vs)
       s = MatMul(qt, kt)
       p = Softmax<axis = -1>(s)
       m = MatMul(p, vt)
       t = Transpose<perm = [0, 2, 1, 3]>(m)
       c = Reshape(t, together)
       o = MatMul(c, wo)
       y = Add(o, x) }}"""


def attention() -> onnx.ModelProto:
    """Two heads of three; dimension 1 of each value is a combination of dimensions 0 and 2."""
    weights = floats(0, wq=(8, 6), wk=(8, 6), wv=(8, 6), bv=(6,), wo=(6, 8))
    for array in (weights["wv"], weights["bv"]):
        for head in (0, 3):
            array[..., head + 1] = 2 * array[..., head] - array[..., head + 2]
    sizes = {"apart": np.array([0, 0, 2, 3]), "together": np.array([0, 0, 6])}
    return parse(ATTENTION, weights | sizes)


def test_the_output_projection_of_attention_is_restored_at_any_length() -> None:
    """Feeds of different sequence lengths; value dimensions go from every head."""
    proto = attention()
    rng = np.random.default_rng(0)
    feeds = [
        {"x": rng.standard_normal((8, length, 8)).astype(np.float32)} for length in (4, 9, 6, 5, 7)
    ]
    dead = classes_of(proto, "wv", 1, (1, 4))
    found = solve(proto, dead, feeds, EXACT)
    fresh = {"x": images(3, 11, 8)}
    assert difference(outputs(proto, fresh), outputs(found.sliced, fresh)) < 1e-3
    shapes = {one.name: tuple(one.dims) for one in found.sliced.graph.initializer}
    assert shapes["wv"] == (8, 4)


def test_half_precision() -> None:
    body = f"""{HEAD} g (float16[N, 8] x) => (float16[N, 5] y)
        {{ a = MatMul(x, w1)  b = Relu(a)  c = MatMul(b, w2)  d = Relu(c)  y = MatMul(d, w3) }}"""
    weights = floats(0, w1=(8, 6), w2=(6, 6), w3=(6, 5))
    weights["w1"][:, 4] = 2 * weights["w1"][:, 1]
    proto = parse(body, {name: one.astype(np.float16) for name, one in weights.items()})
    feeds = batches({"x": images(96, 8).astype(np.float16)})
    found = solve(proto, classes_of(proto, "w1", 1, (4,)), feeds, EXACT, tolerance=2e-2)
    assert "c" in found.repaired()
    assert found.weight("w2").dtype == np.float16
    fresh = {"x": images(20, 8, seed=7).astype(np.float16)}
    assert difference(outputs(proto, fresh), outputs(found.sliced, fresh)) < 1e-2


def half_of(subject: Traced) -> list[int]:
    """Half of the units of every group without constraints, those of least weight."""
    dead = []
    for group in subject.groups:
        if not len(group.constraints) and group.closed[0]:
            dead += [int(one) for one in group.units[: group.size // 2]]
    return dead


def calibration(name: str, count: int) -> tuple[onnx.ModelProto, Feed, Feed]:
    proto = onnx.load(MODELS / f"{name}.onnx")
    archive = np.load(MODELS / f"{name}_calibration.npz")
    samples = {key: archive[key][:count] for key in archive.files}
    test = np.load(MODELS / f"{name}_test.npz")
    names = {value.name for value in proto.graph.input}
    return proto, samples, {key: test[key] for key in test.files if key in names}


def divergences(name: str, count: int, size: int) -> tuple[float, float]:
    """On the test set: mean folding, least squares."""
    proto, samples, test = calibration(name, count)
    subject = traced(proto)
    dead = half_of(subject)
    assert dead
    folded = pruned(subject, dead, samples, tolerance=1e-4)
    solved = solve(proto, dead, batches(samples, size)).sliced
    wanted = outputs(proto, test)
    first, second = (
        divergence(subject.model, [(wanted, outputs(one, test))]) for one in (folded, solved)
    )
    return first, second


@pytest.mark.parametrize("name", ["digits_resnet", "digits_mlp", "digits_transformer"])
def test_closer_to_the_original_than_folded_means(name: str) -> None:
    folded, solved = divergences(name, 256, 32)
    assert solved < 0.8 * folded


@pytest.mark.parametrize("name", ["digits_resnet", "digits_mlp", "digits_transformer"])
def test_eight_samples_are_not_much_worse_than_folded_means(name: str) -> None:
    folded, solved = divergences(name, 8, 2)
    assert solved < 1.25 * folded
