"""Ops that onnxruntime's optimiser writes, and other known ops in one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.rules import Case, check, runnable

CHAIN = {"a": (4, 8), "b": (8, 3)}
PLANE = {"x": "N, 4, 5, 5", "y": "N, 3, 5, 5"}
OVER = "takes statistics over it"
HEADS = {"s": np.array([0, 4, 2]), "z": np.array([0, 8])}
CONTRIB = "com.microsoft."


def element_wise(op: str, arguments: str, *owned: str) -> Case:
    """Zero stays zero: the sum over the channels stays exact."""
    return Case(
        CONTRIB + op,
        f"h = MatMul(x, a) t = {CONTRIB}{op}{arguments} one = Constant<value=int64[1]{{1}}>() "
        "u = ReduceSum(t, one) v = Mul(t, u) y = MatMul(v, b)",
        CHAIN | {name[0]: (8,) for name in owned},
        (f"8: {' '.join(sorted(('a[1]', 'b[0]', *owned)))}",),
    )


def skip_norm(simplified: bool, outputs: str, read: str, *, heads: bool) -> Case:
    """Normalises x + skip + bias over 8 entries, or over the 2 entries of each of 4 heads."""
    op = CONTRIB + ("SkipSimplifiedLayerNormalization" if simplified else "SkipLayerNormalization")
    shift = "" if simplified else ", c"
    names = ("g", "e") if simplified else ("g", "c", "e")
    data = "r = Reshape(h, s) q = Reshape(k, s)" if heads else "r = Identity(h) q = Identity(k)"
    back = "t = Reshape(u, z)" if heads else "t = Identity(u)"
    return Case(
        op,
        f"h = MatMul(x, a) k = MatMul(x, d) {data} {outputs} = {op}(r, q, g{shift}, e) {read} "
        f"{back} y = MatMul(t, b)",
        CHAIN | {"d": (4, 8)} | dict.fromkeys(names, (2 if heads else 8,)),
        ("4: a[1] b[0] d[1] e[0]",) if heads else (),
        "" if heads else OVER,
        values=HEADS,
    )


def conv(
    attributes: str,
    arguments: str,
    *groups: str,
    before: str = "",
    refused: str = "",
    **weights: tuple[int, ...],
) -> Case:
    """FusedConv between two convolutions; a sum over channels shows whether zero stays zero."""
    op = f"{CONTRIB}FusedConv"
    return Case(
        op,
        f"h = Conv(x, a) {before} f = {op}{attributes}{arguments} u = ReduceSum(f, one) "
        "v = Mul(f, u) y = Conv(v, b)",
        {"a": (8, 4, 1, 1), "k": (8, 8, 1, 1), "b": (3, 8, 1, 1), **weights},
        groups,
        refused,
        values={"one": np.array([1])},
        **PLANE,
    )


def half(dtype: str, body: str, groups: tuple[str, ...], refused: str = "") -> Case:
    """Convolutions with weights of 16 bits."""
    number = onnx.TensorProto.DataType.Value(dtype)
    rng = np.random.default_rng(0)

    def tensor(*shape: int) -> onnx.TensorProto:
        return onnx.helper.make_tensor("", number, shape, rng.standard_normal(shape).ravel())

    return Case(
        "Conv",
        body,
        {},
        groups,
        refused,
        values={"a": tensor(8, 4, 1, 1), "c": tensor(8), "b": tensor(3, 8, 1, 1)},
        tolerance=2e-2,
        **PLANE,
    )


CASES = [
    element_wise("Gelu", "(h)"),
    element_wise("QuickGelu", "<alpha=1.7>(h)"),
    element_wise("FastGelu", "(h)"),
    element_wise("FastGelu", "(h, c)", "c[0]"),
    element_wise("BiasGelu", "(h, c)", "c[0]"),
    *(
        skip_norm(simplified, outputs, read, heads=heads)
        for simplified in (False, True)
        for heads in (False, True)
        for outputs, read in (("u", ""), ("n, , , w", "u = Mul(n, w)"))
    ),
    Case(
        CONTRIB + "EmbedLayerNormalization",
        "ids = Cast<to=6>(x) n, m = com.microsoft.EmbedLayerNormalization(ids, , w, p, , g, c) "
        "y = MatMul(n, b)",
        {"w": (9, 8), "p": (4, 8), "g": (8,), "c": (8,), "b": (8, 3)},
        refused="there is no coupling rule for com.microsoft::EmbedLayerNormalization",
        y="N, 4, 3",
    ),
    Case(
        CONTRIB + "FusedMatMul",
        "t = Transpose<perm=[1, 0]>(x) h = com.microsoft.FusedMatMul<transA=1, alpha=0.5>(t, a) "
        "y = com.microsoft.FusedMatMul<transB=1>(h, b)",
        {"a": (4, 8), "b": (3, 8)},
        ("8: a[1] b[1]",),
    ),
    Case(
        CONTRIB + "FusedMatMul",
        "h = MatMul(x, a) t = Transpose(h) y = com.microsoft.FusedMatMul<transA=1>(t, b)",
        CHAIN,
        ("8: a[1] b[0]",),
    ),
    Case(
        CONTRIB + "FusedMatMul",  # scores of 3 heads of 4 dims, and their values
        "q = MatMul(x, a) qr = Reshape(q, s) qh = Transpose<perm=[0, 2, 1, 3]>(qr) "
        "k = MatMul(x, d) kr = Reshape(k, s) kh = Transpose<perm=[0, 2, 1, 3]>(kr) "
        "m = com.microsoft.FusedMatMul<transB=1, alpha=0.5>(qh, kh) p = Softmax(m) "
        "v = MatMul(p, kh) vt = Transpose<perm=[0, 2, 1, 3]>(v) t = Reshape(vt, z) "
        "y = MatMul(t, b)",
        {"a": (4, 12), "d": (4, 12), "b": (12, 3)},
        ("12: a[1] b[0] d[1]",),
        kind="head",
        values={"s": np.array([0, 5, 3, 4]), "z": np.array([0, 5, -1])},
        x="N, 5, 4",
        y="N, 5, 3",
    ),
    Case(
        CONTRIB + "FusedMatMul",
        "h = MatMul(x, a) r = Reshape(h, s) m = com.microsoft.FusedMatMul<transBatchA=1>(r, w) "
        "u = Transpose<perm=[1, 0, 2]>(m) t = Reshape(u, z) y = MatMul(t, b)",
        {"a": (4, 8), "w": (4, 2, 2), "b": (8, 3)},
        refused="transposed batch axes",
        values=HEADS,
    ),
    Case(
        CONTRIB + "FusedGemm",
        'h = com.microsoft.FusedGemm<activation="Relu">(x, a, c) s = ReduceSum(h, one) '
        "t = Mul(h, s) y = MatMul(t, b)",
        CHAIN | {"c": (8,)},
        ("8: a[1] b[0] c[0]",),
        values={"one": np.array([1])},
    ),
    Case(
        CONTRIB + "FusedGemm",
        'h = com.microsoft.FusedGemm<activation="Sigmoid">(x, a, c) s = ReduceSum(h, one) '
        "t = Mul(h, s) y = MatMul(t, b)",
        CHAIN | {"c": (8,)},
        refused="ReduceSum takes statistics over it",
        values={"one": np.array([1])},
    ),
    conv("", "(h, k)", "8: a[0] k[1]", "8: b[1] k[0]"),
    *(
        conv(
            f'<activation="{name}"{more}>', "(h, k, c)", "8: a[0] k[1]", "8: b[1] c[0] k[0]", c=(8,)
        )
        for name, more in (("Relu", ""), ("LeakyRelu", ", activation_params=[0.2]"), ("Tanh", ""))
    ),
    conv(
        '<activation="Relu">',
        "(h, k, c, z)",
        "8: a[0] k[1]",
        "8: b[1] c[0] k[0] w[0]",
        before="z = Conv(x, w)",
        c=(8,),
        w=(8, 4, 1, 1),
    ),
    conv('<activation="Relu">', "(h, k, c, h)", "8: a[0] b[1] c[0] k[0] k[1]", c=(8,)),
    conv('<activation="Sigmoid">', "(h, k)", "8: a[0] k[1]", refused="ReduceSum takes statistics"),
    conv(
        '<activation="Relu", group=2>',
        "(h, k)",
        "14: a[0] b[1] k[0,1] k[0]",
        k=(6, 4, 1, 1),
        b=(3, 6, 1, 1),
    ),
    half(
        "FLOAT16",
        "f = Cast<to=10>(x) h = Conv(f, a, c) r = Relu(h) g = Conv(r, b) y = Cast<to=1>(g)",
        ("8: a[0] b[1] c[0]",),
    ),
    half(  # stored small, computed in 32 bits
        "BFLOAT16",
        "w = Cast<to=1>(a) d = Cast<to=1>(c) v = Cast<to=1>(b) h = Conv(x, w, d) y = Conv(h, v)",
        ("8: a[0] b[1] c[0]",),
        refused="it meets an axis of w that cannot be cut",
    ),
    *(
        Case(
            "LayerNormalization",  # its statistics are those of each head
            "h = MatMul(x, a) r = Reshape(h, s) n, m, i = LayerNormalization(r, g) "
            f"u = {op}(n, {read}) t = Reshape(u, z) y = MatMul(t, b)",
            CHAIN | {"g": (2,)},
            ("4: a[1] b[0]",),
            values=HEADS,
        )
        for op, read in (("Add", "m"), ("Mul", "i"))
    ),
]


@pytest.mark.parametrize("case", runnable(CASES), ids=str)
def test_rule(case: Case) -> None:
    check(case)
