"""Walking through a model on all batches: values, memory, and nodes that change on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.networks import BLOCKS, Map, Net, conv
from helpers.oracle import ONE_THREAD, outputs, parse
from helpers.paths import MODELS
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.calibration.walk import Walk
from onnxprune.model.execution import node_reads
from onnxprune.model.load import load

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def every_value(proto: onnx.ModelProto, feed: dict[str, Any]) -> dict[str, Any]:
    """All tensors of a model in a plain run."""
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    known = {value.name for value in whole.graph.output}
    for node in whole.graph.node:
        for name in node.output:
            if name and name not in known:
                whole.graph.output.add().name = name
    return outputs(whole, feed)


def held(walk: Walk) -> set[str]:
    return set(walk._values[0])


def read_later(model: ir.Model, done: list[ir.Node]) -> set[str]:
    """Values that what has not run yet reads, and outputs of the graph."""
    wanted = {value.name or "" for value in model.graph.outputs}
    for node in model.graph:
        if node not in done:
            wanted |= {value.name or "" for value in node_reads(node)}
    return wanted


def check_every_stop(proto: onnx.ModelProto, feeds: list[dict[str, Any]], stops: list[int]) -> None:
    model = load(proto).model
    proto = ir.to_proto(model)
    plain = [every_value(proto, feed) | feed for feed in feeds]
    walk = Walk(model, feeds, ONE_THREAD)
    nodes = list(model.graph)
    for stop in (*sorted(stops), None):
        walk.advance(nodes[stop] if stop is not None else None)
        done = nodes[:stop]
        computed = {v.name for node in done for v in node.outputs} | feeds[0].keys()
        assert held(walk) == read_later(model, done) & computed
        for name in held(walk):
            for got, wanted in zip(walk[name], plain, strict=True):
                assert got.shape == wanted[name].shape
                np.testing.assert_allclose(got, wanted[name], rtol=1e-4, atol=1e-5)


@settings(max_examples=25)
@given(data=st.data())
def test_values_are_those_of_a_plain_run_and_nothing_is_held_in_vain(data: st.DataObject) -> None:
    net = Net(lambda options: data.draw(st.sampled_from(options)), 0)
    source = Map("input", (3, 8, 8))
    blocks = data.draw(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=4), "blocks")
    x = conv(net, source)
    for name in blocks:
        x = BLOCKS[name](net, x)
    proto = net.model(source, x)
    rng = np.random.default_rng(0)
    feeds = [{"input": rng.standard_normal((n, 3, 8, 8)).astype(np.float32)} for n in (2, 3)]
    last = len(load(proto).model.graph) - 1
    stops = data.draw(st.lists(st.integers(0, last), max_size=4), "stops")
    check_every_stop(proto, feeds, stops)


@pytest.mark.parametrize("name", ["digits_resnet", "digits_transformer"])
def test_real_models_node_by_node(name: str) -> None:
    proto = onnx.load(MODELS / f"{name}.onnx")
    samples = np.load(MODELS / f"{name}_calibration.npz")
    feeds = [{key: samples[key][i : i + 4] for key in samples.files} for i in (0, 4)]
    check_every_stop(proto, feeds, list(range(0, len(proto.graph.node), 3)))


BRANCHES = f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z)
    {{ a = MatMul(x, w)
       b = Relu(a)
       c = Relu(x)
       d = Add(a, c)
       y = Add(d, b)
       e = Tanh(c)
       z = Neg(e) }}"""


def branches() -> tuple[ir.Model, list[dict[str, Any]], dict[str, Any]]:
    rng = np.random.default_rng(0)
    proto = parse(BRANCHES, {"w": rng.standard_normal((4, 4)).astype(np.float32)})
    feeds = [{"x": rng.standard_normal((n, 4)).astype(np.float32)} for n in (3, 5)]
    return load(proto).model, feeds, every_value(proto, feeds[0])


def node_of(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.outputs[0].name == name)


def test_going_past_a_node_leaves_alone_what_it_does_not_need() -> None:
    """Other branches keep what they read, although they come first in the graph."""
    model, feeds, plain = branches()
    walk = Walk(model, feeds, ONE_THREAD)
    walk.advance(node_of(model, "d"), keep=["d"], past=True)
    np.testing.assert_allclose(walk["d"][0], plain["d"], rtol=1e-5)
    assert held(walk) == {"a", "c", "d"}
    walk.advance(node_of(model, "b"), keep=["b", "d"], past=True)
    np.testing.assert_allclose(walk["b"][0], plain["b"], rtol=1e-5)
    np.testing.assert_allclose(walk["d"][0], plain["d"], rtol=1e-5)
    walk.advance(None)
    for got in walk.values(["y", "z"])[:1]:
        np.testing.assert_allclose(got["y"], plain["y"], rtol=1e-5)
        np.testing.assert_allclose(got["z"], plain["z"], rtol=1e-5)


def test_what_is_kept_is_kept_once() -> None:
    model, feeds, _ = branches()
    walk = Walk(model, feeds, ONE_THREAD)
    walk.advance(node_of(model, "e"), keep=["a"])
    assert "a" in walk
    walk.advance(node_of(model, "z"))
    assert "a" not in walk


def test_a_look_ahead_moves_nothing() -> None:
    model, feeds, plain = branches()
    walk = Walk(model, feeds, ONE_THREAD)
    walk.advance(node_of(model, "b"))
    before = held(walk)
    seen = walk.preview(node_of(model, "y"), ["y"])
    np.testing.assert_allclose(seen["y"], plain["y"], rtol=1e-5)
    assert held(walk) == before
    walk.advance(node_of(model, "z"))
    np.testing.assert_allclose(walk["e"][0], plain["e"], rtol=1e-5)


