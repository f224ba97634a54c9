"""Reductions and pools: a sum is exact over what is zero, other statistics are not."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.rules import Case, check, runnable

FLAT = {"a": (4, 8), "b": (8, 3)}
IMAGE = {"a": (8, 4, 1, 1), "b": (3, 8, 1, 1)}
PLANE = {"x": "N, 4, 5, 5", "y": "N, 3, 5, 5"}
SUMS = ["ReduceL1", "ReduceL2", "ReduceSumSquare"]
STATISTICS = ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSumExp"]
ALL = ("8: a[1] b[0]",)


def over_channels(op: str, groups: tuple[str, ...], refused: str, before: str = "Identity") -> Case:
    body = f"h = MatMul(x, a) f = {before}(h) u = {op}<axes=[1]>(f) t = Mul(h, u) y = MatMul(t, b)"
    return Case(op, body, FLAT, groups, refused)


def over_space(op: str, node: str = "") -> Case:
    node = node or f"t = {op}<axes=[2, 3]>(e)"
    body = f"h = Conv(x, a) e = Softplus(h) {node} u = Mul(h, t) y = Conv(u, b)"
    return Case(op, body, IMAGE, ("8: a[0] b[1]",), **PLANE)


def pool(op: str, attributes: str = "") -> Case:
    return over_space(op, f"t = {op}{attributes}(e)")


SAME = "<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>"

CASES = [
    *(over_channels(op, ALL, "") for op in SUMS),
    *(over_channels(op, (), f"{op} takes statistics over it", "Sigmoid") for op in SUMS),
    *(over_channels(op, (), f"{op} takes statistics over it") for op in STATISTICS[:-1]),
    *(over_channels(op, (), "takes statistics", "Softplus") for op in ("ReduceLogSum",)),
    *(over_space(op) for op in [*SUMS, *STATISTICS, "ReduceLogSum"]),
    Case(
        "ReduceSum",
        "h = MatMul(x, a) u = ReduceSum(h, i) t = Mul(h, u) y = MatMul(t, b)",
        FLAT,
        ALL,
        values={"i": np.array([-1])},
    ),
    Case(
        "ReduceSum",
        "h = MatMul(x, a) r = Reshape(h, s) g = ReduceSum<keepdims=0>(r, i) y = MatMul(g, c)",
        {"a": (4, 8), "c": (2, 3)},
        ("8: a[1] c[0]",),
        values={"s": np.array([0, 2, 4]), "i": np.array([2])},
    ),
    Case(
        "ReduceSum",
        "h = MatMul(x, a) u = ReduceSum<noop_with_empty_axes=1>(h) y = MatMul(u, b)",
        FLAT,
        ALL,
    ),
    Case(
        "ReduceMean",  # no axes at all: over everything
        "h = MatMul(x, a) u = ReduceMean(h, i) t = Mul(h, u) y = MatMul(t, b)",
        FLAT,
        refused="ReduceMean takes statistics over it",
        values={"i": np.zeros(0, np.int64)},
        opset=18,
    ),
    Case(
        "ArgMax",
        "h = MatMul(x, a) k = ArgMax<axis=1>(h) f = Cast<to=1>(k) t = Mul(h, f) y = MatMul(t, b)",
        FLAT,
        refused="ArgMax names positions along it",
    ),
    *(
        Case(
            op,
            f"h = Conv(x, a) k = {op}<axis=2, keepdims=0>(h) f = Cast<to=1>(k) "
            "u = Unsqueeze(f, i) t = Mul(h, u) y = Conv(t, b)",
            IMAGE,
            ("8: a[0] b[1]",),
            values={"i": np.array([2])},
            **PLANE,
        )
        for op in ("ArgMax", "ArgMin")
    ),
    Case(
        "TopK",
        "h = MatMul(x, a) t, i = TopK(h, k) y = MatMul(t, b)",
        FLAT,
        refused="TopK names positions along it",
        values={"k": np.array([8])},
    ),
    Case(
        "TopK",
        "h = Conv(x, a) t, i = TopK<axis=2>(h, k) f = Cast<to=1>(i) u = Mul(t, f) y = Conv(u, b)",
        IMAGE,
        ("8: a[0] b[1]",),
        values={"k": np.array([5])},
        **PLANE,
    ),
    *(pool(op) for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")),
    *(pool(op, SAME) for op in ("AveragePool", "MaxPool", "LpPool")),
    Case(
        "MaxPool",
        f"h = Conv(x, a) p, i = MaxPool{SAME}(h) f = Cast<to=1>(i) g = Mul(f, e) t = Add(p, g) "
        "y = Conv(t, b)",
        IMAGE,
        refused="MaxPool runs over it",
        values={"e": np.float32(0.01)},
        **PLANE,
    ),
]


@pytest.mark.parametrize("case", runnable(CASES), ids=str)
def test_rule(case: Case) -> None:
    check(case)
