"""Gemm, MatMul, Einsum, Conv and ConvTranspose: what is summed is tied, the rest flows on."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.rules import Case, check, runnable

CHAIN = {"a": (4, 8), "b": (8, 3)}
PLANE = {"x": "N, 4, 5, 5", "y": "N, 3, 5, 5"}
LINE = {"x": "N, 4, 5", "y": "N, 3, 5"}

CASES = [
    # a convolution over tokens with a kernel of one entry: features are places
    Case(
        "Conv",
        "h = MatMul(x, a) t = Conv(h, c, d) g = Mul(h, t) y = MatMul(g, b)",
        {"a": (4, 8), "c": (5, 5, 1), "d": (5,), "b": (8, 3)},
        ("8: a[1] b[0]",),
        x="N, 5, 4",
        y="N, 5, 3",
        refused="it meets an axis of t",  # the tokens
    ),
    *(
        Case(
            "Conv",
            f"h = MatMul(x, a) t = Conv<{how}>(h, c) y = MatMul(t, b)",
            {"a": (4, 8), "c": (5, 5, size), "b": (width, 3)},
            x="N, 5, 4",
            y="N, 5, 3",
            refused="a convolution runs over this axis",
        )
        for how, size, width in (
            ("strides=[2]", 1, 4),
            ("pads=[1, 0]", 1, 9),
            ("pads=[1, 1]", 3, 8),
        )
    ),
    Case("MatMul", "h = MatMul(x, a) y = MatMul(h, b)", CHAIN, ("8: a[1] b[0]",)),
    Case(
        "MatMul",
        "h = MatMul(x, a) t = Transpose<perm=[1, 0]>(h) g = Tanh(h) "
        "s = MatMul(t, g) m = MatMul(g, s) y = MatMul(m, b)",
        CHAIN,
        ("8: a[1] b[0]",),
    ),
    Case(
        "MatMul",
        "h = MatMul(x, a) s = Sigmoid(h) t = Transpose<perm=[1, 0]>(s) q = MatMul(s, t) "
        "m = MatMul(q, h) y = MatMul(m, b)",
        CHAIN,
        refused="a product of two activations",
    ),
    Case(
        "MatMul",
        "h = MatMul(x, a) s = Sigmoid(h) v = MatMul(s, w) u = Constant<value=int64[1]{1}>() "
        "c = Unsqueeze(v, u) y = Mul(c, b)",
        {"a": (4, 8), "w": (8,), "b": (3,)},
        ("8: a[1] w[0]",),
    ),
    Case(
        "Gemm",
        "h = Gemm(x, a, c) y = Gemm<transB=1, alpha=0.5, beta=2.0>(h, b, d)",
        {"a": (4, 8), "c": (8,), "b": (3, 8), "d": (3,)},
        ("8: a[1] b[1] c[0]",),
    ),
    Case(
        "Gemm",
        "t = Transpose<perm=[1, 0]>(x) h = Gemm<transA=1>(t, a, c) y = Gemm(h, b)",
        {"a": (4, 8), "c": (1, 8), "b": (8, 3)},
        ("8: a[1] b[0] c[1]",),
    ),
    Case(
        "Einsum",
        'h = Einsum<equation="ne,ehd->nhd">(x, a) y = Einsum<equation="nhd,hdk->nk">(h, b)',
        {"a": (4, 3, 4), "b": (3, 4, 3)},
        ("3: a[1] b[0]", "4: a[2] b[1]"),
    ),
    Case(
        "Einsum",
        'h = MatMul(x, a) y = Einsum<equation="...e,ek->...k">(h, b)',
        CHAIN,
        refused="ellipsis",
    ),
    Case(
        "Einsum",
        'h = MatMul(x, a) t = Einsum<equation="ij->ij">(h) y = MatMul(t, b)',
        CHAIN,
        refused="Einsum of one operand",
    ),
    Case(
        "Conv",
        "h = Conv(x, a, c) y = Conv<pads=[1, 1, 1, 1]>(h, b)",
        {"a": (8, 4, 1, 1), "c": (8,), "b": (3, 8, 3, 3)},
        ("8: a[0] b[1] c[0]",),
        **PLANE,
    ),
    Case(
        "Conv",
        "h = Conv(x, a) d = Conv<group=8, pads=[1, 1]>(h, k, c) y = Conv(d, b)",
        {"a": (8, 4, 1), "k": (8, 1, 3), "c": (8,), "b": (3, 8, 1)},
        ("8: a[0] b[1] c[0] k[0]",),
        **LINE,
    ),
    Case(
        "Conv",
        "h = Conv(x, a) d = Conv<group=4>(h, k) y = Conv(d, b)",
        {"a": (4, 4, 1), "k": (8, 1, 1), "b": (3, 8, 1)},
        ("12: a[0] b[1] k[0]",),
        **LINE,
    ),
    Case(
        "Conv",
        "h = Conv(x, a) d = Conv<group=2>(h, k, c) y = Conv(d, b)",
        {"a": (8, 4, 1), "k": (6, 4, 1), "c": (6,), "b": (3, 6, 1)},
        ("14: a[0] b[1] c[0] k[0,1] k[0]",),
        **LINE,
    ),
    Case(
        "Conv",
        "h = Conv<group=2>(x, a) y = Conv(h, b)",
        {"a": (6, 2, 1), "b": (3, 6, 1)},
        ("6: a[0] b[1]",),
        **LINE,
    ),
    Case(
        "Conv",
        "h = Conv(x, a) e = Conv<group=2>(h, k) f = Tanh(e) d = Conv<group=2>(f, k) y = Conv(d, b)",
        {"a": (8, 4, 1), "k": (8, 4, 1), "b": (3, 8, 1)},
        ("8: a[0] b[1] k[0,1] k[0]",),
        **LINE,
    ),
    Case(
        "Conv",
        "h = Conv(x, a) i = Neg(k) d = Conv<group=2>(h, i) y = Conv(d, b)",
        {"a": (8, 4, 1), "k": (6, 4, 1), "b": (3, 6, 1)},
        ("10: a[0] b[1] k[0] k[1]",),
        **LINE,
    ),
    Case(
        "Conv",
        "h = Conv(x, a) i = Mul(k, k) d = Conv<group=2>(h, i) y = Conv(d, b)",
        {"a": (8, 4, 1), "k": (6, 4, 1), "b": (3, 6, 1)},
        refused="the weight of a grouped convolution is computed or used by another op",
        **LINE,
    ),
    Case(
        "Conv",
        "m = MatMul(x, w) h = Reshape(m, s) y = Conv(h, b)",
        {"w": (4, 8), "b": (3, 4, 1)},
        ("4: b[1] w[1]",),
        x="N, 4",
        y="N, 3, 2",
        values={"s": np.array([0, 4, 2])},
    ),
    Case(
        "ConvTranspose",
        "h = ConvTranspose(x, a, c) y = ConvTranspose<pads=[1, 1, 1, 1]>(h, b)",
        {"a": (4, 8, 1, 1), "c": (8,), "b": (8, 3, 3, 3)},
        ("8: a[1] b[0] c[0]",),
        **PLANE,
    ),
    Case(
        "ConvTranspose",
        "h = Conv(x, a) d = ConvTranspose<group=2>(h, k, c) y = Conv(d, b)",
        {"a": (8, 4, 1), "k": (8, 3, 1), "c": (6,), "b": (3, 6, 1)},
        ("14: a[0] b[1] c[0] k[0,1] k[0]",),
        **LINE,
    ),
    Case(
        "ConvTranspose",
        "h = Conv(x, a) d = ConvTranspose<group=8>(h, k) y = Conv(d, b)",
        {"a": (8, 4, 1), "k": (8, 1, 1), "b": (3, 8, 1)},
        ("8: a[0] b[1] k[0]",),
        **LINE,
    ),
]


@pytest.mark.parametrize("case", runnable(CASES), ids=str)
def test_rule(case: Case) -> None:
    check(case)
