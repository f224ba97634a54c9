"""A channel that never changes is removed without any change of the output, whoever reads it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.folding import network, producer, remove_channels
from helpers.networks import Map, Net
from helpers.oracle import difference, outputs, parse
from helpers.readers import AT_ANY_SIZE, BETWEEN, ON_MAPS, ON_VECTORS, UNEVEN, WIDTH, einsum
from hypothesis import given, note, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

TOLERANCE = 3e-6
"""Largest difference allowed, relative to the largest output: rounding of float32 sums."""

CONSTANT = (1, 4)
"""Channels of the producer that never change; both halves of a grouped reader lose one."""

OPSETS = (9, 11, 13, 17, 18, 21)
SIZES = {1: (7,), 2: (6, 5), 3: (5, 5, 6)}
LARGER = {1: (11,), 2: (9, 8), 3: (6, 7, 5)}


def images(count: int, size: Sequence[int], seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 3, *size)).astype(np.float32)


def check(proto: onnx.ModelProto, weight: str, sizes: Sequence[Sequence[int]]) -> onnx.ModelProto:
    """Remove the constant channels, calibrated at the first size, and compare at all of them."""
    result = remove_channels(proto, weight, CONSTANT, {"input": images(40, sizes[0])})
    rows = {one.name: one.dims[0] for one in result.graph.initializer if one.dims}
    assert rows[weight] == WIDTH - len(CONSTANT)
    for size in sizes:
        fresh = {"input": images(3, size, seed=1)}
        assert difference(outputs(proto, fresh), outputs(result, fresh)) < TOLERANCE
    return result


def build(
    net: Net,
    rank: int,
    size: Sequence[int | str],
    between: Callable[[Net, Map], Map],
    readers: Sequence[Callable[[Net, Map], str]],
) -> tuple[onnx.ModelProto, str]:
    hidden, weight = producer(net, WIDTH, CONSTANT, rank)
    x = between(net, Map(hidden, (WIDTH, *SIZES[rank])))
    results = [reader(net, x) for reader in readers]
    if hasattr(net, "shared"):
        results.append(net.op("Relu", net.shared))
    return network(net, [3, *size], results), weight


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("reader", [*ON_MAPS, *ON_VECTORS])
@pytest.mark.parametrize("seed", range(2))
def test_each_reader_at_each_opset(
    reader: Callable[[Net, Map], str], opset: int, seed: int
) -> None:
    opset = max(opset, 12) if reader is einsum else opset
    rng = np.random.default_rng([seed, opset])
    net = Net(lambda options: options[rng.integers(len(options))], seed, opset)
    everything = (*BETWEEN, *UNEVEN)
    between = everything[rng.integers(len(everything))]
    proto, weight = build(net, 2, SIZES[2], between, [reader])
    check(proto, weight, [SIZES[2]])


@settings(max_examples=150)
@given(data=st.data())
def test_no_reader_notices(data: st.DataObject) -> None:
    opset = data.draw(st.sampled_from(OPSETS), "opset")
    rank = data.draw(st.sampled_from((1, 2, 2, 3)), "rank")
    known = [one for one in (*ON_MAPS, *ON_VECTORS) if one is not einsum or opset >= 12]
    readers = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=2), "readers")
    between = data.draw(st.sampled_from((*BETWEEN, *UNEVEN)), "between")
    seed = data.draw(st.integers(0, 2**16), "seed")
    net = Net(lambda options: data.draw(st.sampled_from(options)), seed, opset)
    proto, weight = build(net, rank, SIZES[rank], between, readers)
    note(onnx.printer.to_text(proto))
    check(proto, weight, [SIZES[rank]])


@settings(max_examples=60)
@given(data=st.data())
def test_no_reader_notices_at_any_image_size(data: st.DataObject) -> None:
    opset = data.draw(st.sampled_from(OPSETS), "opset")
    rank = data.draw(st.sampled_from((1, 2, 3)), "rank")
    readers = data.draw(st.lists(st.sampled_from(AT_ANY_SIZE), min_size=1, max_size=2), "readers")
    between = data.draw(st.sampled_from(BETWEEN), "between")
    seed = data.draw(st.integers(0, 2**16), "seed")
    net = Net(lambda options: data.draw(st.sampled_from(options)), seed, opset)
    proto, weight = build(net, rank, ["H", "W", "D"][:rank], between, readers)
    note(onnx.printer.to_text(proto))
    check(proto, weight, [SIZES[rank], LARGER[rank]])


def padded_conv(net: Net, x: str, width: int = WIDTH) -> str:
    return net.op("Conv", x, net.weight(4, width, 3, 3, fan_in=9 * width), pads=[1, 1, 1, 1])


def first(options: Sequence[Any]) -> Any:
    return options[0]


def test_a_calibration_map_that_is_all_border_says_nothing_of_larger_ones() -> None:
    """On a 1x1 map every constant contributes the same everywhere; on a 4x5 map it does not."""
    net = Net(first, 0)
    hidden, weight = producer(net, WIDTH, CONSTANT)
    proto = network(net, [3, "H", "W"], [padded_conv(net, hidden)])
    check(proto, weight, [(1, 1), (4, 5)])


def test_even_and_uneven_constants_side_by_side() -> None:
    """One reader sees a constant as it is and, through a padded depthwise convolution, bent."""
    net = Net(first, 0)
    hidden, weight = producer(net, WIDTH, CONSTANT)
    bent = net.weight(WIDTH, 1, 3, 3, fan_in=9)
    deep = net.op("Conv", hidden, bent, group=WIDTH, pads=[1, 1, 1, 1])
    both = net.op("Concat", hidden, deep, axis=1)
    proto = network(net, [3, 6, 5], [padded_conv(net, both, 2 * WIDTH)])
    check(proto, weight, [(6, 5)])


def test_no_large_map_takes_the_place_of_a_few_weights() -> None:
    """A constant for each place of a 64 x 64 map is more than all weights; its mean has to do."""
    net = Net(first, 0)
    hidden, weight = producer(net, WIDTH, CONSTANT)
    bent = net.weight(WIDTH, 1, 3, 3, fan_in=9)
    deep = net.op("Conv", hidden, bent, group=WIDTH, pads=[1, 1, 1, 1])
    reader = net.op("Conv", deep, net.weight(8, WIDTH, 1, 1, fan_in=WIDTH))
    proto = network(net, [3, 64, 64], [reader])
    inputs = {"input": images(8, (64, 64))}
    result = remove_channels(proto, weight, CONSTANT, inputs)
    assert max(math.prod(one.dims) for one in result.graph.initializer) < 1000
    before, after = (next(iter(outputs(one, inputs).values())) for one in (proto, result))
    means = [one.mean(axis=(0, 2, 3)) for one in (before, after)]
    np.testing.assert_allclose(means[1], means[0], atol=1e-5)
    np.testing.assert_allclose(after[:, :, 1:-1, 1:-1], before[:, :, 1:-1, 1:-1], atol=0.2)


def test_constants_that_cannot_be_seen_at_the_border_need_no_new_node() -> None:
    """Without padding a bias says it all: same nodes as before, one bias more."""
    net = Net(first, 0)
    hidden, weight = producer(net, WIDTH, CONSTANT)
    proto = network(
        net, [3, "H", "W"], [net.op("Conv", hidden, net.weight(4, WIDTH, 3, 3, fan_in=54))]
    )
    result = check(proto, weight, [(6, 5), (9, 9)])
    assert [n.op_type for n in result.graph.node] == [n.op_type for n in proto.graph.node]


def test_half_precision_behind_a_transposed_weight() -> None:
    """What is added has the type of the reader, also where its weight is a computed constant."""
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float16[N, 3] input) => (float16[N, 4] y)
        { h0 = Gemm<transB = 1>(input, w1, b1)
          h = Relu(h0)
          wt = Transpose<perm = [1, 0]>(w2)
          y = MatMul(h, wt) }"""
    rng = np.random.default_rng(0)
    w1, b1 = rng.standard_normal((WIDTH, 3)), np.abs(rng.standard_normal(WIDTH))
    w1[list(CONSTANT)] = 0
    weights = {"w1": w1, "b1": b1, "w2": rng.standard_normal((4, WIDTH))}
    proto = parse(text, {name: one.astype(np.float16) for name, one in weights.items()})
    samples = {"input": rng.standard_normal((40, 3)).astype(np.float16)}
    result = remove_channels(proto, "w1", CONSTANT, samples, tolerance=2e-3)
    assert difference(outputs(proto, samples), outputs(result, samples)) < 2e-3


