"""Ops that move data do the same to the labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.rules import Case, check, runnable


def flat(op: str, body: str, groups: str | tuple[str, ...], width: int = 8, **more: Any) -> Case:
    """From h [N, 8] to t [N, width]."""
    weights = {"a": (4, 8), "b": (width, 3)} | more.pop("weights", {})
    wanted = (groups,) if isinstance(groups, str) else groups
    return Case(op, f"h = MatMul(x, a) {body} y = MatMul(t, b)", weights, wanted, **more)


def plane(op: str, body: str, groups: tuple[str, ...], width: int = 8, **more: Any) -> Case:
    """From h [N, 8, 4, 4] to t [N, width, *size]."""
    weights = {"a": (8, 4, 1, 1), "b": (3, width, 1, 1)}
    more |= {"x": "N, 4, 4, 4", "y": f"N, 3, {more.pop('size', '4, 4')}"}
    return Case(op, f"h = Conv(x, a) {body} y = Conv(t, b)", weights, groups, **more)


ALL = "8: a[1] b[0]"
AB = ("8: a[0] b[1]",)

CASES = [
    flat("Transpose", "u = Transpose(h) r = Relu(u) t = Transpose<perm=[1, 0]>(r)", ALL),
    flat(
        "Reshape",
        "u = Reshape(h, s) r = Relu(u) t = Reshape(r, z)",
        ALL,
        values={"s": [0, 2, 4], "z": [0, 8]},
    ),
    flat(
        "Reshape",
        "u = Reshape(h, s) r = Relu(u) t = Reshape(r, z)",
        ALL,
        values={"s": [-1, 2, 4], "z": [-1, 8]},
    ),
    flat("Flatten", "u = Unsqueeze(h, i) t = Flatten(u)", ALL, values={"i": [1]}),
    flat("Squeeze", "u = Unsqueeze(h, i) t = Squeeze(u, i)", ALL, values={"i": [2]}),
    flat(
        "Unsqueeze",
        "u = Unsqueeze(h, i) v = Mul(u, c) t = Squeeze(v, i)",
        "8: a[1] b[0] c[1]",
        values={"i": [1]},
        weights={"c": (1, 8)},
    ),
    flat(
        "Expand", "e = Expand(c, s) t = Add(h, e)", ALL, values={"s": [1, 8]}, weights={"c": (1, 1)}
    ),
    flat(
        "Expand",
        "e = Expand(c, s) t = Add(h, e)",
        "8: a[1] b[0] c[0]",
        values={"s": [2, 1]},
        weights={"c": (8,)},
        x="2, 4",
        y="2, 3",
    ),
    *(
        flat(  # the copies are not zero where they are removed
            op,
            f"g = Sigmoid(h) e = {op}(c, s) m = Mul(g, e) u = ReduceSum(m, i) t = Mul(h, u)",
            (),
            values={"s": [1, 8], "i": [1]},
            weights={"c": (1, 1)},
            refused="takes statistics",
        )
        for op in ("Expand", "Tile")
    ),
    flat("Tile", "e = Tile(c, s) t = Add(h, e)", ALL, values={"s": [1, 8]}, weights={"c": (1, 1)}),
    flat("Tile", "t = Tile(h, s)", ALL, 16, values={"s": [1, 2]}),
    flat(
        "ConstantOfShape",
        "n = Shape(h) z = ConstantOfShape<value=float[1]{1.0}>(n) t = Sub(h, z)",
        ALL,
    ),
    flat("ConstantOfShape", "z = ConstantOfShape(s) t = Sub(z, h)", ALL, values={"s": [1, 8]}),
    flat("Concat", "t = Concat<axis=1>(h, h)", ALL, 16),
    flat(
        "Concat",
        "r = Relu(h) g = MatMul(x, d) t = Concat<axis=-1>(r, g, x, h)",
        ("5: b[0] d[1]", ALL),
        25,
        weights={"d": (4, 5)},
    ),
    flat(
        "Concat",
        "r = Tanh(h) u = Concat<axis=0>(h, r) v, w = Split<axis=0>(u) t = Add(v, w)",
        ALL,
        x="2, 4",
        y="2, 3",
    ),
    flat("Split", "u, v = Split<axis=1>(h) t = Mul(u, v)", "4: a[1] b[0]", 4),
    flat("Split", "u, v = Split<axis=1>(h, s) t = Concat<axis=1>(v, u)", ALL, values={"s": [3, 5]}),
    flat(
        "Split",
        "u, v, w = Split<axis=-1, num_outputs=3>(h) t = Concat<axis=1>(w, v, u)",
        ALL,
        opset=18,
    ),
    flat("Split", "u, v = Split<axis=1, split=[3, 5]>(h) t = Concat<axis=1>(v, u)", ALL, opset=11),
    flat("Slice", "t = Slice(h, s, e, i)", ALL, 4, values={"s": [2], "e": [6], "i": [1]}),
    flat(
        "Slice",
        "t = Slice(h, s, e, i, d)",
        "4: a[1] b[0]",
        4,
        values={"s": [1], "e": [2**63 - 1], "i": [-1], "d": [2]},
    ),
    flat(
        "Slice",
        "t = Slice(h, s, e, i, d)",
        ALL,
        values={
            k: np.array([v], np.int32) for k, v in {"s": -1, "e": -99, "i": 1, "d": -1}.items()
        },
    ),
    flat(
        "Slice",
        "u = ArgMax<axis=1>(x) v = Reshape(u, f) s = ReduceMax<keepdims=1>(v) z = Add(s, e) "
        "t = Slice(h, s, z, i)",
        (),
        4,
        values={"f": [-1], "i": [1], "e": [4]},
        refused="only known at run time",
    ),
    flat(
        "ReverseSequence",
        "u = Unsqueeze(h, i) v = Mul(u, c) k = ArgMax<axis=1, keepdims=0>(x) "
        "w = ReverseSequence<batch_axis=0, time_axis=1>(v, k) t = Gather<axis=1>(w, j)",
        "8: a[1] b[0] c[2]",
        values={"i": [1], "j": 0},
        weights={"c": (1, 4, 8)},
        refused="only known at run time",
    ),
    flat("Gather", "t = Gather<axis=1>(h, i)", ALL, 5, values={"i": [7, 0, 0, -2, 3]}),
    flat(
        "Gather",
        "u = Gather<axis=1>(h, i) v = Unsqueeze(u, j) t = Mul(h, v)",
        "7: a[1] b[0]",
        values={"i": 3, "j": [1]},
        refused="one index of the axis is used alone",
    ),
    flat(
        "Gather",
        "u = Reshape(h, s) v = Gather<axis=2>(u, i) t = Reshape(v, z)",
        ALL,
        4,
        values={"s": [0, 2, 4], "i": [2, 1], "z": [0, 4]},
    ),
    flat(
        "Gather",
        "k = ArgMax<axis=1>(x) u = Gather<axis=1>(h, k) v = ReduceMax<keepdims=0, axes=[1, 2]>(u)"
        " w = Unsqueeze(v, i) t = Add(h, w)",
        (),
        values={"i": [1]},
        refused="looked up at run time",
    ),
    Case(
        "Gather",
        "k = ArgMax<axis=1, keepdims=0>(x) h = Gather(table, k) y = MatMul(h, b)",
        {"table": (4, 8), "b": (8, 3)},
        ("8: b[0] table[1]",),
        refused="looked up at run time",
    ),
    Case(
        "GatherND",
        "h = MatMul(x, a) q = Transpose(h) r = GatherND(q, i) t = Transpose(r) y = MatMul(t, b)",
        {"a": (4, 8), "b": (3, 3)},
        (ALL,),
        values={"i": np.array([[5], [0], [2]])},
    ),
    Case(
        "GatherND",
        "k = ArgMax<axis=1, keepdims=1>(x) h = GatherND(table, k) y = MatMul(h, b)",
        {"table": (4, 8), "b": (8, 3)},
        ("8: b[0] table[1]",),
        refused="looked up at run time",
    ),
    Case(
        "GatherND",
        "h = MatMul(x, a) q = Transpose(h) r = GatherND<batch_dims=1>(q, i) "
        "u = Constant<value=int64[1]{0}>() v = Unsqueeze(r, u) w = Add(h, v) y = MatMul(w, b)",
        {"a": (4, 8), "b": (8, 3)},
        refused="GatherND with batch axes",
        values={"i": np.zeros((8, 1), np.int64)},
    ),
    flat("Pad", "t = Pad(h, p)", ("1: b[0]", "2: b[0]", ALL), 11, values={"p": [0, 1, 0, 2]}),
    flat("Pad", "t = Pad<pads=[0, 1, 0, 2]>(h)", ("1: b[0]", "2: b[0]", ALL), 11, opset=9),
    flat(
        "Pad",
        't = Pad<mode="reflect">(h, p)',
        (),
        11,
        values={"p": [0, 1, 0, 2]},
        refused="Pad reads or cuts along this axis",
    ),
    flat(
        "Pad",
        "t = Pad(h, p)",
        (),
        6,
        values={"p": [0, -1, 0, -1]},
        refused="Pad reads or cuts along this axis",
    ),
    plane(
        "Pad",
        "t = Pad(h, p, n, i)",
        AB,
        size="7, 4",
        opset=18,
        values={"p": [1, 2], "i": [2], "n": np.float32(0.5)},
    ),
    plane(
        "Resize",
        't = Resize<mode="nearest">(h, , s)',
        AB,
        size="8, 8",
        values={"s": np.array([1, 1, 2, 2], np.float32)},
    ),
    plane(
        "Resize",
        't = Resize<mode="nearest", axes=[1, 2]>(h, , , s)',
        AB,
        size="8, 4",
        opset=18,
        values={"s": [8, 8]},
    ),
    plane(
        "Resize",
        't = Resize<mode="nearest">(h, , s)',
        (),
        16,
        values={"s": np.array([1, 2, 1, 1], np.float32)},
        refused="the axis is resized",
    ),
    plane(
        "Upsample",
        't = Upsample<mode="nearest">(h, s)',
        AB,
        size="8, 8",
        opset=9,
        values={"s": np.array([1, 1, 2, 2], np.float32)},
    ),
    plane("DepthToSpace", "t = DepthToSpace<blocksize=2>(h)", ("2: a[0] b[1]",), 2, size="8, 8"),
    plane(
        "DepthToSpace",
        't = DepthToSpace<blocksize=2, mode="CRD">(h)',
        ("2: a[0] b[1]",),
        2,
        size="8, 8",
    ),
    plane("SpaceToDepth", "t = SpaceToDepth<blocksize=2>(h)", AB, 32, size="2, 2"),
    flat(
        "Shape",
        "n = Shape<start=1>(h) o = Constant<value=int64[1]{-1}>() m = Concat<axis=0>(o, n) "
        "u = Unsqueeze(h, i) t = Reshape(u, m)",
        ALL,
        values={"i": [0]},
    ),
    flat(
        "Size",
        "g = Gather<axis=0>(h, i) n = Size(g) k = Unsqueeze(n, i) "
        "o = Constant<value=int64[1]{-1}>() m = Concat<axis=0>(o, k) t = Reshape(h, m)",
        ALL,
        values={"i": [0]},
    ),
    *(
        Case(
            op,
            f"h = Conv(x, a) f = Cast<to=1>(places) n = Shape<start=0, end=1>(x) "
            "rest = Constant<value=int64[3]{4, 4, 2}>() shape = Concat<axis=0>(n, rest) "
            f"grid = Expand(f, shape) t = {op}(h, grid) y = Conv(t, b)",
            {"a": (8, 4, 1, 1), "b": (3, 8, 1, 1)},
            ("8: a[0] b[1]",),
            x="N, 4, 5, 5",
            y="N, 3, 4, 4",
            values={"places": np.linspace(-1.1, 1.1, 32).reshape(1, 4, 4, 2)},
            refused="input 1 of GridSample is not cut",
        )
        for op in ("GridSample", "com.microsoft.GridSample")
    ),
]


@pytest.mark.parametrize("case", runnable(CASES), ids=str)
def test_rule(case: Case) -> None:
    check(case)
