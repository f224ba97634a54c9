"""Ops on integers with their scales beside them (QOperator format)."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.quantised import (
    CONV_WEIGHTS,
    HELD,
    LEVELS,
    MATMUL_WEIGHTS,
    ONE_STEP,
    SHIFTED_CONV_WEIGHTS,
    points,
    scales,
    whole,
)
from helpers.rules import Case, check, runnable

PLANE = {"x": "N, 4, 5, 5", "y": "N, 3, 5, 5"}
QUANTISED_INPUT = "xq = QuantizeLinear(x, xs, xz)"


def chain(
    op: str, nodes: str, groups: tuple[str, ...], values: dict[str, object], **more: object
) -> Case:
    """Integer ops from the quantised input to the quantised output."""
    settings: dict[str, object] = {"tolerance": ONE_STEP, **more}
    return Case(
        op,
        f"{QUANTISED_INPUT} {nodes} y = DequantizeLinear(yq, ys, yz)",
        {},
        groups,
        values={**LEVELS, **values},
        **settings,  # type: ignore[arg-type]
    )


def linear_convs(groups: tuple[str, ...], values: dict[str, object], **more: object) -> Case:
    first = "hq = QLinearConv(xq, xs, xz, a, as, az, hs, hz, c)"
    second = "yq = QLinearConv(hq, hs, hz, b, bs, bz, ys, yz)"
    return chain("QLinearConv", f"{first} {second}", groups, values, **PLANE, **more)


PAIRWISE = "gq = com.microsoft.QLinear{0}(hq, hs, hz, {1}, ds, dz, hs, hz)"
AVERAGE = "gq = com.microsoft.QLinearAveragePool<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>"
LEVELS_OF_D = {"ds": np.float32(0.02), "dz": np.uint8(90)}
VECTOR = LEVELS_OF_D | {"d": whole(1, 8, 1, 1, dtype=np.uint8, seed=3)}
BETWEEN: list[tuple[str, str, str, dict[str, object]]] = [
    ("Add", PAIRWISE.format("Add", "hq"), "8: a[0] b[1] c[0]", LEVELS_OF_D),
    ("Add", PAIRWISE.format("Add", "d"), "8: a[0] b[1] c[0] d[1]", VECTOR),
    ("Mul", PAIRWISE.format("Mul", "d"), "8: a[0] b[1] c[0] d[1]", VECTOR),
    (
        "LeakyRelu",
        "gq = com.microsoft.QLinearLeakyRelu(hq, hs, hz, hs, hz)",
        "8: a[0] b[1] c[0]",
        {},
    ),
    ("Sigmoid", "gq = com.microsoft.QLinearSigmoid(hq, hs, hz, hs, hz)", "8: a[0] b[1] c[0]", {}),
    ("AveragePool", f"{AVERAGE}(hq, hs, hz, hs, hz)", "8: a[0] b[1] c[0]", {}),
    (
        "GlobalAveragePool",
        "gq = com.microsoft.QLinearGlobalAveragePool(hq, hs, hz, hs, hz)",
        "8: a[0] b[1] c[0]",
        {},
    ),
]
"""Ops on quantised activations between two convolutions: name, node, group, values."""

CASES = [
    linear_convs(("8: a[0] b[1] c[0]",), CONV_WEIGHTS),
    linear_convs(("8: a[0] b[1] c[0]",), SHIFTED_CONV_WEIGHTS, held=HELD),
    linear_convs(
        ("8: a[0] as[0] az[0] b[1] c[0]",),
        CONV_WEIGHTS | {"as": scales(8), "az": np.zeros(8, np.int8)},
    ),
    chain(
        "QLinearConv",
        "hq = QLinearConv(xq, xs, xz, a, as, az, hs, hz, c) "
        "gq = QLinearConv<group=2>(hq, hs, hz, k, ks, az, hs, hz) "
        "yq = QLinearConv(gq, hs, hz, b, bs, bz, ys, yz)",
        ("14: a[0] b[1] c[0] k[0,1] k[0] ks[0]",),
        CONV_WEIGHTS
        | {"k": whole(6, 4, 1, 1), "ks": scales(6), "b": whole(3, 6, 1, 1, seed=1)}
        | {"ys": np.float32(0.6)},
        **PLANE,
    ),
    chain(
        "QLinearMatMul",
        "hq = QLinearMatMul(xq, xs, xz, a, as, az, hs, hz) "
        "yq = QLinearMatMul(hq, hs, hz, b, bs, bz, ys, yz)",
        ("8: a[1] b[0]",),
        MATMUL_WEIGHTS,
        held=HELD,
    ),
    chain(
        "QLinearMatMul",
        "hq = QLinearMatMul(xq, xs, xz, a, as, az, hs, hz) "
        "yq = QLinearMatMul(hq, hs, hz, b, bs, bz, ys, yz)",
        ("8: a[1] as[0] az[0] b[0]",),
        MATMUL_WEIGHTS | {"as": scales(8), "az": points(8), "bs": scales(3), "bz": points(3)},
        held={"a": points(8), "b": points(3)},
    ),
    chain(
        "com.microsoft.QGemm",
        "hq = com.microsoft.QGemm(xq, xs, xz, a, as, az, c, hs, hz) "
        "yq = com.microsoft.QGemm<transB=1>(hq, hs, hz, b, bs, bz, , ys, yz)",
        ("8: a[1] as[0] az[0] b[1] c[0]",),
        MATMUL_WEIGHTS
        | {"as": scales(8), "az": points(8), "b": whole(3, 8, dtype=np.uint8, seed=1)}
        | {"bs": scales(3), "bz": points(3)}
        | {"c": np.linspace(-2000, 2000, 8).astype(np.int32)},
        held={"a": points(8), "b": points(3)[:, np.newaxis]},
    ),
    *(
        chain(
            f"com.microsoft.QLinear{name}",
            "hq = QLinearConv(xq, xs, xz, a, as, az, hs, hz, c) "
            f"{middle} yq = QLinearConv(gq, hs, hz, b, bs, bz, ys, yz)",
            (groups,),
            SHIFTED_CONV_WEIGHTS | values,
            held={**HELD, "d": np.uint8(90)},
            **PLANE,
        )
        for name, middle, groups, values in BETWEEN
    ),
    chain(
        "com.microsoft.QLinearConcat",
        "hq = QLinearConv(xq, xs, xz, a, as, az, hs, hz, c) "
        "gq = com.microsoft.QLinearConcat<axis=1>(hs, hz, hq, hs, hz, xq, xs, xz) "
        "yq = QLinearConv(gq, hs, hz, b, bs, bz, ys, yz)",
        ("8: a[0] b[1] c[0]",),
        SHIFTED_CONV_WEIGHTS | {"b": whole(3, 12, 1, 1, dtype=np.uint8, seed=1)},
        held=HELD,
        **PLANE,
    ),
    chain(
        "com.microsoft.QLinearGlobalAveragePool",  # over the two entries that each channel got
        "mq = QLinearMatMul(xq, xs, xz, a, as, az, hs, hz) hq = Reshape(mq, s) "
        "gq = com.microsoft.QLinearGlobalAveragePool(hq, hs, hz, hs, hz) "
        "yq = QLinearConv(gq, hs, hz, b, bs, bz, ys, yz)",
        ("4: a[1] b[1]",),
        MATMUL_WEIGHTS | {"b": whole(3, 4, 1, dtype=np.uint8, seed=1), "s": np.array([0, 4, 2])},
        held=HELD,
        y="N, 3, 1",
    ),
]


@pytest.mark.parametrize("case", runnable(CASES), ids=str)
def test_rule(case: Case) -> None:
    check(case)
