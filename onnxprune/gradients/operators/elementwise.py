"""Operators that work entry by entry: dL/dx = dL/dy * dy/dx, added up where x was broadcast."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import onnx_ir as ir

from onnxprune.gradients.step import GradientStep, NoGradient, Rule

Derivative: TypeAlias = "Callable[[GradientStep, ir.Value, ir.Value], ir.Value]"


def _unary(derivative: Derivative) -> Rule:
    """Rule of an operator y = f(x) whose derivative is emitted from x and y."""

    def rule(step: GradientStep) -> Mapping[int, ir.Value]:
        slope = derivative(step, step.input(), step.output)
        return {0: step.emit.op("Mul", step.gradient, slope)}

    return rule


def _where(step: GradientStep, condition: ir.Value, yes: float, no: float) -> ir.Value:
    x, emit = step.input(), step.emit
    return emit.op("Where", condition, emit.number(yes, x), emit.number(no, x))


def _above(step: GradientStep, x: ir.Value, limit: float) -> ir.Value:
    return step.emit.op("Greater", x, step.emit.number(limit, step.input()))


def _affine(step: GradientStep, x: ir.Value, factor: float, shift: float) -> ir.Value:
    """Factor * x + shift."""
    emit, like = step.emit, step.input()
    return emit.op("Add", emit.op("Mul", x, emit.number(factor, like)), emit.number(shift, like))


def _relu(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    # of the result, which may be fused with what makes x
    return step.emit.cast_like(_above(step, y, 0.0), x)


def _leaky_relu(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    return _where(step, _above(step, x, 0.0), 1.0, float(step.attribute("alpha", 0.01)))


def _sigmoid(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    return step.emit.op("Mul", y, _affine(step, y, -1.0, 1.0))


def _tanh(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    return _affine(step, step.emit.op("Mul", y, y), -1.0, 1.0)


def _erf(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    emit = step.emit
    bell = emit.op("Exp", emit.op("Neg", emit.op("Mul", x, x)))
    return emit.op("Mul", bell, emit.number(2.0 / math.sqrt(math.pi), x))


def _gelu(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    emit = step.emit
    square = emit.op("Mul", x, x)
    if step.attribute("approximate", "none") == "tanh":
        inner = emit.op("Mul", x, _affine(step, square, 0.044715, 1.0))
        t = emit.op("Tanh", _affine(step, inner, math.sqrt(2 / math.pi), 0.0))
        slope = _affine(step, square, 3 * 0.044715, 1.0)
        slope = emit.op("Mul", slope, _affine(step, emit.op("Mul", t, t), -1.0, 1.0))
        bell = _affine(step, emit.op("Mul", x, slope), math.sqrt(2 / math.pi) / 2, 0.0)
        return emit.op("Add", _affine(step, t, 0.5, 0.5), bell)
    share = _affine(step, emit.op("Erf", _affine(step, x, math.sqrt(0.5), 0.0)), 0.5, 0.5)
    bell = emit.op("Exp", _affine(step, square, -0.5, 0.0))
    bell = emit.op("Mul", x, _affine(step, bell, 1 / math.sqrt(2 * math.pi), 0.0))
    return emit.op("Add", share, bell)


def _quick_gelu(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    """Of x sigmoid(alpha x): s (1 + alpha x (1 - s))."""
    emit, alpha = step.emit, float(step.attribute("alpha", _ALPHA[step.node.op_type]))
    share = emit.op("Sigmoid", _affine(step, x, alpha, 0.0))
    rise = emit.op("Mul", _affine(step, x, alpha, 0.0), _affine(step, share, -1.0, 1.0))
    return emit.op("Mul", share, _affine(step, rise, 1.0, 1.0))


_ALPHA = {"QuickGelu": 1.702, "Swish": 1.0}


def _softplus(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    return step.emit.op("Sigmoid", x)


def _softsign(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    share = _affine(step, step.emit.op("Abs", y), -1.0, 1.0)
    return step.emit.op("Mul", share, share)


def _mish(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    """Of x tanh(softplus(x)): t + x sigmoid(x) (1 - t^2)."""
    emit = step.emit
    t = emit.op("Tanh", emit.op("Softplus", x))
    flat = _affine(step, emit.op("Mul", t, t), -1.0, 1.0)
    rise = emit.op("Mul", emit.op("Mul", x, emit.op("Sigmoid", x)), flat)
    return emit.op("Add", t, rise)


def _elu(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    emit, alpha = step.emit, float(step.attribute("alpha", 1.0))
    return emit.op("Where", _above(step, x, 0.0), emit.number(1.0, x), _affine(step, y, 1.0, alpha))


def _selu(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    emit = step.emit
    alpha = float(step.attribute("alpha", 1.67326319217681884765625))
    gamma = float(step.attribute("gamma", 1.05070102214813232421875))
    falling = _affine(step, y, 1.0, alpha * gamma)
    return emit.op("Where", _above(step, x, 0.0), emit.number(gamma, x), falling)


def _hard_slope(step: GradientStep, alpha: float, beta: float) -> tuple[ir.Value, ir.Value]:
    """Value and slope of clip(alpha x + beta, 0, 1)."""
    emit = step.emit
    line = _affine(step, step.input(), alpha, beta)
    inside = emit.op("And", _above(step, line, 0.0), _below(step, line, 1.0))
    clipped = emit.op("Sub", emit.op("Relu", line), emit.op("Relu", _affine(step, line, 1.0, -1.0)))
    return clipped, _where(step, inside, alpha, 0.0)


def _below(step: GradientStep, x: ir.Value, limit: float) -> ir.Value:
    return step.emit.op("Less", x, step.emit.number(limit, step.input()))


def _hard_sigmoid(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    alpha, beta = float(step.attribute("alpha", 0.2)), float(step.attribute("beta", 0.5))
    return _hard_slope(step, alpha, beta)[1]


def _hard_swish(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    share, slope = _hard_slope(step, 1 / 6, 0.5)
    return step.emit.op("Add", share, step.emit.op("Mul", x, slope))


def _exp(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    return y


def _log(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    return step.emit.op("Reciprocal", x)


def _sqrt(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    return step.emit.op("Div", step.emit.number(0.5, x), y)


def _reciprocal(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    return step.emit.op("Neg", step.emit.op("Mul", y, y))


def _neg(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    return step.emit.number(-1.0, x)


def _abs(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    return step.emit.op("Sign", x)


def _sin(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    return step.emit.op("Cos", x)


def _cos(step: GradientStep, x: ir.Value, y: ir.Value) -> ir.Value:
    return step.emit.op("Neg", step.emit.op("Sin", x))


def _clip(step: GradientStep) -> Mapping[int, ir.Value]:
    """What was cut off has no gradient."""
    emit = step.emit
    same = emit.op("Equal", step.input(), step.output)
    return {0: emit.op("Mul", step.gradient, emit.cast_like(same, step.input()))}


def _prelu(step: GradientStep) -> Mapping[int, ir.Value]:
    emit, x, gradients = step.emit, step.input(), {}
    above = _above(step, x, 0.0)
    if 0 in step.wanted:
        slope = emit.op("Where", above, emit.number(1.0, x), step.input(1))
        gradients[0] = emit.op("Mul", step.gradient, slope)
    if 1 in step.wanted:
        below = emit.op("Where", above, emit.number(0.0, x), x)
        gradients[1] = _undone(step, 1, emit.op("Mul", step.gradient, below))
    return gradients


def _add(step: GradientStep) -> Mapping[int, ir.Value]:
    """Of Add and Sum."""
    return {slot: _undone(step, slot, step.gradient) for slot in sorted(step.wanted)}


def _mean(step: GradientStep) -> Mapping[int, ir.Value]:
    emit, count = step.emit, len(step.node.inputs)
    share = emit.op("Mul", step.gradient, emit.number(1 / count, step.output))
    return {slot: _undone(step, slot, share) for slot in sorted(step.wanted)}


def _sub(step: GradientStep) -> Mapping[int, ir.Value]:
    gradients = dict(_add(step))
    return gradients | {1: step.emit.op("Neg", gradients[1])} if 1 in gradients else gradients


def _mul(step: GradientStep) -> Mapping[int, ir.Value]:
    return {
        slot: _undone(step, slot, step.emit.op("Mul", step.gradient, step.input(1 - slot)))
        for slot in sorted(step.wanted)
    }


def _div(step: GradientStep) -> Mapping[int, ir.Value]:
    emit, gradients = step.emit, {}
    share = emit.op("Div", step.gradient, step.input(1))
    if 0 in step.wanted:
        gradients[0] = _undone(step, 0, share)
    if 1 in step.wanted:
        gradients[1] = _undone(step, 1, emit.op("Neg", emit.op("Mul", share, step.output)))
    return gradients


def _pow(step: GradientStep) -> Mapping[int, ir.Value]:
    """With respect to the base: p x^(p - 1)."""
    if 1 in step.wanted:
        raise NoGradient("its exponent is computed, expected a constant", {1})
    emit, x = step.emit, step.input()
    power = emit.cast_like(step.input(1), x)
    less = emit.op("Pow", x, emit.op("Sub", power, emit.number(1.0, x)))
    slope = emit.op("Mul", power, less)
    return {0: _undone(step, 0, emit.op("Mul", step.gradient, slope))}


def _choice(step: GradientStep) -> Mapping[int, ir.Value]:
    """Where: each branch has the gradient of the places it was taken at."""
    emit, gradients = step.emit, {}
    nothing = emit.number(0.0, step.output)
    for slot in sorted(step.wanted & {1, 2}):
        branches = (step.gradient, nothing) if slot == 1 else (nothing, step.gradient)
        gradients[slot] = _undone(step, slot, emit.op("Where", step.input(0), *branches))
    return gradients


def _extreme(step: GradientStep) -> Mapping[int, ir.Value]:
    """Max and Min: of operands that are equal the first one has the gradient."""
    emit, gradients = step.emit, {}
    left = step.gradient
    nothing = emit.number(0.0, step.output)
    for slot in range(len(step.node.inputs)):
        taken = emit.op("Equal", step.input(slot), step.output)
        if slot in step.wanted:
            gradients[slot] = _undone(step, slot, emit.op("Where", taken, left, nothing))
        left = emit.op("Where", taken, nothing, left)
    return gradients


def _same(step: GradientStep) -> Mapping[int, ir.Value]:
    """Identity, and Dropout in inference."""
    return {0: step.gradient}


def _cast(step: GradientStep) -> Mapping[int, ir.Value]:
    """Between floating-point types; what is quantised counts as one."""
    return {0: step.emit.cast_like(step.gradient, step.input())}


def _flat(step: GradientStep) -> Mapping[int, ir.Value]:
    """Steps have no slope anywhere."""
    return {}


def _undone(step: GradientStep, slot: int, gradient: ir.Value) -> ir.Value:
    return step.emit.sum_to(gradient, step.input(slot), step.output)


_DERIVATIVES: dict[tuple[str, str], Derivative] = {
    ("", "Relu"): _relu,
    ("", "LeakyRelu"): _leaky_relu,
    ("", "Sigmoid"): _sigmoid,
    ("", "Tanh"): _tanh,
    ("", "Erf"): _erf,
    ("", "Gelu"): _gelu,
    ("com.microsoft", "Gelu"): _gelu,
    ("com.microsoft", "QuickGelu"): _quick_gelu,
    ("", "Swish"): _quick_gelu,
    ("", "Softplus"): _softplus,
    ("", "Softsign"): _softsign,
    ("", "Mish"): _mish,
    ("", "Elu"): _elu,
    ("", "Selu"): _selu,
    ("", "HardSigmoid"): _hard_sigmoid,
    ("", "HardSwish"): _hard_swish,
    ("", "Exp"): _exp,
    ("", "Log"): _log,
    ("", "Sqrt"): _sqrt,
    ("", "Reciprocal"): _reciprocal,
    ("", "Neg"): _neg,
    ("", "Abs"): _abs,
    ("", "Sin"): _sin,
    ("", "Cos"): _cos,
}

RULES: dict[tuple[str, str], Rule] = {
    **{op: _unary(derivative) for op, derivative in _DERIVATIVES.items()},
    ("", "Clip"): _clip,
    ("", "PRelu"): _prelu,
    ("", "Add"): _add,
    ("", "Sum"): _add,
    ("", "Mean"): _mean,
    ("", "Sub"): _sub,
    ("", "Mul"): _mul,
    ("", "Div"): _div,
    ("", "Pow"): _pow,
    ("", "Where"): _choice,
    ("", "Max"): _extreme,
    ("", "Min"): _extreme,
    ("", "Identity"): _same,
    ("", "Dropout"): _same,
    ("", "Cast"): _cast,
    ("", "CastLike"): _cast,
    **{("", kind): _flat for kind in ("Floor", "Ceil", "Round", "Sign")},
}
