"""Layers solved anew as parts of sums: what others have lost is made up for, once."""

from __future__ import annotations

import numpy as np
import onnx
from helpers.oracle import difference, outputs, parse
from helpers.solving import EXACT, HEAD, batches, classes_of, floats, images, solve

RESIDUAL = f"""{HEAD} g (float[N, 6] input) => (float[N, 4] y)
    {{ x = MatMul(input, embed)
       a = MatMul(x, w1)  h = Relu(a)  f = MatMul(h, v1)
       s = Add(x, f)
       b = MatMul(s, w2)  k = Relu(b)  d = MatMul(k, v2)
       t = Add(s, d)
       y = MatMul(t, w3) }}"""


def residual() -> onnx.ModelProto:
    """The first branch writes where the second does not read; the second knows the same features.

    What the first loses is nothing to the second's own output, but can be made up for there.
    """
    weights = floats(0, embed=(6, 8), w1=(8, 5), v1=(5, 8), w2=(8, 5), v2=(5, 8), w3=(8, 4))
    weights["embed"][:, 6:] = 0
    weights["v1"][:, :6] = 0
    weights["w1"][6:] = 0
    weights["w2"][...] = weights["w1"]
    return parse(RESIDUAL, weights)


def test_a_branch_repairs_what_the_residual_stream_has_lost() -> None:
    proto = residual()
    feeds = batches({"input": images(200, 6)}, 25)
    found = solve(proto, classes_of(proto, "w1", 1, (0, 3)), feeds, EXACT)
    by_node = {one.node: one for one in found.refit.layers}
    assert by_node["f"].after > 0.05, "not to be restored where it was lost"
    assert by_node["d"].before > 0.01
    fresh = {"input": images(30, 6, seed=7)}
    assert difference(outputs(proto, fresh), outputs(found.sliced, fresh)) < 1e-3


def test_nodes_between_a_layer_and_its_sum_are_solved_too() -> None:
    """The original is walked past the sum, the layers that stand before it in the graph are not."""
    body = f"""{HEAD} g (float[N, 8] x) => (float[N, 8] y, float[N, 4] z)
        {{ a = MatMul(x, w1)  h = Relu(a)  f = MatMul(h, v1)
           b = MatMul(h, w2)  k = Relu(b)  z0 = MatMul(k, v2)  z1 = Relu(z0)  z = MatMul(z1, w4)
           s = Add(f, x)
           y = MatMul(s, w3) }}"""
    weights = floats(0, w1=(8, 6), v1=(6, 8), w2=(6, 5), v2=(5, 4), w3=(8, 8), w4=(4, 4))
    weights["w1"][:, 4] = 2 * weights["w1"][:, 1]
    proto = parse(body, weights)
    feeds = batches({"x": images(96, 8)})
    found = solve(proto, classes_of(proto, "w1", 1, (4,)), feeds, EXACT)
    assert {"f", "b"} <= found.repaired()
    fresh = {"x": images(30, 8, seed=7)}
    assert difference(outputs(proto, fresh), outputs(found.sliced, fresh)) < 1e-3


def test_a_context_that_is_added_to_every_position() -> None:
    """The layer has one row for each sample, the sum one for each position."""
    body = f"""{HEAD} g (float[N, 3, 4, 4] x) => (float[N, 5, 4, 4] y)
        {{ a = Conv(x, w1)  h = Relu(a)
           m = GlobalAveragePool(h)
           c = Conv(m, w2)
           s = Add(h, c)
           r = Relu(s)
           y = Conv(r, w3) }}"""
    weights = floats(0, w1=(6, 3, 1, 1), w2=(6, 6, 1, 1), w3=(5, 6, 1, 1))
    proto = parse(body, weights)
    feeds = batches({"x": images(96, 3, 4, 4)})
    found = solve(proto, classes_of(proto, "w1", 0, (4,)), feeds)
    assert found.refit.layers


def test_an_embedding_of_positions_is_not_learnt_twice() -> None:
    """Rows at later positions are larger, as is what is added there."""
    body = f"""{HEAD} g (float[N, 5, 8] x) => (float[N, 5, 3] y)
        {{ a = MatMul(x, w1)  h = Relu(a)  f = MatMul(h, v1)
           s = Add(f, pos)  r = Relu(s)  y = MatMul(r, w2) }}"""
    weights = floats(0, w1=(8, 6), v1=(6, 4), w2=(4, 3))
    weights["w1"][:, 4] = 2 * weights["w1"][:, 1]
    weights["pos"] = np.repeat(np.arange(5, dtype=np.float32)[:, None], 4, axis=1)
    proto = parse(body, weights)
    along = np.arange(1, 6, dtype=np.float32)[:, None]
    feeds = batches({"x": images(96, 5, 8) + along})
    found = solve(proto, classes_of(proto, "w1", 1, (4,)), feeds, EXACT)
    fresh = {"x": images(30, 5, 8, seed=7) - 2 * along}
    assert difference(outputs(proto, fresh), outputs(found.sliced, fresh)) < 1e-3


def test_a_parallel_branch_repairs_what_its_sister_has_lost() -> None:
    """It reads what the original reads; what the sum lacks is known all the same."""
    body = f"""{HEAD} g (float[N, 8] x) => (float[N, 4] y)
        {{ a = MatMul(x, w1)  h = Relu(a)  f = MatMul(h, v1)
           b = MatMul(x, w2)  k = Relu(b)  d = MatMul(k, v2)
           t = Add(f, d)
           y = MatMul(t, w3) }}"""
    weights = floats(0, w1=(8, 5), v1=(5, 8), w2=(8, 5), v2=(5, 8), w3=(8, 4))
    weights["w2"][...] = weights["w1"]
    proto = parse(body, weights)
    feeds = batches({"x": images(200, 8)}, 25)
    found = solve(proto, classes_of(proto, "w1", 1, (0, 3)), feeds, EXACT)
    fresh = {"x": images(30, 8, seed=7)}
    assert difference(outputs(proto, fresh), outputs(found.sliced, fresh)) < 1e-3
