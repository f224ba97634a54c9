"""Attention as one op: heads go whole, query and key dims together, value dims on their own."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.rules import Case, Shape, check, runnable

SEQUENCE = {"x": "N, 5, 4", "y": "N, 5, 3"}
QKV = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
OWNED = "b[0] wk[1] wq[1] wv[1]"
CAUSAL = np.tril(np.ones((5, 5), bool))
PENALTY = np.linspace(-3, 0, 3 * 5 * 5, dtype=np.float32).reshape(3, 5, 5)


def projections(
    query: int = 12, key: int = 12, value: int = 12, result: int = 12
) -> dict[str, Shape]:
    return {"wq": (4, query), "wk": (4, key), "wv": (4, value), "b": (result, 3)}


def merged(attributes: str = "", inputs: str = "", *owned: str, **more: object) -> Case:
    """The Attention op on [batch, length, heads * dim], three heads of four dims."""
    settings: dict[str, object] = {
        "weights": projections(),
        "groups": (f"24: {' '.join(sorted((*OWNED.split(), *owned)))}",),
        "opset": 23,
        "kind": "head",
        **SEQUENCE,
        **more,
    }
    heads = "q_num_heads=3, kv_num_heads=3"
    return Case(
        "Attention",
        f"{QKV} t = Attention<{heads}{attributes}>(q, k, v{inputs}) y = MatMul(t, b)",
        **settings,  # type: ignore[arg-type]
    )


APART = " ".join(
    f"{n}r = Reshape({n}, split{n}) {n}h = Transpose<perm=[0, 2, 1, 3]>({n}r)" for n in "qkv"
)
JOINED = "t4 = Transpose<perm=[0, 2, 1, 3]>(u) t = Reshape(t4, whole) y = MatMul(t, b)"


def apart(inputs: str = "", *owned: str, heads: int = 3, dim: int = 4, **more: object) -> Case:
    """The Attention op on [batch, heads, length, dim]; three key/value heads of four dims."""
    width = heads * dim
    split = {f"split{n}": np.array([0, 5, 3, -1]) for n in "kv"}
    split |= {"splitq": np.array([0, 5, heads, 4]), "whole": np.array([0, 5, width])}
    values: dict[str, object] = more.pop("values", {})  # type: ignore[assignment]
    settings: dict[str, object] = {
        "weights": projections(4 * heads, 12, 3 * dim, width) | more.pop("weights", {}),  # type: ignore[operator]
        "groups": (f"{12 + 3 * dim}: {' '.join(sorted((*OWNED.split(), *owned)))}",),
        "opset": 23,
        "kind": "head",
        "values": split | values,
        **SEQUENCE,
        **more,
    }
    body = f"{QKV} {APART} u = Attention(qh, kh, vh{inputs}) {JOINED}"
    return Case("Attention", body, **settings)  # type: ignore[arg-type]


MASK = "r = ReduceMax<axes=[2], keepdims=0>(x) g = Greater(r, zero) m = Cast<to=6>(g)"
"""Which positions of each sample count, as integers; it depends on the input."""


def packed(
    given: str = ", c",
    *owned: str,
    attributes: str = "",
    before: str = "",
    data: str = "x",
    **more: object,
) -> Case:
    """com.microsoft Attention: query, key and value of three heads from one weight."""
    settings: dict[str, object] = {
        "weights": {"w": (4, 36), "c": (36,), "b": (12, 3)},
        "groups": (f"12: {' '.join(sorted(('b[0]', 'w[1]', *owned)))}",),
        "kind": "channel group",
        **SEQUENCE,
        **more,
    }
    op = "com.microsoft.Attention"
    body = f"{before} t = {op}<num_heads=3{attributes}>({data}, w{given}) y = MatMul(t, b)"
    return Case(op, body, **settings)  # type: ignore[arg-type]


def multi_head(inputs: str = "", *owned: str, attributes: str = "", **more: object) -> Case:
    """com.microsoft MultiHeadAttention on [batch, length, heads * dim]."""
    settings: dict[str, object] = {
        "weights": projections(),
        "groups": (f"24: {' '.join(sorted((*OWNED.split(), *owned)))}",),
        "kind": "head",
        **SEQUENCE,
        **more,
    }
    before: object = settings.pop("before", "")
    op = "com.microsoft.MultiHeadAttention"
    node = f"t = {op}<num_heads=3{attributes}>(q, k, v{inputs})"
    return Case(op, f"{before} {QKV} {node} y = MatMul(t, b)", **settings)  # type: ignore[arg-type]


ANGLES = np.arange(5)[:, None] * np.array([[1.0, 0.3, 0.1, 0.03]])
IDS = "shape = Shape<start=0, end=2>(x) ids = Expand(at, shape)"
GROUPED = {"splitq": 6, "splitk": 3, "splitv": 3}
ROTATED_OWNED = "b[0] cos[1] sin[1] wk[1] wq[1] wv[1]"


def rotated(domain: str, attributes: str, units: int, turned: int = 8, **more: object) -> Case:
    """Query and key of two heads of eight dims are turned before the Attention op."""
    op = f"{domain}RotaryEmbedding"
    tables = "ids, cos, sin" if domain else "cos, sin, ids"
    turn = " ".join(f"{n}t = {op}<num_heads=2{attributes}>({n}, {tables})" for n in "qk")
    node = "t = Attention<q_num_heads=2, kv_num_heads=2>(qt, kt, v)"
    angles = ANGLES[:, : turned // 2].astype(np.float32)
    settings: dict[str, object] = {
        "weights": projections(16, 16, 16, 16),
        "groups": (f"{units}: {ROTATED_OWNED}",),
        "values": {"at": np.arange(5)[None], "cos": np.cos(angles), "sin": np.sin(angles)},
        "opset": 23,
        "kind": "head",
        **SEQUENCE,
        **more,
    }
    return Case(op, f"{QKV} {IDS} {turn} {node} y = MatMul(t, b)", **settings)  # type: ignore[arg-type]


CASES = [
    merged(),
    merged(", scale=0.3"),
    merged(", softcap=2.0"),
    merged(", is_causal=1"),
    merged(inputs=", m", values={"m": CAUSAL}),
    merged(inputs=", m", values={"m": CAUSAL[None, None]}),
    merged("", ", m", "m[1]", values={"m": PENALTY[None]}),
    merged(  # a mask that differs between heads and cannot be cut: every head keeps some dims
        inputs=", m",
        values={"m": np.stack([CAUSAL, CAUSAL.T, CAUSAL | CAUSAL.T])[None]},
        groups=("12: wk[1] wq[1]", "12: b[0] wv[1]"),
        kind="",
    ),
    merged(weights=projections(value=6, result=6), groups=(f"18: {OWNED}",)),
    Case(
        "Attention",  # four query heads on two key/value heads
        f"{QKV} t = Attention<q_num_heads=4, kv_num_heads=2>(q, k, v) y = MatMul(t, b)",
        projections(16, 8, 8, 16),
        (f"16: {OWNED}",),
        opset=23,
        kind="head",
        **SEQUENCE,
    ),
    Case(
        "Attention",  # all query heads on one key/value head: they can go one by one
        f"{QKV} t = Attention<q_num_heads=3, kv_num_heads=1>(q, k, v) y = MatMul(t, b)",
        projections(12, 4, 4, 12),
        (f"32: {OWNED}",),
        opset=23,
        kind="head",
        **SEQUENCE,
    ),
    Case(
        "Attention",  # a removed query head still averages the values it shares with the others
        f"{QKV} t = Attention<q_num_heads=3, kv_num_heads=1>(q, k, v) s = ReduceSum(t, last) "
        "u = Mul(t, s) y = MatMul(u, b)",
        projections(12, 4, 4, 12),
        ("16: wk[1] wq[1]",),
        refused="ReduceSum takes statistics over it",
        opset=23,
        values={"last": np.array([2])},
        **SEQUENCE,
    ),
    Case(
        "Attention",  # learned keys and values: the softmax runs over all of them
        "q = MatMul(x, wq) n = Shape<start=0, end=1>(x) rest = Constant<value=int64[2]{7, 12}>() "
        "s = Concat<axis=0>(n, rest) k = Expand(wk, s) v = Expand(wv, s) "
        "t = Attention<q_num_heads=3, kv_num_heads=3>(q, k, v) y = MatMul(t, b)",
        {"wq": (4, 12), "wk": (1, 7, 12), "wv": (1, 7, 12), "b": (12, 3)},
        ("24: b[0] wk[2] wq[1] wv[2]",),
        refused="Softmax takes statistics over it",
        opset=23,
        **SEQUENCE,
    ),
    *(
        Case(
            op,  # key and value from elsewhere, of another length
            "q = MatMul(x, wq) k = MatMul(z, wk) v = MatMul(z, wv) "
            f"t = {op}<{heads}>(q, k, v) y = MatMul(t, b)",
            projections(),
            (f"24: {OWNED}",),
            opset=23,
            kind="head",
            inputs=", float[N, 7, 4] z",
            **SEQUENCE,
        )
        for op, heads in (
            ("Attention", "q_num_heads=3, kv_num_heads=3"),
            ("com.microsoft.MultiHeadAttention", "num_heads=3"),
        )
    ),
    apart(),
    apart(dim=2),
    apart(heads=6),
    apart(", m", "m[1]", values={"m": PENALTY[None]}),
    Case(
        "Attention",
        f"{QKV} s = Sigmoid(q) c = Sigmoid(k) "
        "t = Attention<q_num_heads=3, kv_num_heads=3>(s, c, v) y = MatMul(t, b)",
        projections(),
        (f"15: {OWNED}",),
        refused="",
        opset=23,
        **SEQUENCE,
    ),
    Case(
        "Attention",
        f"{QKV} t, nk, nv = Attention<q_num_heads=3, kv_num_heads=3>(q, k, v, , pk, pv) "
        "y = MatMul(t, b)",
        projections(),
        refused="a key/value cache",
        opset=23,
        inputs=", float[N, 3, 2, 4] pk, float[N, 3, 2, 4] pv",
        **SEQUENCE,
    ),
    Case(
        "Attention",
        f"{QKV} t, pk, pv = Attention<q_num_heads=3, kv_num_heads=3>(q, k, v) z = ReduceSum(pk) "
        "u = Add(t, z) y = MatMul(u, b)",
        projections(),
        refused="a key/value cache",
        opset=23,
        **SEQUENCE,
    ),
    packed(", c", "c[0]"),
    packed(", c", "c[0]", attributes=", scale=0.3, unidirectional=1"),
    packed(", c, m", "c[0]", before=MASK, values={"zero": np.float32(-0.5)}),
    packed(", c, , , p", "c[0]", "p[1]", values={"p": PENALTY[None]}),
    packed(
        ", c",
        before="h = MatMul(x, a)",
        data="h",
        weights={"a": (4, 8), "w": (8, 36), "c": (36,), "b": (12, 3)},
        groups=("8: a[1] w[0]", "12: b[0] c[0] w[1]"),
        kind="",
    ),
    packed(
        attributes=", qkv_hidden_sizes=[12, 12, 6]",
        weights={"w": (4, 30), "c": (30,), "b": (6, 3)},
        groups=("18: b[0] c[0] w[1]",),
    ),
    packed(
        attributes=", qkv_hidden_sizes=[12, 12, 12]",  # queries and values of a head apart
        groups=("24: b[0] c[0] w[1]",),
    ),
    multi_head(),
    multi_head(attributes=", scale=0.3, unidirectional=1"),
    multi_head(", , , p", "p[1]", values={"p": PENALTY[None]}),
    multi_head(", c", "c[0]", weights=projections() | {"c": (36,)}),
    multi_head(", , m", before=MASK, values={"zero": np.float32(-0.5)}),
    multi_head(weights=projections(value=6, result=6), groups=(f"18: {OWNED}",)),
    Case(
        "com.microsoft.MultiHeadAttention",
        f"{QKV} t = com.microsoft.MultiHeadAttention<num_heads=3>(q, k, v, , , , pk, pv) "
        "y = MatMul(t, b)",
        projections(),
        refused="a key/value cache",
        inputs=", float[N, 3, 2, 4] pk, float[N, 3, 2, 4] pv",
        **SEQUENCE,
    ),
    rotated("", "", 24),
    rotated("", ", interleaved=1", 24),
    rotated("", ", rotary_embedding_dim=4", 28, turned=4),
    rotated("", ", rotary_embedding_dim=4, interleaved=1", 28, turned=4),
    Case(
        "RotaryEmbedding",  # heads on an axis of their own, two query heads on each key head
        f"{QKV} {IDS} {APART} qt = RotaryEmbedding(qh, cos, sin, ids) "
        f"kt = RotaryEmbedding(kh, cos, sin, ids) u = Attention(qt, kt, vh) {JOINED}",
        projections(24, 12, 12, 24),
        (f"18: {ROTATED_OWNED}",),
        opset=23,
        kind="head",
        values={
            **{name: np.array([0, 5, heads, -1]) for name, heads in GROUPED.items()},
            "whole": np.array([0, 5, -1]),
            "at": np.arange(5)[None],
            "cos": np.cos(ANGLES[:, :2]).astype(np.float32),
            "sin": np.sin(ANGLES[:, :2]).astype(np.float32),
        },
        **SEQUENCE,
    ),
    rotated("com.microsoft.", "", 24),
    rotated("com.microsoft.", ", interleaved=1", 24),
    rotated("com.microsoft.", ", rotary_embedding_dim=4", 28, turned=4),
]


@pytest.mark.parametrize("case", runnable(CASES), ids=str)
def test_rule(case: Case) -> None:
    check(case)


def test_query_and_key_are_read_by_each_other_and_the_result_by_a_weight() -> None:
    group = merged().traced().groups[0]
    readers = {(one.consumer.tensor, one.consumer.weight) for one in group.readings}
    assert readers == {("q", None), ("k", None), ("t", "b")}