@pytest.mark.parametrize("equation", ["bi,io", "io,bi", "bti,io", "ia,bi"])
def test_an_einsum_that_leaves_its_output_implicit(equation: str) -> None:
    """Output letters are then those that occur once, in alphabetical order."""
    rng = np.random.default_rng(0)
    terms = equation.split(",")
    left, right = ["w2", "h"] if "b" in terms[1] else ["h", "w2"]
    shape, spread = ("N, 5, 3", "N, 5, 6") if "t" in equation else ("N, 3", "N, 6")
    letters = sorted({c for c in equation if c.isalpha() and equation.count(c) == 1})
    result = ", ".join({"b": "N", "t": "5"}.get(c, "4") for c in letters)
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[{shape}] input) => (float[{result}] y)
        <float[{spread}] h>
        {{ h0 = MatMul(input, w1)
           h1 = Add(h0, b1)
           h = Relu(h1)
           y = Einsum<equation = "{equation}">({left}, {right}) }}"""
    w1, b1 = rng.standard_normal((3, WIDTH)), np.abs(rng.standard_normal(WIDTH))
    w1[:, list(CONSTANT)] = 0
    weights = {"w1": w1, "b1": b1, "w2": rng.standard_normal((WIDTH, 4))}
    proto = parse(text, {name: one.astype(np.float32) for name, one in weights.items()})
    size = (40, 5, 3) if "t" in equation else (40, 3)
    samples = {"input": rng.standard_normal(size).astype(np.float32)}
    small = remove_channels(proto, "w1", CONSTANT, samples, axis=1)
    assert difference(outputs(proto, samples), outputs(small, samples)) < TOLERANCE
