"""Activations fused with the bias before them, and normalisations by a power or a norm."""

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


_AXES_AS_INPUT = 18


def _local_response(node: Fused) -> Decomposition:
    """LRN: x / (bias + alpha / size sum x^2)^beta, the sum over neighbouring channels."""
    size = int(node.attribute("size"))
    before, behind = (size - 1) // 2, size // 2
    alpha, beta = float(node.attribute("alpha", 1e-4)), float(node.attribute("beta", 0.75))
    return body(
        "x",
        "y",
        f"""square = Mul(x, x) lines = Constant<value = int64[4] {{0, 1, {node.shape(0)[1]}, -1}}>()
        flat = Reshape(square, lines)
        mean = AveragePool<kernel_shape = [{size}, 1], pads = [{before}, 0, {behind}, 0],
            count_include_pad = 1>(flat)
        shape = Shape(x) back = Reshape(mean, shape)
        a = Constant<value = float {{{alpha}}}>() k = Constant<value = float {{{beta}}}>()
        b = Constant<value = float {{{float(node.attribute("bias", 1.0))}}}>()
        scaled = Mul(back, a) sum = Add(scaled, b) power = Pow(sum, k) y = Div(x, power)""",
    )


def _unit_length(node: Fused) -> Decomposition:
    """LpNormalization: x over its norm along an axis."""
    order, axis = int(node.attribute("p", 2)), int(node.attribute("axis", -1))
    node.require(order == 2, "p = 2")
    if node.opset < _AXES_AS_INPUT:
        norm = f"n = ReduceL2<axes = [{axis}]>(x)"
    else:
        norm = f"along = Constant<value = int64[1] {{{axis}}}>() n = ReduceL2(x, along)"
    return body("x", "y", f"{norm} y = Div(x, n)")


BODIES: dict[tuple[str, str], Callable[[Fused], Decomposition]] = {
    ("com.microsoft", "BiasGelu"): _bias_gelu,
    ("com.microsoft", "FastGelu"): _fast_gelu,
    ("", "LRN"): _local_response,
    ("", "LpNormalization"): _unit_length,
}
"""Body of every operator, by domain and name."""
