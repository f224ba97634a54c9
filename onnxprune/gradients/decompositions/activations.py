"""Activations fused with the bias before them."""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.gradients.decompositions.fused import Decomposition, Fused, body


def _bias_gelu(node: Fused) -> Decomposition:
    return body("x, b", "y", "s = Add(x, b) y = com.microsoft.Gelu(s)")


def _fast_gelu(node: Fused) -> Decomposition:
    """By the hyperbolic tangent: x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    added = "s = Add(x, b)" if node.has(1) else "s = Identity(x)"
    return body(
        "x, b",
        "y",
        f"""{added} c = Mul(s, s) half = Constant<value = float {{0.5}}>()
        cube = Constant<value = float {{0.044715}}>() one = Constant<value = float {{1.0}}>()
        root = Constant<value = float {{0.7978845608028654}}>()
        d = Mul(c, cube) e = Add(d, one) f = Mul(e, s) g = Mul(f, root) t = Tanh(g)
        u = Add(t, one) v = Mul(u, half) y = Mul(s, v)""",
    )


BODIES: dict[tuple[str, str], Callable[[Fused], Decomposition]] = {
    ("com.microsoft", "BiasGelu"): _bias_gelu,
    ("com.microsoft", "FastGelu"): _fast_gelu,
}
"""Body of every operator, by domain and name."""
