"""Operators that work on quantised tensors: the same on numbers, between both conversions.

Source: the ONNX operator specification; onnxruntime, ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.gradients.decompositions.fused import CONVOLUTION, Decomposition, Fused, body

_FUSED = "com.microsoft"
_ENDS = "ys, yz"
_POOL = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")


def _read(name: str, axis: int | None = None) -> str:
    """From integers to numbers."""
    given = "" if axis is None else f"<axis = {axis}>"
    return f"{name}f = DequantizeLinear{given}({name}, {name}s, {name}z) "


def _written(call: str) -> str:
    """Back to integers."""
    return f"yf = {call} y = QuantizeLinear(yf, ys, yz)"


def _bias(name: str) -> str:
    """A bias has the scale of the products it is added to."""
    return f"cs = Mul(as, bs) ci = Cast<to = 1>({name}) cf = Mul(ci, cs) "


def _conv(node: Fused) -> Decomposition:
    call = f"Conv{node.attributes(*CONVOLUTION)}(af, bf{', cf' if node.has(8) else ''})"
    bias = _bias("c") if node.has(8) else ""
    text = _read("a") + _read("b", 0) + bias + _written(call)
    return body(f"a, as, az, b, bs, bz, {_ENDS}, c", "y", text)


def _matmul(node: Fused) -> Decomposition:
    text = _read("a") + _read("b", len(node.shape(3)) - 1) + _written("MatMul(af, bf)")
    return body(f"a, as, az, b, bs, bz, {_ENDS}", "y", text)


def _gemm(node: Fused) -> Decomposition:
    bias = _bias("c") if node.has(6) else ""
    attributes = node.attributes("alpha", "transA", "transB")
    call = f"Gemm{attributes}(af, bf{', cf' if node.has(6) else ''})"
    axis = 0 if node.attribute("transB", 0) else 1
    end = _written(call) if node.has(7) else f"y = {call}"
    return body(
        f"a, as, az, b, bs, bz, c, {_ENDS}", "y", _read("a") + _read("b", axis) + bias + end
    )


def _of_two(kind: str) -> Callable[[Fused], Decomposition]:
    text = _read("a") + _read("b") + _written(f"{kind}(af, bf)")
    return lambda node: body(f"a, as, az, b, bs, bz, {_ENDS}", "y", text)


def _of_one(kind: str, *names: str) -> Callable[[Fused], Decomposition]:
    def made(node: Fused) -> Decomposition:
        node.require(not node.attribute("channels_last", 0), "channels_last = 0")
        text = _read("a") + _written(f"{kind}{node.attributes(*names)}(af)")
        return body(f"a, as, az, {_ENDS}", "y", text)

    return made


BODIES: dict[tuple[str, str], Callable[[Fused], Decomposition]] = {
    ("", "QLinearConv"): _conv,
    ("", "QLinearMatMul"): _matmul,
    (_FUSED, "QGemm"): _gemm,
    (_FUSED, "QLinearAdd"): _of_two("Add"),
    (_FUSED, "QLinearMul"): _of_two("Mul"),
    (_FUSED, "QLinearSigmoid"): _of_one("Sigmoid"),
    (_FUSED, "QLinearLeakyRelu"): _of_one("LeakyRelu", "alpha"),
    (_FUSED, "QLinearAveragePool"): _of_one("AveragePool", *_POOL),
    (_FUSED, "QLinearGlobalAveragePool"): _of_one("GlobalAveragePool"),
}
"""Body of every operator, by domain and name."""
