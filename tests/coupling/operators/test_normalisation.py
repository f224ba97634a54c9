"""Statistics freeze the axis they run over, but leave whole heads and groups removable."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.rules import Case, check, runnable

FLAT = {"a": (4, 8), "b": (8, 3)}
PLANE = {"x": "N, 4, 5, 5", "y": "N, 3, 5, 5"}
OVER = "takes statistics over it"
HEADS = {"s": np.array([0, 4, 2]), "z": np.array([0, 8])}
VARIANCE = {"v": np.linspace(1, 2, 8, dtype=np.float32)}


def per_head(op: str, node: str, *owned: str, opset: int = 17, **weights: tuple[int, ...]) -> Case:
    """Statistics over the 2 entries of each of 4 heads."""
    body = f"h = MatMul(x, a) r = Reshape(h, s) {node} t = Reshape(u, z) y = MatMul(t, b)"
    groups = (f"4: {' '.join(sorted(('a[1]', 'b[0]', *owned)))}",)
    return Case(op, body, FLAT | weights, groups, values=HEADS, opset=opset)


def over_channels(op: str, node: str, opset: int = 17, **weights: tuple[int, ...]) -> Case:
    body = f"h = MatMul(x, a) {node} y = MatMul(t, b)"
    return Case(op, body, FLAT | weights, refused=OVER, opset=opset)


CASES = [
    Case(
        "BatchNormalization",
        "h = Conv(x, a) t = BatchNormalization(h, g, c, m, v) y = Conv(t, b)",
        {"a": (8, 4, 1, 1), "b": (3, 8, 1, 1), "g": (8,), "c": (8,), "m": (8,)},
        ("8: a[0] b[1] c[0] g[0] m[0] v[0]",),
        values=VARIANCE,
        **PLANE,
    ),
    Case(
        "BatchNormalization",
        "h = Conv(x, a) t, n, o = BatchNormalization<training_mode=1>(h, g, c, m, v) "
        "y = Conv(t, b)",
        {"a": (8, 4, 1, 1), "b": (3, 8, 1, 1), "g": (8,), "c": (8,), "m": (8,)},
        ("8: a[0] b[1] c[0] g[0] m[0] v[0]",),
        values=VARIANCE,
        **PLANE,
    ),
    Case(
        "InstanceNormalization",
        "h = Conv(x, a) t = InstanceNormalization(h, g, c) y = Conv(t, b)",
        {"a": (8, 4, 1, 1), "b": (3, 8, 1, 1), "g": (8,), "c": (8,)},
        ("8: a[0] b[1] c[0] g[0]",),
        **PLANE,
    ),
    Case(
        "InstanceNormalization",
        "h = Conv(x, a) t = InstanceNormalization<epsilon=0.0>(h, g, c) y = Conv(t, b)",
        {"a": (8, 4, 1, 1), "b": (3, 8, 1, 1), "g": (8,), "c": (8,)},
        refused="divides 0 by 0",
        **PLANE,
    ),
    Case(  # GroupNorm, as PyTorch's exporter writes it: only whole groups can go
        "InstanceNormalization",
        "h = Conv(x, a) r = Reshape(h, s) u = InstanceNormalization(r, g, c) w = Reshape(u, z) "
        "k = Mul(w, e) t = Add(k, f) y = Conv(t, b)",
        {"a": (8, 4, 1, 1), "b": (3, 8, 1, 1), "g": (4,), "c": (4,)}
        | {"e": (8, 1, 1), "f": (8, 1, 1)},
        ("4: a[0] b[1] c[0] e[0] f[0] g[0]",),
        values={"s": np.array([0, 4, -1]), "z": np.array([0, 8, 5, 5])},
        **PLANE,
    ),
    over_channels("LayerNormalization", "t = LayerNormalization(h, g, c)", g=(8,), c=(8,)),
    per_head("LayerNormalization", "u = LayerNormalization(r, g, c)", g=(2,), c=(2,)),
    per_head("LayerNormalization", "u = LayerNormalization<axis=-1>(r, g)", g=(2,)),
    over_channels("RMSNormalization", "t = RMSNormalization(h, g)", 23, g=(8,)),
    per_head("RMSNormalization", "u = RMSNormalization(r, g)", opset=23, g=(2,)),
    over_channels("Softmax", "t = Softmax(h)"),
    per_head("Softmax", "u = Softmax(r)"),
    Case(
        "Softmax",  # before opset 13 it runs over everything from `axis` on
        "h = MatMul(x, a) r = Reshape(h, s) u = Softmax(r) t = Reshape(u, z) y = MatMul(t, b)",
        FLAT,
        refused=OVER,
        values=HEADS,
        opset=11,
    ),
    over_channels("LogSoftmax", "t = LogSoftmax(h)"),
    per_head("LogSoftmax", "u = LogSoftmax<axis=-1>(r)"),
    over_channels("Hardmax", "t = Hardmax(h)"),
    per_head("Hardmax", "u = Hardmax(r)"),
    over_channels("LpNormalization", "t = LpNormalization<axis=1>(h)"),
    per_head("LpNormalization", "u = LpNormalization<axis=2, p=1>(r)"),
    over_channels("CumSum", "i = Constant<value=int64{1}>() t = CumSum(h, i)"),
    per_head("CumSum", "i = Constant<value=int64{-1}>() u = CumSum<reverse=1>(r, i)"),
    Case(
        "LRN",
        "h = Conv(x, a) t = LRN<size=3>(h) y = Conv(t, b)",
        {"a": (8, 4, 1, 1), "b": (3, 8, 1, 1)},
        refused=OVER,
        **PLANE,
    ),
    Case(
        "GroupNormalization",  # two channels in each group
        "h = Conv(x, a) t = GroupNormalization<num_groups=4>(h, g, c) y = Conv(t, b)",
        {"a": (8, 4, 1, 1), "b": (3, 8, 1, 1), "g": (8,), "c": (8,)},
        ("4: a[0] b[1] c[0] g[0]",),
        opset=21,
        **PLANE,
    ),
    Case(
        "GroupNormalization",  # with parameters for each group
        "h = Conv(x, a) t = GroupNormalization<num_groups=4>(h, g, c) y = Conv(t, b)",
        {"a": (8, 4, 1, 1), "b": (3, 8, 1, 1), "g": (4,), "c": (4,)},
        refused="before opset 21",
        opset=18,
        **PLANE,
    ),
    Case(
        "GroupNormalization",  # one group: statistics over everything
        "h = Conv(x, a) t = GroupNormalization<num_groups=1>(h, g, c) y = Conv(t, b)",
        {"a": (8, 4, 1, 1), "b": (3, 8, 1, 1), "g": (8,), "c": (8,)},
        refused=OVER,
        opset=21,
        **PLANE,
    ),
    Case(
        "GroupNormalization",
        "h = Conv(x, a) t = GroupNormalization<num_groups=4, epsilon=0.0>(h, g, c) y = Conv(t, b)",
        {"a": (8, 4, 1, 1), "b": (3, 8, 1, 1), "g": (8,), "c": (8,)},
        refused="divides 0 by 0",
        opset=21,
        **PLANE,
    ),
]


@pytest.mark.parametrize("case", runnable(CASES), ids=str)
def test_rule(case: Case) -> None:
    check(case)
