"""Places are given along some axes, which are fixed; features and their indices go through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.rules import Case, check, runnable

ALL = "8: a[1] b[0]"
EDGES = {"start": np.array([0, 1, 1]), "end": np.array([1, 0, 1]), "i": np.array([1])}
MESSAGES = "h = MatMul(x, a) m = Gather<axis=0>(h, start) "
EXPANDED = "u = Unsqueeze(end, i) n = Shape(m) k = Expand(u, n) "
ZEROS = "s = Shape(h) z = ConstantOfShape(s) "


def graph(op: str, body: str, groups: str | tuple[str, ...] = ALL, **more: Any) -> Case:
    """Messages m [3, 8] between nodes h [N, 8]; t [N, 8] is what reaches the nodes."""
    weights = {"a": (4, 8), "b": (8, 3)} | more.pop("weights", {})
    wanted = (groups,) if isinstance(groups, str) else groups
    values = EDGES | more.pop("values", {})
    return Case(op, f"{MESSAGES}{body} y = MatMul(t, b)", weights, wanted, values=values, **more)


def added(body: str, groups: str | tuple[str, ...] = ALL, **more: Any) -> Case:
    return graph("ScatterElements", body, groups, **more)


FIXED = {"refused": "its entries are put at places"}
CASES = [
    # torch.scatter_add with the index expanded along the features
    added(f'{EXPANDED}{ZEROS}t = ScatterElements<axis=0, reduction="add">(z, k, m)'),
    added(
        "l = Unsqueeze(end, i) k = Expand(l, c) z = Expand(o, d) "
        't = ScatterElements<axis=0, reduction="add">(z, k, m)',
        x="2, 4",
        y="2, 3",
        values={"c": np.array([3, 8]), "d": np.array([2, 8]), "o": np.float32(0)},
    ),
    # the expanded index folded to a constant
    added(
        f'{ZEROS}t = ScatterElements<axis=-2, reduction="add">(z, k, m)',
        "8: a[1] b[0] k[1]",
        values={"k": np.repeat([[1], [0], [1]], 8, axis=1)},
    ),
    # other places for every feature
    added(
        f'{ZEROS}t = ScatterElements<axis=0, reduction="add">(z, k, m)',
        "8: a[1] b[0] k[1]",
        values={"k": np.random.default_rng(3).integers(0, 2, (3, 8)).astype(np.int32)},
    ),
    *(
        added(f'{EXPANDED}t = ScatterElements<axis=0, reduction="{reduction}">(h, k, m)', opset=18)
        for reduction in ("none", "max", "min", "mul")
    ),
    # negative indices are corrected first
    added(
        "u = Unsqueeze(end, i) q = Less(u, zero) r = Add(u, two) v = Where(q, r, u) n = Shape(m) "
        f'k = Expand(v, n) {ZEROS}t = ScatterElements<reduction="add">(z, k, m)',
        values={"zero": np.int64(0), "two": np.int64(2)},
    ),
    # features behind a softmax over the messages of each node
    added(
        f'{EXPANDED}{ZEROS}g = Exp(m) w = ScatterElements<axis=0, reduction="add">(z, k, g) '
        "p = Gather<axis=0>(w, end) r = Div(g, p) f = Mul(m, r) "
        't = ScatterElements<axis=0, reduction="add">(z, k, f)'
    ),
    # a state of nodes that is learnt
    added(
        f'{EXPANDED}t = ScatterElements<axis=0, reduction="add">(c, k, m)',
        "8: a[1] b[0] c[1]",
        x="2, 4",
        y="2, 3",
        weights={"c": (2, 8)},
    ),
    # two heads, whose one index per message is expanded along both axes: units, heads, positions
    added(
        "q = Reshape(m, f) u = Unsqueeze(end, ij) n = Shape(q) k = Expand(u, n) r = Reshape(h, f) "
        's = Shape(r) z = ConstantOfShape(s) w = ScatterElements<axis=0, reduction="add">(z, k, q) '
        "t = Reshape(w, g)",
        "14: a[1] b[0]",
        values={"f": [-1, 2, 4], "g": [-1, 8], "ij": [1, 2]},
    ),
    # the features are the places
    added(
        't = ScatterElements<axis=1, reduction="add">(h, k, c)',
        (),
        x="2, 4",
        y="2, 3",
        weights={"c": (2, 2)},
        values={"k": np.array([[0, 1], [1, 0]])},
        **FIXED,
    ),
    # only some features are reached
    added(
        't = ScatterElements<axis=0, reduction="add">(h, k, c)',
        (),
        weights={"c": (1, 5)},
        values={"k": np.array([[0, 1, 0, 1, 1]])},
        refused="ScatterElements reaches a part of it",
    ),
    graph(
        "Scatter",
        f"{EXPANDED}{ZEROS}t = Scatter<axis=0>(z, k, m)".replace("(end, i)", "<axes=[1]>(end)"),
        opset=10,
    ),
    graph(
        "GatherElements",
        "u = Unsqueeze(end, i) n = Shape(h) k = Expand(u, n) t = GatherElements<axis=0>(m, k)",
        x="3, 4",
        y="3, 3",
    ),
    graph(
        "GatherElements",
        "t = GatherElements<axis=1>(h, k)",
        (),
        x="2, 4",
        y="2, 3",
        values={"k": np.zeros((2, 8), np.int64)},
        refused="looked up at run time",
    ),
    *(
        graph(
            "ScatterND",
            f'{ZEROS}k = Unsqueeze(end, i) t = ScatterND<reduction="{reduction}">({data}, k, m)',
            opset=18,
        )
        for reduction, data in (("none", "z"), ("add", "z"), ("max", "z"), ("mul", "h"))
    ),
    graph(
        "ScatterND",
        'k = Unsqueeze(end, i) t = ScatterND<reduction="add">(c, k, m)',
        "8: a[1] b[0] c[1]",
        x="2, 4",
        y="2, 3",
        weights={"c": (2, 8)},
    ),
    # a place of its own for every number
    graph(
        "ScatterND",
        't = ScatterND<reduction="add">(h, k, c)',
        (),
        weights={"c": (3,)},
        values={"k": np.array([[0, 5], [1, 7], [1, 0]])},
        **FIXED,
    ),
]


@pytest.mark.parametrize("case", runnable(CASES), ids=str)
def test_rule(case: Case) -> None:
    check(case)
