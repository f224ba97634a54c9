"""Axes that normalisation statistics run over, cut on request."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

import onnxprune

WIDTH, BATCH = 8, 3

LAYER = "n = LayerNormalization<axis=-1>(h, g, c)"
RMS = """
    s = Mul(h, h)
    m = ReduceMean(s, last)
    e = Add(m, tiny)
    r = Sqrt(e)
    d = Div(h, r)
    n = Mul(d, g)
"""
DECOMPOSED = """
    m = ReduceMean(h, last)
    z = Sub(h, m)
    q = Mul(z, z)
    v = ReduceMean(q, last)
    e = Add(v, tiny)
    r = Sqrt(e)
    d = Div(z, r)
    n = Mul(d, g)
"""


def network(norm: str, seed: int = 0) -> onnx.ModelProto:
    """A residual stream of 8 units, normalised, read by one layer, written by two."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        net (float[N, 5] x) => (float[N, 3] y)
        <int64[1] last = {{-1}}, float tiny = {{0.00001}}>
        {{
            a = MatMul(x, w1)
            t = MatMul(x, w2)
            h = Add(a, t)
            {norm}
            y = MatMul(n, w3)
        }}
    """)
    rng = np.random.default_rng(seed)
    shapes = {"w1": (5, WIDTH), "w2": (5, WIDTH), "w3": (WIDTH, 3), "g": (WIDTH,), "c": (WIDTH,)}
    for name, shape in shapes.items():
        if name.startswith("w") or f", {name}" in norm:
            value = rng.standard_normal(shape).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """The output in onnxruntime."""
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def with_zeros(model: onnx.ModelProto, plan: onnxprune.Plan) -> onnx.ModelProto:
    """The original with the slices the plan does not keep at zero."""
    masked = onnx.ModelProto()
    masked.CopyFrom(model)
    for tensor in masked.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor).copy()
        for axis, kept in plan.initializers.get(tensor.name, {}).items():
            gone = np.setdiff1d(np.arange(value.shape[axis]), kept)
            value[(slice(None),) * axis + (gone,)] = 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return masked


REFUSED = "takes statistics over it .*; --normalised-axes cuts it nevertheless"


@pytest.mark.parametrize("norm", [LAYER, RMS, DECOMPOSED], ids=["layer", "rms", "decomposed"])
def test_normalised_axes_stay_whole_where_this_is_asked_for(norm: str) -> None:
    given = {"target": {"channels": 0.5}, "measure_latency": False}
    with pytest.raises(onnxprune.NothingPrunable, match=REFUSED):
        onnxprune.prune(network(norm), normalised_axes=False, **given)


def test_by_default_what_is_not_exact_stays_whole() -> None:
    with pytest.raises(onnxprune.NothingPrunable, match=REFUSED):
        onnxprune.prune(network(DECOMPOSED), target={"channels": 0.5}, measure_latency=False)


@pytest.mark.parametrize("norm", [LAYER, RMS], ids=["layer", "rms"])
def test_removed_entries_go_on_counting_as_zeros(norm: str) -> None:
    model = network(norm)
    result = onnxprune.prune(
        model, target={"channels": 0.5}, normalised_axes=True, measure_latency=False
    )
    assert result.report.certificate.holds
    assert len(result.plan.initializers["w3"][0]) == WIDTH // 2
    assert not result.report.inexact
    x = np.random.default_rng(1).standard_normal((BATCH, 5)).astype(np.float32)
    wanted = run(with_zeros(model, result.plan), x)
    assert np.abs(wanted - run(model, x)).max() > 0.1
    np.testing.assert_allclose(run(result.model, x), wanted, rtol=1e-4, atol=1e-5)


def test_a_decomposed_layer_norm_is_cut_and_said_to_be_inexact() -> None:
    model = network(DECOMPOSED)
    result = onnxprune.prune(
        model, target={"channels": 0.5}, normalised_axes=True, measure_latency=False
    )
    assert result.report.certificate.holds
    assert result.report.result.params < 0.6 * result.report.original.params
    assert result.report.inexact == tuple(group.id for group in result.plan.groups)
    again = onnxprune.Plan.from_json(result.plan.to_json())
    assert again.groups[0].inexact
    repeated = onnxprune.apply(model, again, measure_latency=False)
    assert repeated.model.SerializeToString() == result.model.SerializeToString()


def test_a_decomposed_layer_norm_takes_its_variance_over_what_is_kept() -> None:
    model = network(DECOMPOSED)
    result = onnxprune.prune(
        model, target={"channels": 0.5}, normalised_axes=True, measure_latency=False
    )
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    kept = list(result.plan.initializers["w3"][0])
    x = np.random.default_rng(1).standard_normal((BATCH, 5)).astype(np.float32)
    h = (x @ weights["w1"] + x @ weights["w2"])[:, kept]
    centred = h - h.sum(axis=1, keepdims=True) / WIDTH
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / WIDTH + 1e-5)
    wanted = centred / deviation * weights["g"][kept] @ weights["w3"][kept]
    np.testing.assert_allclose(run(result.model, x), wanted, rtol=1e-4, atol=1e-5)
