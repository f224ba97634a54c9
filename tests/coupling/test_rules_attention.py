"""Attention as one op: heads go whole, query and key dims together, value dims on their own."""

from __future__ import annotations

import numpy as np
import pytest
from rules import Case, Shape, check, runnable

SEQUENCE = {"x": "N, 5, 4", "y": "N, 5, 3"}
QKV = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
OWNED = "b[0] wk[1] wq[1] wv[1]"
CAUSAL = np.tril(np.ones((5, 5), bool))
PENALTY = np.linspace(-3, 0, 3 * 5 * 5, dtype=np.float32).reshape(3, 5, 5)


def projections(query: int = 12, key: int = 12, value: int = 12, result: int = 12) -> dict[str, Shape]:
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


CASES = [
    merged(),
    merged(", scale=0.3"),
    merged(", softcap=2.0"),
    merged(", is_causal=1"),
]


@pytest.mark.parametrize("case", runnable(CASES), ids=str)
def test_rule(case: Case) -> None:
    check(case)
