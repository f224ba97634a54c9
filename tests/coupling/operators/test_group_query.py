"""com.microsoft GroupQueryAttention: key/value heads go whole, with the queries they serve."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.rules import Case, check, runnable

OP = "com.microsoft.GroupQueryAttention"
APART = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
TOGETHER = "q = MatMul(x, w)"
LENGTHS = "shape = Shape<start=0, end=1>(x) last = Expand(four, shape)"
VALUES: dict[str, object] = {"four": np.array([4], np.int32), "five": np.array(5, np.int32)}
PENALTY = np.linspace(-3, 0, 6 * 5 * 5, dtype=np.float32).reshape(1, 6, 5, 5)
ANGLES = np.arange(5)[:, None] * np.logspace(0, -2, 8)[None]
TABLES = {"cos": np.cos(ANGLES).astype(np.float32), "sin": np.sin(ANGLES).astype(np.float32)}


def grouped(
    given: str = "q, k, v, , , last, five",
    *owned: str,
    dim: int = 8,
    attributes: str = "",
    result: str = "t",
    before: str = "",
    **more: object,
) -> Case:
    """Six query heads on three key/value heads."""
    fused = given.startswith("q, ,")
    weights = {"w": (4, 12 * dim)} if fused else {"wq": (4, 6 * dim)}
    weights |= {} if fused else {"wk": (4, 3 * dim), "wv": (4, 3 * dim)}
    names = sorted(("b[0]", *owned, *(f"{name}[1]" for name in weights)))
    values: dict[str, object] = more.pop("values", {})  # type: ignore[assignment]
    settings: dict[str, object] = {
        "groups": (f"3: {' '.join(names)}",),
        "x": "N, 5, 4",
        "y": "N, 5, 3",
        **more,
    }
    return Case(
        OP,
        f"{LENGTHS} {before} {TOGETHER if fused else APART} "
        f"{result} = {OP}<num_heads=6, kv_num_heads=3{attributes}>({given}) y = MatMul(t, b)",
        weights | {"b": (6 * dim, 3)},
        values=VALUES | values,
        **settings,  # type: ignore[arg-type]
    )


PAST = "more = Constant<value=int64[3]{3, 0, 8}>() way = Concat<axis=0>(shape, more) "
PACKED = "q, , , , , last, five"
CASES = [
    grouped(kind="head"),
    grouped(attributes=", scale=0.3, local_window_size=3, softcap=2.0"),
    grouped(result="t, nk, nv"),
    grouped(PACKED),
    grouped("q, k, v, , , last, five, cos, sin", dim=16, attributes=", do_rotary=1", values=TABLES),
    grouped("q, k, v, , , last, five, , , , p", "p[1]", values={"p": PENALTY}),
    grouped(f"{PACKED}, , , , , s", "s[0]", values={"s": np.ones(6, np.float32)}),
    grouped(
        "q, k, v, pk, pv, last, five",
        before=f"{PAST} pk = ConstantOfShape(way) pv = ConstantOfShape(way)",
        result="t, nk, nv",
    ),
    grouped(
        "q, k, v, pk, pv, last, five",
        result="t, nk, nv",
        inputs=", float[N, 3, 5, 8] pk, float[N, 3, 5, 8] pv",
        groups=(),
        refused="is an input or output of the model",
    ),
]


@pytest.mark.parametrize("case", runnable(CASES), ids=str)
def test_rule(case: Case) -> None:
    check(case)
