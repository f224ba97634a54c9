"""Ops that work element by element: operands are tied position by position, with broadcasting."""

from __future__ import annotations

import numpy as np

from onnxprune.coupling.step import Refusal, RuleTable, Step

# fmt: off
# f(0) = 0: the output is zero wherever the input is.
_ZERO_TO_ZERO = [
    "Abs", "Asin", "Asinh", "Atan", "Atanh", "Cast", "CastLike", "Ceil", "Celu", "Dropout",
    "Elu", "Erf", "Floor", "Gelu", "HardSwish", "Identity", "LeakyRelu", "Mish", "Neg", "Relu",
    "Round", "Selu", "Shrink", "Sign", "Sin", "Sinh", "Softsign", "Sqrt", "Swish", "Tan",
    "Tanh", "ThresholdedRelu",
]
_OTHER_UNARY = [
    "Acos", "Acosh", "BitwiseNot", "Cos", "Cosh", "Exp", "HardSigmoid", "IsInf", "IsNaN", "Not",
    "Sigmoid", "Softplus",
]
# fmt: on
# 1/0 and log(0) would put an infinity where the masked model holds a zero.
_SINGULAR_AT_ZERO = ["Log", "Reciprocal"]
_ZERO_IF_ALL = ["Add", "BitwiseOr", "BitwiseXor", "Max", "Mean", "Min", "Or", "Sub", "Sum", "Xor"]
_ZERO_IF_ANY = ["And", "BitwiseAnd", "Mul"]
_COMPARE = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]


def _unary(step: Step, keeps_zero: bool) -> None:
    labels = step.read()
    axis_labels = step.move(labels, {axis: axis for axis in range(len(labels.shape))})
    step.emit(axis_labels, zero=keeps_zero and labels.zero, constant=labels.constant and keeps_zero)


def _zero_to_zero(step: Step) -> None:
    _unary(step, keeps_zero=True)


def _other_unary(step: Step) -> None:
    _unary(step, keeps_zero=False)


def _singular_at_zero(step: Step) -> None:
    labels = step.read()
    if labels.zero and labels.axis_labels:
        raise Refusal(f"{step.node.op_type} is not finite where the removed part is zero")
    _unary(step, keeps_zero=False)


def _zero_if_all(step: Step) -> None:
    operands, axis_labels = step.join_inputs(step.inputs())
    step.emit(axis_labels, zero=all(operand.blanks(axis_labels) for operand in operands))


def _zero_if_any(step: Step) -> None:
    operands, axis_labels = step.join_inputs(step.inputs())
    step.emit(axis_labels, zero=any(operand.blanks(axis_labels) for operand in operands))


def _never_zero(step: Step) -> None:
    _, axis_labels = step.join_inputs(step.inputs())
    step.emit(axis_labels)


def _divide(step: Step) -> None:
    """Div, Mod: a divisor must not be zero where it is removed; constant ones keep their value."""
    divisor = step.peek(1)
    if divisor.zero and divisor.axis_labels:
        raise Refusal("the divisor is zero where it is removed")
    _zero_as_first(step)


def _power(step: Step) -> None:
    """Pow: 0 ** e is 0 only for e > 0, and not finite for e < 0."""
    base, exponent = step.peek(0), step.constant(1)
    if base.zero and base.axis_labels and (exponent is None or (exponent < 0).any()):
        raise Refusal("a negative power is not finite where the removed part is zero")
    operands, axis_labels = step.join_inputs([0, 1])
    positive = exponent is not None and bool((exponent > 0).all())
    step.emit(axis_labels, zero=positive and operands[0].blanks(axis_labels))


def _where(step: Step) -> None:
    operands, axis_labels = step.join_inputs([0, 1, 2])
    step.emit(axis_labels, zero=all(operand.blanks(axis_labels) for operand in operands[1:]))


def _zero_as_first(step: Step) -> None:
    """BitShift, PRelu: where the first operand is zero, so is the result."""
    operands, axis_labels = step.join_inputs([0, 1])
    step.emit(axis_labels, zero=operands[0].blanks(axis_labels))


def _clip(step: Step) -> None:
    """Clip: bounds are scalars; zero stays zero when it lies between them."""
    bounds = [step.attribute("min"), step.attribute("max")]
    for slot in (1, 2):
        value = step.constant(slot)
        if value is not None and np.size(value) == 1:
            bounds[slot - 1] = float(np.asarray(value, np.float64).reshape(()))
    low, high = bounds
    known = all(bounds[slot - 1] is not None or not step.has(slot) for slot in (1, 2))
    _unary(step, known and (low is None or low <= 0) and (high is None or high >= 0))


RULES: RuleTable = {
    **{("", op): _zero_to_zero for op in _ZERO_TO_ZERO},
    **{("", op): _other_unary for op in _OTHER_UNARY},
    **{("", op): _singular_at_zero for op in _SINGULAR_AT_ZERO},
    **{("", op): _zero_if_all for op in _ZERO_IF_ALL},
    **{("", op): _zero_if_any for op in _ZERO_IF_ANY},
    **{("", op): _never_zero for op in _COMPARE},
    **{("", op): _divide for op in ("Div", "Mod")},
    ("", "Pow"): _power,
    ("", "Where"): _where,
    **{("", op): _zero_as_first for op in ("BitShift", "PRelu")},
    ("", "Clip"): _clip,
}
