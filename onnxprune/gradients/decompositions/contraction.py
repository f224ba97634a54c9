"""Contractions fused with what is done to their operands or result."""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.gradients.decompositions.fused import CONVOLUTION, Decomposition, Fused, body

_PARAMETERS = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta")}


def _matmul(node: Fused) -> Decomposition:
    """FusedMatMul and TransposeMatMul: alpha A' B'."""
    text, names = "", {"a": "a", "b": "b"}
    for slot, name, suffix in ((0, "a", "A"), (1, "b", "B")):
        node.require(not node.attribute(f"transBatch{suffix}", 0), f"transBatch{suffix} = 0")
        if node.attribute(f"trans{suffix}", 0):
            rank = len(node.shape(slot))
            order = [*range(rank - 2), rank - 1, rank - 2]
            text += f"{name}t = Transpose<perm = {order}>({name}) "
            names[name] = f"{name}t"
    factor = float(node.attribute("alpha", 1.0))
    text += f"p = MatMul({names['a']}, {names['b']}) f = Constant<value = float {{{factor}}}>()"
    return body("a, b", "y", f"{text} y = Mul(p, f)")


def _gemm(node: Fused) -> Decomposition:
    """FusedGemm: an activation of a Gemm."""
    activation = node.attribute("activation", "Identity")
    attributes = node.attributes("alpha", "beta", "transA", "transB")
    return body("a, b, c", "y", f"p = Gemm{attributes}(a, b, c) y = {activation}(p)")


def _conv(node: Fused) -> Decomposition:
    """FusedConv: an activation of a Conv, to which something may have been added."""
    kind = node.attribute("activation", "Identity")
    parameters = tuple(node.attribute("activation_params", ()))
    known = kind in _PARAMETERS or not parameters
    node.require(known, f"an activation without parameters, not {kind}")
    pairs = zip(_PARAMETERS.get(kind, ()), parameters, strict=False)
    of_kind = ", ".join(f"{name} = {float(value)}" for name, value in pairs)
    call = f"{kind}<{of_kind}>" if of_kind else kind
    added = "s = Add(c, z)" if node.has(3) else "s = Identity(c)"
    return body(
        "x, w, b, z", "y", f"c = Conv{node.attributes(*CONVOLUTION)}(x, w, b) {added} y = {call}(s)"
    )


def _matmul_integer(node: Fused) -> Decomposition:
    """MatMulInteger, in floating point."""
    return body("a, b, az, bz", "y", _integers(node, "MatMul"))


def _conv_integer(node: Fused) -> Decomposition:
    """ConvInteger, in floating point."""
    return body("a, b, az, bz", "y", _integers(node, f"Conv{node.attributes(*CONVOLUTION)}"))


def _integers(node: Fused, call: str) -> str:
    text = ""
    for slot, name in ((2, "a"), (3, "b")):
        text += f"{name}f = Cast<to = 1>({name}) "
        if node.has(slot):
            known = len(node.shape(slot)) == 0 or node.shape(slot) == (1,) or name == "b"
            node.require(known, "one zero point for the activation")
            shift = f"{name}zf = Cast<to = 1>({name}z) {name}d = Sub({name}f, {name}zf) "
            text += shift
        else:
            text += f"{name}d = Identity({name}f) "
    return f"{text} y = {call}(ad, bd)"


BODIES: dict[tuple[str, str], Callable[[Fused], Decomposition]] = {
    ("com.microsoft", "FusedMatMul"): _matmul,
    ("com.microsoft", "TransposeMatMul"): _matmul,
    ("com.microsoft", "FusedGemm"): _gemm,
    ("com.microsoft", "FusedConv"): _conv,
    ("", "MatMulInteger"): _matmul_integer,
    ("", "ConvInteger"): _conv_integer,
}
"""Body of every operator, by domain and name."""
