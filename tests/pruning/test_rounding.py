"""With `round_to` an axis keeps a multiple of that many units, or all of them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.fuzzing import attentive, convolutional
from helpers.oracle import ONE_THREAD, feed, parse, traced
from hypothesis import given, note, settings
from hypothesis import strategies as st

import onnxprune
from onnxprune import NothingPrunable, VerificationError
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.samples import read_samples
from onnxprune.coupling.analysis import analyse
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import load
from onnxprune.options import PruneOptions
from onnxprune.pruning.method import Method
from onnxprune.pruning.run import PruneRun

TWO_LAYERS = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 6] x) => (float[N, 4] y)
    { a = MatMul(x, w1)
      b = Relu(a)
      c = MatMul(b, w2)
      d = Relu(c)
      y = MatMul(d, w3) }"""

ATTENTION = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 5, 12] x) => (float[N, 5, 4] y)
    { q1 = MatMul(x, q)
      q2 = Reshape(q1, apart)
      q3 = Transpose<perm = [0, 2, 1, 3]>(q2)
      k1 = MatMul(x, k)
      k2 = Reshape(k1, apart)
      k3 = Transpose<perm = [0, 2, 3, 1]>(k2)
      v1 = MatMul(x, v)
      v2 = Reshape(v1, apart)
      v3 = Transpose<perm = [0, 2, 1, 3]>(v2)
      scores = MatMul(q3, k3)
      weights = Softmax(scores)
      mixed = MatMul(weights, v3)
      back = Transpose<perm = [0, 2, 1, 3]>(mixed)
      flat = Reshape(back, together)
      y = MatMul(flat, o) }"""

METHODS: tuple[dict[str, Any], ...] = (
    {"target": {"macs": 0.6}},
    {"target": {"params": 0.7}, "compensate": "mean", "criterion": "l2"},
    {"target": {"params": 0.7}, "compensate": "mean", "criterion": "l2", "allocation": "uniform"},
    {"target": {"channels": 0.6}},
    {"target": {"params": 0.6}, "steps": 2},
    {"target": {"params": 0.8}, "compensate": "none"},
)


def two_layers(dead: int) -> onnx.ModelProto:
    """Groups w1[1] and w2[1] of 12 units, of the first of which some are nought."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (6, 12), "w2": (12, 12), "w3": (12, 4)}
    weights = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    weights["w1"][:, :dead] = 0
    return parse(TWO_LAYERS, weights)


def attention(heads: int, size: int) -> onnx.ModelProto:
    """One layer of attention over tokens of 12 features."""
    width = heads * size
    rng = np.random.default_rng(0)
    shapes = {"q": (12, width), "k": (12, width), "v": (12, width), "o": (width, 4)}
    weights: dict[str, Any] = {
        n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()
    }
    weights |= {"apart": np.array([0, 5, heads, size]), "together": np.array([0, 5, width])}
    return parse(ATTENTION, weights)


def with_dead_units(proto: onnx.ModelProto, share: float, seed: int) -> onnx.ModelProto:
    """Some of the filters and features are nought."""
    rng = np.random.default_rng(seed)
    for tensor in proto.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor).copy()
        if value.dtype == np.float32 and value.ndim in (2, 4):
            axis = 0 if value.ndim == 4 else 1
            dead = rng.random(value.shape[axis]) < share
            np.moveaxis(value, axis, 0)[dead] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return proto


def widths_of(proto: onnx.ModelProto, result: onnxprune.PruneResult) -> list[tuple[int, int]]:
    """Units of every axis before and after."""
    removed = {one.id: set(one.removed) for one in result.plan.groups}
    return [
        (len(axis), len(set(axis) - removed.get(group.name, set())))
        for group in traced(proto).groups
        for axis in group.axes
    ]


def barely(dead: int) -> onnxprune.PruneResult:
    """Prune to a target that every group meets as it is."""
    proto = two_layers(dead)
    return onnxprune.prune(
        proto,
        calibration=feed(proto, 96),
        target={"channels": 0.99},
        round_to=5,
        threads=1,
        measure_latency=False,
        force=True,
    )


@pytest.mark.parametrize(("dead", "left"), [(3, 10), (6, 10), (7, 5), (8, 5)])
def test_units_that_go_for_free_keep_to_the_multiple(dead: int, left: int) -> None:
    assert barely(dead).report.widths == {"w1[1]": (12, left)}


def test_units_that_go_for_free_stay_where_they_reach_no_multiple() -> None:
    with pytest.raises(NothingPrunable):
        barely(1)


def test_parts_of_a_group_that_share_an_axis_keep_multiples_together() -> None:
    """Heads and the dimensions of heads go independently of each other, in any combination."""
    proto = attention(heads=4, size=16)
    options = PruneOptions(
        {"params": 0.6}, "reconstruction", "least-squares", round_to=8, runtime=ONE_THREAD
    )
    loaded = load(proto)
    samples = read_samples(feed(proto, 16), input_specs(loaded.model))
    context = RunContext(samples, None, options.runtime, options.seed)
    run = PruneRun(analyse(loaded.model, context), Method.of(options), context)
    (ranked,) = (one for one in run.ranked(options.target) if one.parts)
    group = ranked.group
    for ends in itertools.product(*(range(len(part.steps) + 1) for part in ranked.parts)):
        chosen = zip(ranked.parts, ends, strict=True)
        gone = {one for part, end in chosen for step in part.steps[:end] for one in step.units}
        left = ~np.isin(group.units, list(gone))
        widths = [int(left[list(axis)].sum()) for axis in group.axes]
        assert all(width % 8 == 0 for width in widths), (ends, widths)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    subject=st.sampled_from((convolutional, attentive)),
    multiple=st.integers(2, 6),
    dead=st.sampled_from((0.0, 0.3)),
    method=st.sampled_from(METHODS),
)
def test_every_axis_that_is_cut_keeps_a_multiple(
    seed: int, subject: Any, multiple: int, dead: float, method: dict[str, Any]
) -> None:
    proto = with_dead_units(subject(np.random.default_rng(seed)), dead, seed)
    samples = None if method.get("compensate") == "none" else feed(proto, 32)
    try:
        result = onnxprune.prune(
            proto,
            calibration=samples,
            round_to=multiple,
            threads=1,
            measure_latency=False,
            force=True,
            **method,
        )
    except (NothingPrunable, VerificationError) as error:
        note(str(error))
        return
    widths = widths_of(proto, result)
    note(str(widths))
    assert any(after < before for before, after in widths)
    assert all(after in (before, after // multiple * multiple) for before, after in widths)