def test_nodes_ahead_may_be_changed() -> None:
    """Another weight, a new node, and constants whose chain has run before and is dropped."""
    body = f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y)
        {{ turned = Transpose<perm = [1, 0]>(w)
           a = Relu(x)
           b = MatMul(a, turned)
           y = Relu(b) }}"""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 4)).astype(np.float32)
    model = load(parse(body, {"w": weight})).model
    feeds = [{"x": rng.standard_normal((3, 4)).astype(np.float32)}]
    walk = Walk(model, feeds, ONE_THREAD)
    product = node_of(model, "b")
    walk.advance(product)
    new = ir.Value(name="new", const_value=ir.tensor(2 * weight, name="new"))
    model.graph.register_initializer(new)
    product.replace_input_with(1, new)
    model.graph.remove(node_of(model, "turned"), safe=True)
    for _ in range(50):  # a new node must not be taken for one that has run and is gone
        shift = ir.Node("", "Neg", [product.outputs[0]], num_outputs=1)
        shift.outputs[0].name = "negated"
    model.graph.insert_after(product, shift)
    node_of(model, "y").replace_input_with(0, shift.outputs[0])
    walk.advance(None)
    wanted = np.maximum(-(np.maximum(feeds[0]["x"], 0) @ (2 * weight)), 0)
    np.testing.assert_allclose(walk["y"][0], wanted, rtol=1e-4, atol=1e-5)


def test_scalars_stay_scalars() -> None:
    """A size taken from a shape: with one axis more the target of the Reshape is of rank 2."""
    body = f"""{HEAD} g (float[N, 2, 6] x) => (float[N, 12] y)
        {{ shape = Shape(x)
           size = Gather<axis = 0>(shape, zero)
           r = Relu(x)
           axis = Unsqueeze(size, where)
           target = Concat<axis = 0>(axis, rest)
           y = Reshape(r, target) }}"""
    weights = {"zero": np.array(0), "where": np.array([0]), "rest": np.array([12])}
    proto = parse(body, weights)
    feeds = [{"x": np.ones((n, 2, 6), np.float32)} for n in (2, 3)]
    check_every_stop(proto, feeds, list(range(6)))


def test_sequences_cross_from_piece_to_piece() -> None:
    body = f"""{HEAD} g (float[N, 6] x) => (float[N, 6] y)
        {{ parts = SplitToSequence<axis = 1>(x, sizes)
           r = Relu(x)
           joined = ConcatFromSequence<axis = 1>(parts)
           y = Add(r, joined) }}"""
    proto = parse(body, {"sizes": np.array([2, 4])})
    model = load(proto).model
    feeds = [{"x": np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)}]
    walk = Walk(model, feeds, ONE_THREAD)
    walk.advance(node_of(model, "joined"))
    walk.advance(None)
    np.testing.assert_allclose(walk["y"][0], np.maximum(feeds[0]["x"], 0) + feeds[0]["x"])


def test_subgraphs_read_what_lies_around_them() -> None:
    body = f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y)
        {{ a = Relu(x)
           b = Neg(x)
           large = Cast<to = 9>(one)
           c = If (large) <
             then_branch = t () => (float[N, 4] u) {{ u = Add(a, b) }},
             else_branch = f () => (float[N, 4] v) {{ v = Identity(b) }}
           >
           y = Relu(c) }}"""
    proto = parse(body, {"one": np.array(1.0, np.float32)})
    feeds = [{"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)}]
    check_every_stop(proto, feeds, [1, 2, 3, 4])


def test_outputs_that_are_inputs_or_constants() -> None:
    body = f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y, float[N, 4] x, float[2] w)
        {{ y = Relu(x) }}"""
    model = load(parse(body, {"w": np.array([1.0, 2.0], np.float32)})).model
    feeds = [{"x": np.ones((2, 4), np.float32)}]
    walk = Walk(model, feeds, ONE_THREAD)
    walk.advance(None)
    (values,) = walk.values(["y", "x", "w"])
    np.testing.assert_array_equal(values["w"], [1, 2])
    np.testing.assert_array_equal(values["x"], values["y"])


@pytest.mark.parametrize("stop", ["a", "d", "y", "e", None])
def test_batches_that_come_later_catch_up(stop: str | None) -> None:
    model, feeds, _ = branches()
    whole, late = Walk(model, feeds, ONE_THREAD), Walk(model, feeds[:1], ONE_THREAD)
    for walk in (whole, late):
        walk.advance(node_of(model, stop) if stop is not None else None)
    late.admit(feeds[1:])
    assert len(late) == len(whole) == 2
    assert held(late) == held(whole)
    assert all(values.keys() == held(late) for values in late._values)
    for name in held(whole):
        for got, wanted in zip(late[name], whole[name], strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    for walk in (whole, late):
        walk.advance(None)
    np.testing.assert_allclose(late["z"][1], whole["z"][1], rtol=1e-5, atol=1e-6)


def test_batches_catch_up_with_what_ran_ahead_on_one_branch_only() -> None:
    model, feeds, _ = branches()
    walk = Walk(model, feeds[:1], ONE_THREAD)
    walk.advance(node_of(model, "d"), keep=["d"], past=True)
    walk.admit(feeds[1:])
    assert held(walk) == walk._values[1].keys() == {"a", "c", "d"}
