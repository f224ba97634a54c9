"""Element-wise ops tie their operands; whether zero stays zero decides what may be summed."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.rules import Case, check, runnable

WEIGHTS = {"a": (4, 8), "b": (8, 3)}
NEWER = {"BitwiseAnd": 18, "BitwiseNot": 18, "BitwiseOr": 18, "BitwiseXor": 18, "Mish": 18}
NEWER |= {"Gelu": 20, "IsInf": 20, "IsNaN": 20, "Swish": 24}
STATISTICS = "takes statistics over it"

# c lies in (-0.5, 0.5); the sum over the channels is exact only if what is removed is zero
BEFORE = "h = MatMul(x, a) w = Tanh(h) half = Constant<value_float=0.5>() c = Mul(w, half)"
AFTER = "one = Constant<value=int64[1]{1}>() u = ReduceSum(t, one) v = Mul(c, u) y = MatMul(v, b)"


def in_frame(op: str, body: str, zero: bool, *owned: str, **more: object) -> Case:
    groups = (f"8: {' '.join(sorted(('a[1]', 'b[0]', *owned)))}",) if zero else ()
    return Case(
        op,
        f"{BEFORE} {body} {AFTER}",
        WEIGHTS | {name[0]: (8,) for name in owned},
        groups,
        "" if zero else STATISTICS,
        opset=NEWER.get(op, 17),
        **more,  # type: ignore[arg-type]
    )


KEEPS_ZERO = [
    "Abs",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Celu",
    "Elu",
    "Erf",
    "Gelu",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Mish",
    "Neg",
    "Relu",
    "Selu",
    "Sign",
    "Sin",
    "Sinh",
    "Softsign",
    "Swish",
    "Tan",
    "Tanh",
]
STEPS = ["Ceil", "Floor", "Round", "Shrink", "ThresholdedRelu"]
LOSES_ZERO = ["Acos", "Cos", "Cosh", "Exp", "HardSigmoid", "Sigmoid", "Softplus"]
BINARY = {"Add": True, "Max": True, "Mean": True, "Min": True, "Mul": True, "Sub": True}
BINARY |= {"Div": True, "Sum": True, "PRelu": True}
COMPARE = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]
TO_BOOL = "n = Constant<value_float=0.0>() g = Greater(c, n)"
TO_INT = (
    "m = Constant<value_float=60.0>() l = Mul(c, m) k = Abs(l) g = Cast<to=13>(k) "
    "l2 = Mul(l, c) k2 = Abs(l2) g2 = Cast<to=13>(k2)"
)

CASES = [
    *(in_frame(op, f"t = {op}(c)", True) for op in KEEPS_ZERO),
    *(in_frame(op, f"m = Div(c, p) t = {op}(m)", True, "p[0]") for op in STEPS),
    *(in_frame(op, f"t = {op}(c)", False) for op in LOSES_ZERO),
    *(in_frame(op, f"t = {op}(c, p)", zero, "p[0]") for op, zero in BINARY.items()),
    *(in_frame(op, f"t = {op}(c, half)", False) for op in ("Add", "Max", "Mean", "Sub", "Sum")),
    *(in_frame(op, f"g = {op}(c, p) t = Cast<to=1>(g)", False, "p[0]") for op in COMPARE),
    *(in_frame(op, f"{TO_BOOL} q = {op}(g, g) t = Cast<to=1>(q)", False) for op in ("Or", "Xor")),
    *(in_frame(op, f"g = {op}(c) t = Cast<to=1>(g)", False) for op in ("IsInf", "IsNaN")),
    *(
        in_frame(op, f"{TO_INT} q = {op}(g, g2) t = Cast<to=1>(q)", True)
        for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
    ),
    in_frame("And", f"{TO_BOOL} q = And(g, g) t = Cast<to=1>(q)", False),
    in_frame("Not", f"{TO_BOOL} q = Not(g) t = Cast<to=1>(q)", False),
    in_frame("BitwiseNot", f"{TO_INT} q = BitwiseNot(g) t = Cast<to=1>(q)", False),
    in_frame("BitShift", f'{TO_INT} q = BitShift<direction="LEFT">(g, g2) t = Cast<to=1>(q)', True),
    in_frame("Cast", "q = Cast<to=11>(c) t = Cast<to=1>(q)", True),
    in_frame(
        "CastLike", "q = Cast<to=11>(c) n = Constant<value_float=0.0>() t = CastLike(q, n)", True
    ),
    in_frame("Dropout", "t = Dropout(c)", True),
    in_frame("Sqrt", "k = Abs(c) t = Sqrt(k)", True),
    in_frame("Acosh", "k = Cosh(c) t = Acosh(k)", False),
    in_frame(
        "Clip",
        "t = Clip(c, low, high)",
        True,
        values={"low": np.float32(-0.2), "high": np.float32(0.2)},
    ),
    in_frame("Clip", "t = Clip(c, low)", False, values={"low": np.float32(0.1)}),
    in_frame("Where", f"{TO_BOOL} d = Neg(c) t = Where(g, c, d)", True),
    in_frame("Where", f"{TO_BOOL} t = Where(g, c, half)", False),
    in_frame("Mod", "t = Mod<fmod=1>(c, p)", True, "p[0]"),
    in_frame("Pow", "t = Pow(c, e)", True, values={"e": np.array(2, np.float32)}),
    in_frame("Pow", "t = Pow(c, e)", False, values={"e": np.array(0, np.float32)}),
    Case(
        "Pow",
        "h = MatMul(x, a) t = Pow(h, e) y = MatMul(t, b)",
        WEIGHTS,
        refused="a negative power",
        values={"e": np.array(-2, np.float32)},
    ),
    *(
        Case(
            op,
            f"h = MatMul(x, a) k = Abs(h) t = {op}(k) y = MatMul(t, b)",
            WEIGHTS,
            refused="not finite where the removed part is zero",
        )
        for op in ("Log", "Reciprocal")
    ),
    *(
        Case(
            op,
            f"h = MatMul(x, a) k = Softplus(h) t = {op}(k) y = MatMul(t, b)",
            WEIGHTS,
            ("8: a[1] b[0]",),
        )
        for op in ("Log", "Reciprocal")
    ),
    Case(
        "Div",
        "h = MatMul(x, a) d = MatMul(x, f) k = Abs(d) t = Div(h, k) y = MatMul(t, b)",
        WEIGHTS | {"f": (4, 8)},
        refused="the divisor is zero where it is removed",
    ),
    Case(
        "Div",
        "h = MatMul(x, a) k = Sigmoid(h) t = Div(h, k) y = MatMul(t, b)",
        WEIGHTS,
        ("8: a[1] b[0]",),
    ),
    Case(
        "Div",
        "h = MatMul(x, a) k = Abs(d) s = Sqrt(k) t = Div(h, s) y = MatMul(t, b)",
        WEIGHTS | {"d": (8,)},
        ("8: a[1] b[0] d[0]",),
    ),
    Case(
        "Add",
        "h = MatMul(x, a) t = Add(h, x) y = MatMul(t, b)",
        {"a": (4, 4), "b": (4, 3)},
        refused="it meets an axis of x that cannot be cut",
    ),
]


@pytest.mark.parametrize("case", runnable(CASES), ids=str)
def test_rule(case: Case) -> None:
    check(case)
