"""Quantised graphs: scales and zero points go with their axis; what zero means is kept in mind."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.quantised import (
    INPUT_LEVELS,
    MATMUL_WEIGHTS,
    ONE_STEP,
    SHIFTED_CONV_WEIGHTS,
    points,
    scales,
    whole,
)
from helpers.rules import Case, check, runnable

PLANE = {"x": "N, 4, 5, 5", "y": "N, 3, 5, 5"}


def dequantised(
    arguments: str,
    groups: tuple[str, ...],
    values: dict[str, object],
    before: str = "",
    op: str = "DequantizeLinear",
    **more: object,
) -> Case:
    """A convolution [6, 8] behind DequantizeLinear between two plain ones."""
    return Case(
        op,
        f"{before} h = Conv(x, a) w = {op}{arguments} g = Conv(h, w) y = Conv(g, b)",
        {"a": (8, 4, 1, 1), "b": (3, 6, 1, 1)},
        groups,
        values={"s": np.float32(0.01), **values},
        **PLANE,
        **more,  # type: ignore[arg-type]
    )


def middle(op: str, body: str, owned: tuple[str, ...], **more: object) -> Case:
    """Something between two plain convolutions of 8 and 6 or 8 channels."""
    return Case(op, f"h = Conv(x, a) {body} y = Conv(g, b)", groups=owned, **PLANE, **more)  # type: ignore[arg-type]


DYNAMIC = "hq, hs, hz = DynamicQuantizeLinear(h) i = MatMulInteger(hq, b, hz{0}) j = Cast<to=1>(i)"

SHIFTED = {"k": whole(6, 8, 1, 1, dtype=np.uint8), "z": np.uint8(120)}

CASES = [
    dequantised("(k, s)", ("8: a[0] k[1]", "6: b[1] k[0]"), {"k": whole(6, 8, 1, 1)}),
    dequantised("(k, s, z)", ("8: a[0] k[1]", "6: b[1] k[0]"), SHIFTED, held={"k": np.uint8(120)}),
    dequantised(
        "<axis=0>(k, s)",
        ("8: a[0] k[1]", "6: b[1] k[0] s[0]"),
        {"k": whole(6, 8, 1, 1), "s": scales(6)},
    ),
    dequantised(
        "<axis=0>(k, s, z)",
        ("8: a[0] k[1]", "6: b[1] k[0] s[0] z[0]"),
        {"k": SHIFTED["k"], "s": scales(6), "z": points(6)},
        held={"k": points(6).reshape(-1, 1, 1, 1)},
    ),
    dequantised(
        "<axis=1>(k, s, z)",
        ("8: a[0] k[1] s[0] z[0]", "6: b[1] k[0]"),
        {"k": SHIFTED["k"], "s": scales(8), "z": points(8)},
        held={"k": points(8).reshape(1, -1, 1, 1)},
    ),
    dequantised(
        "<axis=0>(k, s, z)",
        ("8: a[0] k[1]", "6: b[1] k[0] s[0] z[0]"),
        {
            "k": onnx.helper.make_tensor(
                "k", onnx.TensorProto.INT4, (6, 8, 1, 1), whole(48).ravel() // 16
            ),
            "s": scales(6) * 16,
            "z": onnx.helper.make_tensor("z", onnx.TensorProto.INT4, (6,), [0] * 6),
        },
        opset=21,
    ),
    dequantised(
        "<axis=0>(k, s, z)",
        ("8: a[0] k[1]", "6: b[1] k[0] s[0] z[0]"),
        {"k": SHIFTED["k"], "s": scales(6), "z": points(6)},
        op="com.microsoft.DequantizeLinear",
        held={"k": points(6).reshape(-1, 1, 1, 1)},
    ),
    dequantised(
        "(k, s, i)",
        (),
        SHIFTED,
        before="i = Identity(z)",
        refused="worked out from other constants",
    ),
    middle(
        "DequantizeLinear",  # bias in int32
        "w = DequantizeLinear<axis=0>(k, s) d = DequantizeLinear<axis=0>(c, t) g = Conv(h, w, d)",
        ("8: a[0] k[1]", "6: b[1] c[0] k[0] s[0] t[0]"),
        weights={"a": (8, 4, 1, 1), "b": (3, 6, 1, 1)},
        values={
            "k": whole(6, 8, 1, 1),
            "s": scales(6),
            "c": np.linspace(-9000, 9000, 6).astype(np.int32),
            "t": scales(6) / 50,
        },
    ),
    middle(
        "DequantizeLinear",  # depthwise
        "w = DequantizeLinear<axis=0>(k, s, z) g = Conv<group=8, pads=[1, 1, 1, 1]>(h, w)",
        ("8: a[0] b[1] k[0] s[0] z[0]",),
        weights={"a": (8, 4, 1, 1), "b": (3, 8, 1, 1)},
        values={"k": whole(8, 1, 3, 3, dtype=np.uint8), "s": scales(8), "z": points(8)},
        held={"k": points(8).reshape(-1, 1, 1, 1)},
        refused="kernel axes of a convolution",
    ),
    middle(
        "DequantizeLinear",  # two groups: they keep the same positions, none goes whole
        "w = DequantizeLinear<axis=0>(k, s) g = Conv<group=2>(h, w)",
        ("10: a[0] b[1] k[0] k[1] s[0]",),
        weights={"a": (8, 4, 1, 1), "b": (3, 6, 1, 1)},
        values={"k": whole(6, 4, 1, 1), "s": scales(6)},
    ),
    Case(
        "DequantizeLinear",
        "h = MatMul(x, a) w = DequantizeLinear<axis=1, block_size=4>(k, s) g = MatMul(h, w) "
        "y = MatMul(g, b)",
        {"a": (4, 6), "b": (8, 3)},
        refused="blocked quantisation",
        values={"k": whole(6, 8), "s": np.stack([scales(2)] * 6)},
        opset=21,
    ),
    *(
        middle(
            "QuantizeLinear",  # a float weight that is only rounded
            "kq = QuantizeLinear<axis=0>(k, s, z) w = DequantizeLinear<axis=0>(kq, s, z) "
            "g = Conv(h, w)",
            ("8: a[0] k[1]", f"6: b[1] k[0]{owned}"),
            weights={"a": (8, 4, 1, 1), "k": (6, 8, 1, 1), "b": (3, 6, 1, 1)},
            values={"s": scale, "z": point},
        )
        for scale, point, owned in (
            (np.float32(0.01), np.uint8(120), ""),
            (scales(6), points(6), " s[0] z[0]"),
        )
    ),
    middle(
        "DequantizeLinear",  # a constant that is added: stored zeros mean something else there
        "d = DequantizeLinear(k, s, z) g = Add(h, d)",
        ("8: a[0] b[1] k[1]",),
        weights={"a": (8, 4, 1, 1), "b": (3, 8, 1, 1)},
        values={"k": whole(1, 8, 1, 1, dtype=np.uint8), "s": np.float32(0.01), "z": np.uint8(120)},
    ),
    Case(
        "DequantizeLinear",  # so a product of two such sums is not exact
        "h = MatMul(x, a) d = DequantizeLinear(k, s, z) g = Add(h, d) t = Transpose(g) "
        "m = MatMul(t, g) u = MatMul(g, m) y = MatMul(u, b)",
        {"a": (4, 8), "b": (8, 3)},
        refused="a product of two activations",
        values={"k": whole(8, dtype=np.uint8), "s": np.float32(0.01), "z": np.uint8(120)},
    ),
    *(
        middle(
            f"{domain}QuantizeLinear",  # an activation on its way
            f"hq = {domain}QuantizeLinear(h, s, z) g = {domain}DequantizeLinear(hq, s, z)",
            ("8: a[0] b[1]",),
            weights={"a": (8, 4, 1, 1), "b": (3, 8, 1, 1)},
            values={"s": np.float32(0.03), "z": np.uint8(120)},
            tolerance=ONE_STEP,
        )
        for domain in ("", "com.microsoft.")
    ),
    middle(
        "QuantizeLinear",  # with a scale for each channel
        "hq = QuantizeLinear(h, s, z) g = DequantizeLinear(hq, s, z)",
        ("8: a[0] b[1] s[0] z[0]",),
        weights={"a": (8, 4, 1, 1), "b": (3, 8, 1, 1)},
        values={"s": scales(8) * 5, "z": points(8)},
        tolerance=ONE_STEP,
    ),
    Case(
        "MatMulInteger",
        f"h = MatMul(x, a) {DYNAMIC.format('')} k = Mul(hs, bs) y = Mul(j, k)",
        {"a": (4, 8)},
        ("8: a[1] b[0]",),
        values={"b": whole(8, 3), "bs": np.float32(0.01)},
        tolerance=ONE_STEP,
    ),
    Case(
        "MatMulInteger",
        f"h = MatMul(x, a) {DYNAMIC.format(', bz')} k = Mul(hs, bs) y = Mul(j, k)",
        {"a": (4, 8)},
        ("8: a[1] b[0]",),
        values={"b": MATMUL_WEIGHTS["b"], "bs": scales(3), "bz": points(3)},
        held={"b": points(3)},
        tolerance=ONE_STEP,
    ),
    Case(
        "MatMulInteger",  # its columns go, and the zero point of each
        "xq = QuantizeLinear(x, xs, xz) i = MatMulInteger(xq, a, xz, az) j = Cast<to=1>(i) "
        "k = Mul(j, as) y = MatMul(k, d)",
        {"d": (8, 3)},
        ("8: a[1] as[0] az[0] d[0]",),
        values={"a": MATMUL_WEIGHTS["a"], "as": scales(8), "az": points(8), **INPUT_LEVELS},
        held={"a": points(8)},
    ),
    Case(
        "DynamicQuantizeLinear",
        "h = MatMul(x, a) s = Sigmoid(h) q, qs, qz = DynamicQuantizeLinear(s) "
        "d = DequantizeLinear(q, qs, qz) y = MatMul(d, b)",
        {"a": (4, 8), "b": (8, 3)},
        refused="its quantisation range is taken from all entries",
    ),
    Case(
        "DynamicQuantizeLinear",
        "h = MatMul(x, a) s = Tanh(h) q, qs, qz = DynamicQuantizeLinear(s) "
        "d = DequantizeLinear(q, qs, qz) y = MatMul(d, b)",
        {"a": (4, 8), "b": (8, 3)},
        ("8: a[1] b[0]",),
        tolerance=ONE_STEP,
    ),
    Case(
        "ConvInteger",
        "h = Conv(x, a) hq, hs, hz = DynamicQuantizeLinear(h) i = ConvInteger(hq, b, hz, bz) "
        "j = Cast<to=1>(i) k = Mul(hs, bs) y = Mul(j, k)",
        {"a": (8, 4, 1, 1)},
        ("8: a[0] b[1]",),
        values={n: SHIFTED_CONV_WEIGHTS[n] for n in ("b", "bs", "bz")},
        held={"b": np.uint8(110)},
        tolerance=ONE_STEP,
        **PLANE,
    ),
    Case(
        "ConvInteger",
        "xq = QuantizeLinear(x, xs, xz) i = ConvInteger<group=2>(xq, a, xz, az) "
        "j = Cast<to=1>(i) y = Conv(j, b)",
        {"b": (3, 8, 1, 1)},
        ("8: a[0] b[1]",),
        values={"a": whole(8, 2, 1, 1, dtype=np.uint8), "az": np.uint8(130)} | INPUT_LEVELS,
        held={"a": np.uint8(130)},
        **PLANE,
    ),
    *(
        Case(
            "com.microsoft.MatMulNBits",
            f"t = com.microsoft.MatMulNBits<K=20, N=8, bits=4, block_size=16>(x, k, s{more}) "
            "y = MatMul(t, b)",
            {"b": (8, 3), "c": (8,)},
            (f"8: b[0] {owned}",),
            values={
                "k": whole(8, 2, 8, dtype=np.uint8),
                "s": scales(16),
                "z": whole(8, dtype=np.uint8, seed=2),
            },
            x="N, 20",
        )
        for more, owned in (
            ("", "k[0] s[0]"),
            (", z", "k[0] s[0] z[0]"),
            (", , , c", "c[0] k[0] s[0]"),
        )
    ),
    Case(
        "com.microsoft.MatMulNBits",
        "h = MatMul(x, a) y = com.microsoft.MatMulNBits<K=16, N=3, bits=4, block_size=16>(h, k, s)",
        {"a": (4, 16)},
        refused="4-bit weights are packed along it",
        values={"k": whole(3, 1, 8, dtype=np.uint8), "s": scales(3)},
    ),
    *(
        Case(
            "DequantizeLinear",  # one weight, read twice
            f"v = DequantizeLinear(k, s, z) {other} h = MatMul(x, v) g = MatMul(x, w) "
            "t = Add(h, g) y = MatMul(t, b)",
            {"b": (8, 3)},
            groups,
            values={
                "k": whole(4, 8, dtype=np.uint8),
                "s": np.float32(0.01),
                "z": np.uint8(120),
                "same": np.uint8(120),
                "other": np.uint8(121),
            },
            held={"k": np.uint8(120)},
            refused="cannot be cut" if groups else "k is read with different zero points",
        )
        for other, groups in (
            ("w = DequantizeLinear(k, s, z)", ("8: b[0] k[1]",)),
            ("w = DequantizeLinear(k, s, same)", ("8: b[0] k[1]",)),
            ("w = DequantizeLinear(k, s, other)", ()),
            ("w = DequantizeLinear(k, s)", ()),
            ("i = Cast<to=1>(k) w = Mul(i, s)", ()),
            ("i = Identity(k) w = DequantizeLinear(i, s, other)", ()),
        )
    ),
]


@pytest.mark.parametrize("case", runnable(CASES), ids=str)
def test_rule(case: Case) -> None:
    check(case)
