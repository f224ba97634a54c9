"""If, Loop and Scan: states live and die together, and what never leaves a body dies alone."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.rules import Case, check, runnable

SQUARE = {"a": (4, 8), "k": (8, 8), "b": (8, 3)}
COUNT = {"n": np.array(3)}
CARRIED = "int64 i, bool c, float[N, 8] s"
RESIDUAL = "m = MatMul(s, k) q = Tanh(m) r = Add(q, s) d = Identity(c)"


def loop(
    body: str,
    groups: tuple[str, ...],
    *,
    before: str = "h = MatMul(x, a)",
    inputs: str = "h",
    formals: str = CARRIED,
    results: str = "bool d, float[N, 8] r",
    outputs: str = "t",
    after: str = "y = MatMul(t, b)",
    **more: object,
) -> Case:
    """Something between two matrix products, three times."""
    settings: dict[str, object] = {"weights": SQUARE, **more}
    values: dict[str, object] = settings.pop("values", {})  # type: ignore[assignment]
    return Case(
        "Loop",
        f"{before} {outputs} = Loop(n, , {inputs})"
        f"<body = step ({formals}) => ({results}) {{ {body} }}> {after}",
        groups=groups,
        values=COUNT | values,
        **settings,  # type: ignore[arg-type]
    )


def scan(body: str, groups: tuple[str, ...], attributes: str = "", **more: object) -> Case:
    """A recurrent layer over the five tokens of h [N, 5, 8]."""
    settings: dict[str, object] = {"weights": SQUARE, "x": "N, 5, 4", **more}
    return Case(
        "Scan",
        "p = MatMul(x, a) g = ReduceMax<axes=[1], keepdims=0>(p) z = Sub(g, g) "
        f"t, u = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1]{attributes}, "
        "body = step (float[N, 8] s, float[N, 8] e) => (float[N, 8] r, float[N, 8] o) "
        f"{{ {body} }}>(z, p) y = MatMul(t, b)",
        groups=groups,
        **settings,  # type: ignore[arg-type]
    )


def branches(first: str, second: str, groups: tuple[str, ...], **more: object) -> Case:
    """Either of two things between two matrix products; the input decides."""
    settings: dict[str, object] = {"weights": SQUARE, **more}
    return Case(
        "If",
        "h = MatMul(x, a) w = ReduceMax<keepdims=0>(x) g = Greater(w, zero) "
        f"t = If(g)<then_branch = one () => (float[N, 8] u) {{ {first} }}, "
        f"else_branch = two () => (float[N, 8] v) {{ {second} }}> y = MatMul(t, b)",
        groups=groups,
        values={"zero": np.array(0.5, np.float32)},
        **settings,  # type: ignore[arg-type]
    )


WHOLE = ("8: a[1] b[0] k[0] k[1]",)
MEETS = "that cannot be cut"
CASES = [
    Case(
        "If",  # names that bodies use twice
        "h = MatMul(x, a) q = Constant<value=bool{1}>() "
        "s = If(q)<then_branch = one () => (float[N, 8] u) { u = Relu(h) }, "
        "else_branch = two () => (float[N, 8] w) { w = Neg(h) }> "
        "t = If(q)<then_branch = three () => (float[N, 8] u) { u = Relu(s) }, "
        "else_branch = four () => (float[N, 8] w) { w = Neg(s) }> y = MatMul(t, b)",
        {"a": (4, 8), "b": (8, 3)},
        ("8: a[1] b[0]",),
    ),
    loop(RESIDUAL, WHOLE),
    loop(RESIDUAL, WHOLE, values={"n": np.array(0)}),
    loop("m = MatMul(s, k) r = Sigmoid(m) d = Identity(c)", WHOLE),
    loop(  # a width that never leaves the body
        "m = MatMul(s, k) q = Relu(m) r = MatMul(q, l) d = Identity(c)",
        ("6: k[1] l[0]", "8: a[1] b[0] k[0] l[1]"),
        weights={"a": (4, 8), "k": (8, 6), "l": (6, 8), "b": (8, 3)},
    ),
    loop(
        "m = MatMul(s, k) q = Relu(m) r = MatMul(q, l) d = Identity(c)",
        ("6: k[1] l[0]",),
        before="",
        inputs="x",
        formals="int64 i, bool c, float[N, 4] s",
        results="bool d, float[N, 4] r",
        weights={"k": (4, 6), "l": (6, 4), "b": (4, 3)},
        refused=MEETS,
    ),
    loop(  # the weight is carried along
        "m = MatMul(s, w) q = Tanh(m) r = Add(q, s) d = Identity(c) o = Identity(w)",
        WHOLE,
        inputs="h, k",
        formals=f"{CARRIED}, float[8, 8] w",
        results="bool d, float[N, 8] r, float[8, 8] o",
        outputs="t, unused",
    ),
    loop(  # a weight that changes on the way is none
        "m = MatMul(s, w) q = Tanh(m) r = Add(q, s) d = Identity(c) o = Neg(w)",
        WHOLE,
        inputs="h, k",
        formals=f"{CARRIED}, float[8, 8] w",
        results="bool d, float[N, 8] r, float[8, 8] o",
        outputs="t, unused",
    ),
    loop(  # two states change places
        "r = Relu(s) j = Neg(f) d = Identity(c)",
        ("8: a[1] b[0] k[1]",),
        before="h = MatMul(x, a) g = MatMul(x, k)",
        inputs="h, g",
        formals=f"{CARRIED}, float[N, 8] f",
        results="bool d, float[N, 8] j, float[N, 8] r",
        outputs="t, unused",
        weights={"a": (4, 8), "k": (4, 8), "b": (8, 3)},
    ),
    loop(  # what is collected has one axis more
        f"{RESIDUAL} o = Relu(q)",
        WHOLE,
        results="bool d, float[N, 8] r, float[N, 8] o",
        outputs="unused, u",
        after="t = ReduceSum<keepdims=0>(u, first) y = MatMul(t, b)",
        values={"first": np.array([0])},
    ),
    loop(  # sums over the state are safe as long as it stays zero
        RESIDUAL,
        WHOLE,
        after="e = ReduceSum<keepdims=1>(t, last) f = Mul(t, e) y = MatMul(f, b)",
        values={"last": np.array([1])},
    ),
    loop(
        "m = MatMul(s, k) r = Sigmoid(m) d = Identity(c)",
        (),
        after="e = ReduceSum<keepdims=1>(t, last) f = Mul(t, e) y = MatMul(f, b)",
        values={"last": np.array([1])},
        refused="ReduceSum takes statistics over it",
    ),
    loop(
        "q = Softmax(s) m = MatMul(q, k) r = Add(m, s) d = Identity(c)",
        (),
        refused="Softmax takes statistics over it",
    ),
    loop(  # heads in a body
        "m = MatMul(s, k) e = Reshape(m, apart) f = Softmax(e) g = Reshape(f, flat) "
        "r = MatMul(g, l) d = Identity(c)",
        ("3: k[1] l[0]", "8: a[1] b[0] k[0] l[1]"),
        weights={"a": (4, 8), "k": (8, 6), "l": (6, 8), "b": (8, 3)},
        values={"apart": np.array([0, 3, 2]), "flat": np.array([0, 6])},
    ),
    loop(  # a body in a body
        "g = Less(i, two) r = If(g)<then_branch = one () => (float[N, 8] u) "
        "{ m = MatMul(s, k) u = Tanh(m) }, else_branch = other () => (float[N, 8] v) "
        "{ v = Neg(s) }> d = Identity(c)",
        WHOLE,
        values={"two": np.array(2)},
    ),
    loop(  # the input is read inside
        "m = MatMul(h, k) r = Add(m, s) d = Identity(c)",
        ("8: a[1] k[0]", "8: b[0] e[1] k[1]"),
        before="h = MatMul(x, a) j = MatMul(x, e)",
        inputs="j",
        weights=SQUARE | {"e": (4, 8)},
    ),
    loop(
        "r = Concat<axis=0>(s, s) d = Identity(c)",
        (),
        refused="Loop runs a subgraph whose state changes its shape",
        after="q = ReduceMax<axes=[0]>(t) e = Add(h, q) y = MatMul(e, b)",
    ),
    loop(
        "m = Gather<axis=1>(s, i) e = Unsqueeze(m, last) r = Mul(s, e) d = Identity(c)",
        (),
        values={"last": np.array([1])},
        refused="looked up at run time",
    ),
    scan("m = MatMul(s, k) q = Tanh(m) r = Add(q, e) o = Relu(r)", WHOLE),
    scan(
        "m = MatMul(s, k) q = Tanh(m) r = Add(q, e) o = Relu(r)",
        WHOLE,
        ", scan_input_directions=[1]",
    ),
    Case(
        "Scan",  # what is collected
        "p = MatMul(x, a) u = Scan<num_scan_inputs=1, scan_input_axes=[-2], scan_output_axes=[-2], "
        "body = step (float[N, 8] e) => (float[N, 8] o) { m = MatMul(e, k) o = Relu(m) }>(p) "
        "y = MatMul(u, b)",
        SQUARE,
        ("8: a[1] k[0]", "8: b[0] k[1]"),
        x="N, 5, 4",
        y="N, 5, 3",
    ),
    Case(
        "Scan",
        "p = MatMul(x, a) u = Scan<num_scan_inputs=1, scan_input_axes=[2], "
        "body = step (float[N, 5] e) => (float[N, 5] o) { o = Relu(e) }>(p) "
        "t = Transpose<perm=[1, 2, 0]>(u) y = MatMul(t, b)",
        SQUARE,
        refused="Scan runs along it",
        x="N, 5, 4",
        y="N, 5, 3",
    ),
    branches("u = Relu(h)", "v = Neg(h)", ("8: a[1] b[0]",)),
    branches("m = MatMul(h, k) u = Tanh(m)", "v = Neg(h)", WHOLE),
    branches(
        "m = MatMul(x, k) q = Relu(m) u = MatMul(q, l)",
        "v = Neg(h)",
        ("6: k[1] l[0]", "8: a[1] b[0] l[1]"),
        weights={"a": (4, 8), "k": (4, 6), "l": (6, 8), "b": (8, 3)},
    ),
    branches(
        "u = Add(h, k)", "v = Identity(h)", ("8: a[1] b[0] k[0]",), weights=SQUARE | {"k": (8,)}
    ),
    branches(
        "u = Identity(h)",
        "v = Identity(k)",
        ("8: a[1] b[0] k[1]",),
        x="2, 4",
        y="2, 3",
        refused=MEETS,
        weights=SQUARE | {"k": (2, 8)},
    ),
    loop(  # a learned initial state, and one that starts at zero
        "m = MatMul(s, k) q = Add(m, e) r = Tanh(q) g = Relu(f) o = Add(g, e) d = Identity(c)",
        ("8: b[0] e[1] h[1] k[0] k[1]",),
        before="w = Shape(e) z = ConstantOfShape(w)",
        inputs="h, z",
        formals=f"{CARRIED}, float[2, 8] f",
        results="bool d, float[N, 8] r, float[2, 8] o",
        outputs="t, v",
        after="j = Add(t, v) l = Mul(j, e) p = MatMul(x, a) o2 = MatMul(l, b) y = Add(o2, p)",
        weights={"h": (2, 8), "e": (2, 8), "k": (8, 8), "b": (8, 3), "a": (4, 3)},
        x="2, 4",
        y="2, 3",
        refused=MEETS,
    ),
    branches(
        "u = Relu(h)", "q = Softmax(h) v = Neg(q)", (), refused="Softmax takes statistics over it"
    ),
]


@pytest.mark.parametrize("case", runnable(CASES), ids=str)
def test_rule(case: Case) -> None:
    check(case)
