"""What solving layers anew leaves alone, open choices, and its result."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import difference, outputs, parse, traced
from helpers.quantised import ONE_STEP
from helpers.solving import (
    CONTEXT,
    EXACT,
    HEAD,
    batches,
    classes_of,
    floats,
    images,
    masked_only,
    mlp,
    solve,
)

from onnxprune.compensation.least_squares import LeastSquares, OpenChoice, Settings
from onnxprune.surgery.editable_model import EditableModel


def test_shared_weights_and_stacks_of_matrices_keep_their_values() -> None:
    body = f"""{HEAD} g (float[3, N, 8] x) => (float[3, N, 8] y)
        {{ a = MatMul(x, w1)  h = Relu(a)
           b = MatMul(h, stack)  c = Relu(b)
           d = MatMul(c, shared)  e = Relu(d)  f = MatMul(e, shared)  k = Relu(f)
           y = MatMul(k, w2) }}"""
    weights = floats(0, w1=(8, 6), stack=(3, 6, 5), shared=(5, 5), w2=(5, 8))
    proto = parse(body, weights)
    feeds = [{"x": images(3, 16, 8, seed=seed)} for seed in range(6)]
    found = solve(proto, classes_of(proto, "w1", 1, (1, 4)), feeds)
    masked_only(found, "stack", 1, (1, 4))
    masked_only(found, "shared", 0, ())
    assert not found.repaired() & {"b", "d", "f"}


def test_quantised_weights_keep_their_values() -> None:
    body = """<ir_version: 10, opset_import: ["": 21]> g (float[N, 8] x) => (float[N, 4] y)
        { a = MatMul(x, w1)  h = Relu(a)
          w2 = DequantizeLinear(q2, scale)
          b = MatMul(h, w2)  c = Relu(b)
          y = MatMul(c, w3) }"""
    weights: dict[str, Any] = floats(0, w1=(8, 6), w3=(5, 4))
    weights["q2"] = np.random.default_rng(0).integers(-127, 127, (6, 5)).astype(np.int8)
    weights["scale"] = np.array(0.01, np.float32)
    proto = parse(body, weights)
    feeds = batches({"x": images(96, 8)})
    found = solve(proto, classes_of(proto, "w1", 1, (1, 4)), feeds, tolerance=ONE_STEP)
    masked_only(found, "q2", 0, (1, 4))
    assert "b" not in found.repaired()


def test_the_last_layer_is_only_touched_where_its_own_input_is_cut() -> None:
    proto, feeds = mlp(), batches({"x": images(96, 8)})
    found = solve(proto, classes_of(proto, "w1", 1, range(6)), feeds)
    assert "b" in found.repaired()
    masked_only(found, "w3", 0, ())
    masked_only(found, "b3", 0, ())
    assert "y" not in {one.node for one in found.refit.layers}
    cut = solve(proto, classes_of(proto, "w2", 1, range(6)), feeds)
    assert "y" in cut.repaired()
    assert (cut.weight("w3")[6:] != found.weight("w3")[6:]).any()
    masked_only(cut, "w1", 0, ())


def test_layers_that_read_what_they_did_before_keep_their_weights() -> None:
    proto, feeds = mlp(), batches({"x": images(96, 8)})
    assert not solve(proto, [], feeds).refit.layers
    without = solve(proto, classes_of(proto, "w1", 1, (0,)), feeds, Settings(refit=False))
    assert {one.node for one in without.refit.layers} <= {"a", "b"}


def test_too_many_unknowns_are_a_reason() -> None:
    proto, feeds = mlp(), batches({"x": images(96, 8)})
    found = solve(proto, classes_of(proto, "w1", 1, (0,)), feeds, Settings(largest=10))
    (reason,) = (one.reason for one in found.refit.layers if one.node == "b")
    assert "12 unknowns" in reason
    assert found.refit.layers[0].reason == "nothing is lost there"  # it only makes fewer units


@pytest.mark.parametrize("count", [1, 5, 11])
def test_an_open_group_loses_as_many_units_as_asked(count: int) -> None:
    proto, feeds = mlp(), batches({"x": images(96, 8)})
    subject = traced(proto)
    group = next(one for one in subject.groups if one.name == "w1[1]")
    found = solve(proto, [], feeds, choices=[OpenChoice(group, count)])
    chosen = found.refit.chosen["w1[1]"]
    assert len(set(chosen)) == count
    assert set(chosen) <= set(group.units.tolist())
    shapes = {one.name: tuple(one.dims) for one in found.sliced.graph.initializer}
    assert shapes["w1"] == (8, 12 - count)
    assert shapes["w2"] == (12 - count, 12)


def test_an_open_group_loses_what_can_be_made_up_for() -> None:
    """Units that are multiples of others; which, depends on what is computed there."""
    proto = mlp()
    tensors = {one.name: one for one in proto.graph.initializer}
    for name in ("w1", "b1"):
        array = onnx.numpy_helper.to_array(tensors[name]).copy()
        array[..., [2, 7, 9]] = array[..., [0, 0, 5]] * np.array([2, 0.5, 3])
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
    feeds = batches({"x": images(96, 8)})
    group = next(one for one in traced(proto).groups if one.name == "w1[1]")
    found = solve(proto, [], feeds, EXACT, [OpenChoice(group, 3)])
    units = {group.units.tolist().index(one) for one in found.refit.chosen["w1[1]"]}
    assert len(units & {0, 2, 7}) == 2
    assert len(units & {5, 9}) == 1
    fresh = {"x": images(30, 8, seed=7)}
    assert difference(outputs(proto, fresh), outputs(found.sliced, fresh)) < 1e-3


def test_it_says_whether_it_changed_anything() -> None:
    proto, feeds = mlp(), batches({"x": images(96, 8)})
    subject = traced(proto)
    for units, modified in (((), False), ((0, 1), True)):
        full = EditableModel(subject.model.clone(), subject.coupling)
        dead = classes_of(proto, "w1", 1, units)
        refit = LeastSquares(full, subject.model, feeds, CONTEXT).fit(dead)
        assert bool(refit.solved) is modified


def test_the_same_every_time() -> None:
    proto, feeds = mlp(), batches({"x": images(96, 8)})
    dead = classes_of(proto, "w1", 1, range(6))
    first, second = (solve(proto, dead, feeds, Settings(rows=40)) for _ in range(2))
    assert first.sliced.SerializeToString() == second.sliced.SerializeToString()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_nothing_is_held_back_where_nothing_is_judged(count: int) -> None:
    """The weights are those of all rows, as where both halves are fitted in the end."""
    proto = mlp()
    dead = classes_of(proto, "w1", 1, (0,))
    feeds = batches({"x": images(400 * count, 8)}, 400)
    once: dict[str, Any] = {"ridges": (1e-3,), "iterations": 0}
    all_of_them = solve(proto, dead, feeds, Settings(judged=False, both_halves=False, **once))
    in_the_end = solve(proto, dead, feeds, Settings(judged=True, both_halves=True, **once))
    assert in_the_end.refit.solved >= {"b"}
    found, wanted = (solved.weight("w2") for solved in (all_of_them, in_the_end))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


def test_rows_follow_the_unknowns_between_bounds() -> None:
    few, some, many = (Settings().rows_for(unknowns) for unknowns in (9, 400, 4_000))
    assert few == Settings().least_rows
    assert few < some < many == Settings().rows
