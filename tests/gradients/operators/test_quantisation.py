"""Straight through: the gradient is that of the network without rounding."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.differences import emitted_gradient, emitted_gradients
from helpers.oracle import parse
from numpy.typing import NDArray

X = np.random.default_rng(3).uniform(-0.9, 0.9, (2, 3)).astype(np.float32)
SEED = np.random.default_rng(4).standard_normal((2, 3)).astype(np.float32)
WEIGHTS: dict[str, NDArray[np.generic]] = {
    "s": np.array(0.01, np.float32),
    "z": np.array(3, np.int8),
    "channels": np.array([0.01, 0.02, 0.03], np.float32),
    "zeros": np.zeros(3, np.int8),
    "zero": np.array(128, np.uint8),
}


def gradient(
    body: str, x: NDArray[np.float32] = X, **more: NDArray[np.generic]
) -> NDArray[np.generic]:
    text = f"""<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        g (float[N, 3] x) => (float[N, 3] y) {{ {body} }}"""
    return emitted_gradient(parse(text, {**WEIGHTS, **more}), {"x": x}, SEED, "x")


@pytest.mark.parametrize("given", ["s, z", "channels, zeros"])
def test_rounding_hands_the_gradient_on(given: str) -> None:
    found = gradient(f"q = QuantizeLinear(x, {given}) y = DequantizeLinear(q, {given})")
    np.testing.assert_allclose(found, SEED, rtol=1e-5)


def test_a_weight_that_is_quantised_on_the_way() -> None:
    weight = np.random.default_rng(5).uniform(-0.9, 0.9, (3, 3)).astype(np.float32)
    body = """q = QuantizeLinear<axis = 1>(w, channels, zeros)
        d = DequantizeLinear<axis = 1>(q, channels, zeros) y = MatMul(x, d)"""
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3] x) => (float[N, 3] y) {{ {body} }}"""
    proto = parse(text, {**WEIGHTS, "w": weight})
    found = emitted_gradients(proto, {"x": X}, SEED, weights={"w": weight})
    np.testing.assert_allclose(found["w"], X.T @ SEED, rtol=1e-4, atol=1e-5)


def test_an_activation_on_integers_counts_as_one_on_numbers() -> None:
    body = """q = QuantizeLinear(x, s, zero) d = DequantizeLinear(q, s, zero) t = Tanh(d)
        p = QuantizeLinear(t, s, zero) y = DequantizeLinear(p, s, zero)"""
    wanted = SEED * (1 - np.tanh(X) ** 2)
    np.testing.assert_allclose(gradient(body), wanted, atol=0.02)


def test_what_is_out_of_range_has_no_gradient() -> None:
    body = "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)"
    wide = X * 4
    found = gradient(body, wide)
    inside = (wide > -1.31) & (wide < 1.24)
    assert 0 < inside.sum() < inside.size
    np.testing.assert_allclose(found, np.where(inside, SEED, 0), rtol=1e-5)


def test_a_product_of_integers() -> None:
    weight = np.random.default_rng(5).integers(-100, 100, (3, 3)).astype(np.int8)
    body = """q, scale, shift = DynamicQuantizeLinear(x) p = MatMulInteger(q, w, shift, z)
        f = Cast<to = 1>(p) both = Mul(scale, s) y = Mul(f, both)"""
    wanted = SEED @ ((weight.astype(np.float32) - 3) * 0.01).T
    np.testing.assert_allclose(gradient(body, w=weight), wanted, rtol=1e-4, atol=1e-5)


TINY: dict[str, NDArray[np.generic]] = {
    "t": np.array(0.001, np.float32),
    "u": np.array(0, np.uint8),
    "bias": np.array([5, 0, -5], np.int32),
}
"""Steps so small that rounding hardly shows."""

FUSED = {
    "QLinearMatMul(q, s, zero, w, t, u, s, zero)": lambda w: SEED @ w.T,
    "com.microsoft.QGemm(q, s, zero, w, t, u, bias, s, zero)": lambda w: SEED @ w.T,
    "com.microsoft.QLinearAdd(q, s, zero, q, s, zero, wide, zero)": lambda w: 2 * SEED,
    "com.microsoft.QLinearMul(q, s, zero, q, s, zero, s, zero)": lambda w: 2 * X * SEED,
    "com.microsoft.QLinearSigmoid(q, s, zero, s, zero)": lambda w: (
        SEED / (2 + np.exp(X) + np.exp(-X))
    ),
    "com.microsoft.QLinearLeakyRelu<alpha = 0.1>(q, s, zero, s, zero)": lambda w: (
        np.where(X > 0, 1, 0.1) * SEED
    ),
}


@pytest.mark.parametrize("call", FUSED)
def test_operators_on_integers(call: str) -> None:
    weight = np.random.default_rng(6).integers(0, 256, (3, 3)).astype(np.uint8)
    out = "wide" if "wide" in call else "s"
    body = f"""q = QuantizeLinear(x, s, zero) p = {call}
        y = DequantizeLinear(p, {out}, zero)"""
    found = gradient(body, w=weight, **TINY, wide=np.array(0.02, np.float32))
    wanted = FUSED[call](weight.astype(np.float32) * 0.001)
    np.testing.assert_allclose(found, wanted, atol=0.02)


def test_a_convolution_of_integers() -> None:
    weight = np.random.default_rng(6).integers(0, 256, (3, 1, 1)).astype(np.uint8)
    body = """q = QuantizeLinear(x, s, zero) column = Unsqueeze(q, last)
        p = QLinearConv<group = 3>(column, s, zero, w, t, u, s, zero, bias)
        row = Squeeze(p, last) y = DequantizeLinear(row, s, zero)"""
    found = gradient(body, w=weight, **TINY, last=np.array([2]))
    np.testing.assert_allclose(found, SEED * weight.reshape(3) * 0.001, rtol=1e-4, atol=1e-6)
