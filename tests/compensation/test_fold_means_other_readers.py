"""Readers without a bias in real numbers keep their parameters; those with one keep their mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import difference, outputs, parse
from helpers.quantised import CONV_WEIGHTS, LEVELS, MATMUL_WEIGHTS, scales, whole

import onnxprune


def network(
    body: str, shapes: dict[str, tuple[int, ...]], x: str, **values: Any
) -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    text = (
        '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> '
        f"net (float[{x}] x) => (float[K, L, M] y) {{ {body} }}"
    )
    return parse(text, weights | {name: np.asarray(v) for name, v in values.items()})


FEEDS = np.random.default_rng(5).standard_normal((6, 8, 5, 4)).astype(np.float32)

UNFOLDED = {
    "LSTM": network(
        "h = MatMul(x, a) r = Relu(h) s = LSTM<hidden_size=6>(r, w, u) y = Squeeze(s, one)",
        {"a": (4, 12), "w": (1, 24, 12), "u": (1, 24, 6)},
        "N, 5, 4",
        one=np.array([1]),
    ),
    "Attention": network(
        "h = MatMul(x, a) r = Relu(h) y = com.microsoft.Attention<num_heads=2>(r, w, c)",
        {"a": (4, 12), "w": (12, 24), "c": (24,)},
        "N, 5, 4",
    ),
    "FusedMatMul": network(
        "h = MatMul(x, a) r = Relu(h) y = com.microsoft.FusedMatMul<alpha=0.5>(r, w)",
        {"a": (4, 12), "w": (12, 3)},
        "N, 5, 4",
    ),
    "MatMulInteger": network(
        "h = MatMul(x, a) r = Relu(h) q, s, z = DynamicQuantizeLinear(r) "
        "i = MatMulInteger(q, b, z, bz) j = Cast<to=1>(i) y = Mul(j, s)",
        {"a": (4, 8)},
        "N, 5, 4",
        b=MATMUL_WEIGHTS["b"],
        bz=MATMUL_WEIGHTS["bz"],
    ),
    "QLinearConv": network(
        "t = Transpose<perm=[0, 2, 1]>(x) xq = QuantizeLinear(t, xs, xz) "
        "hq = QLinearConv(xq, xs, xz, a, as, az, hs, hz, c) "
        "yq = QLinearConv(hq, hs, hz, b, bs, bz, ys, yz) y = DequantizeLinear(yq, ys, yz)",
        {},
        "N, 5, 4",
        **CONV_WEIGHTS | LEVELS | {"a": whole(8, 4, 1), "b": whole(3, 8, 1, seed=1)},
    ),
}


def pruned(proto: onnx.ModelProto, compensate: str) -> onnx.ModelProto:
    result = onnxprune.prune(
        proto,
        calibration=[{"x": batch} for batch in FEEDS],
        compensate=compensate,
        measure_latency=False,
        force=True,
    )
    assert isinstance(result.model, onnx.ModelProto)
    assert result.plan.groups
    return result.model


@pytest.mark.parametrize("proto", UNFOLDED.values(), ids=UNFOLDED.keys())
def test_a_reader_without_a_bias_to_fold_into_is_left_alone(proto: onnx.ModelProto) -> None:
    feed = {"x": FEEDS[0]}
    plain, folded = (outputs(pruned(proto, how), feed) for how in ("none", "mean"))
    assert difference(plain, folded) == 0.0
    assert difference(outputs(proto, feed), plain) > 1e-3


DEQUANTISED = {
    "MatMul": network(
        "h = MatMul(x, a) r = Relu(h) w = DequantizeLinear<axis=1>(k, s) y = MatMul(r, w)",
        {"a": (4, 12)},
        "N, 5, 4",
        k=whole(12, 3),
        s=scales(3),
    ),
    "Conv": network(
        "t = Transpose<perm=[0, 2, 1]>(x) h = Conv(t, a) r = Relu(h) "
        "w = DequantizeLinear<axis=0>(k, s) d = DequantizeLinear<axis=0>(c, s) y = Conv(r, w, d)",
        {"a": (12, 4, 1)},
        "N, 5, 4",
        k=whole(3, 12, 1),
        s=scales(3),
        c=np.array([-900, 0, 900], np.int32),
    ),
}


@pytest.mark.parametrize("proto", DEQUANTISED.values(), ids=DEQUANTISED.keys())
def test_a_reader_behind_dequantize_linear_keeps_its_mean(proto: onnx.ModelProto) -> None:
    feed = {"x": FEEDS.reshape(-1, 5, 4)}
    before, after = (outputs(model, feed)["y"] for model in (proto, pruned(proto, "mean")))
    channels = 1 if proto.graph.node[-1].op_type == "Conv" else 2
    others = tuple(axis for axis in range(3) if axis != channels)
    np.testing.assert_allclose(after.mean(others), before.mean(others), rtol=1e-3)
    assert np.abs(before - after).max() > 1e-2
