"""Numbers that were observed are believed only where no input of that size can change them."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.oracle import parse, traced

WEIGHTS = {"a": np.ones((4, 8), np.float32), "b": np.ones((8, 3), np.float32)}
NUMBERS = {"i": np.array([1]), "two": np.array(2), "zero": np.zeros((), np.float32)}
FROM_DATA = "g = Greater(h, zero) c = Cast<to=7>(g) m = ReduceMax<keepdims=0>(c)"


def settled(body: str, name: str) -> bool:
    text = (
        '<ir_version: 8, opset_import: ["": 17]> net (float[N, 4] x) => (float[N, 3] y) '
        f"{{ h = MatMul(x, a) {body} y = MatMul(h, b) }}"
    )
    return name in traced(parse(text, WEIGHTS | NUMBERS)).coupling.static


@pytest.mark.parametrize(
    "body",
    [
        "v = Identity(two)",
        "v = Shape(h)",
        "v = Size(x)",
        "s = Shape(h) t = Mul(s, two) v = Cast<to=6>(t)",
        "s = Shape(h) f = Cast<to=1>(s) r = Sqrt(f) v = Cast<to=7>(r)",
        "s = Shape(h) z = ConstantOfShape(s) v = NonZero(z)",
        f"{FROM_DATA} v = Shape(g)",
        "n = NonZero(h) t = Transpose(n) z = Identity(zero) s = Shape<start=0, end=1>(t) "
        "u = Expand(z, s) k = ScatterND(h, t, u) v = Shape(k)",
    ],
)
def test_what_follows_from_constants_and_shapes(body: str) -> None:
    assert settled(body, "v")


@pytest.mark.parametrize(
    "body",
    [
        FROM_DATA.replace("m =", "v ="),
        f"{FROM_DATA} v = Add(m, two)",
        "n = NonZero(h) v = Shape(n)",
        "n = NonZero(h) t = Transpose(n) k = GatherND(h, t) v = Size(k)",
        f"{FROM_DATA} d = Unsqueeze(m, i0) r = Expand(zero, d) v = Shape(r)".replace("i0", "k0"),
        f"{FROM_DATA} q = Identity(two) r = Range(q, m, q) v = Size(r)",
        "w = If(yes)<then_branch = one () => (float[N, 8] u) { u = Relu(h) }, else_branch = "
        "other () => (float[N, 8] w) { w = Neg(h) }> v = Shape(w)",
    ],
)
def test_what_depends_on_data(body: str) -> None:
    prefix = "k0 = Constant<value=int64[1]{0}>() yes = Constant<value=bool{1}>() "
    assert not settled(prefix + body, "v")
