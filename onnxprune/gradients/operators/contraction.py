"""Operators that multiply and add up: with respect to one operand they are linear.

The gradient of a linear map is its transpose: of Conv a ConvTranspose with the same weights, of
ConvTranspose a Conv, of a product of matrices one with the other matrix transposed.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping

import onnx_ir as ir

from onnxprune.gradients.operators.kernels import of_kernel
from onnxprune.gradients.operators.windows import windows_of
from onnxprune.gradients.step import GradientStep, NoGradient, Rule


def _conv(step: GradientStep) -> Mapping[int, ir.Value]:
    emit, gradients = step.emit, {}
    weight = step.input(1)
    windows = windows_of(step, emit.shape_seen(weight)[2:])
    if 0 in step.wanted:
        group = int(step.attribute("group", 1))
        gradients[0] = windows.spread(step, step.gradient, weight, step.input(), group)
    if 1 in step.wanted:
        positions = math.prod(emit.shape_seen(step.output)[2:])
        gradients[1] = of_kernel(step, windows, step.input(), step.gradient, positions)
    if 2 in step.wanted:
        gradients[2] = _of_bias(step)
    return gradients


def _conv_transpose(step: GradientStep) -> Mapping[int, ir.Value]:
    """A convolution turned around: the gradient of its result is what the kernel slides over."""
    emit, gradients = step.emit, {}
    weight = step.input(1)
    windows = windows_of(step, emit.shape_seen(weight)[2:], transposed=True)
    if 0 in step.wanted:
        group = int(step.attribute("group", 1))
        attributes = windows.attributes()
        gradients[0] = emit.op("Conv", step.gradient, weight, group=group, **attributes)
    if 1 in step.wanted:
        positions = math.prod(emit.shape_seen(step.input())[2:])
        gradients[1] = of_kernel(step, windows, step.gradient, step.input(), positions)
    if 2 in step.wanted:
        gradients[2] = _of_bias(step)
    return gradients


def _of_bias(step: GradientStep) -> ir.Value:
    """One number for each channel."""
    axes = [axis for axis in range(step.rank()) if axis != 1]
    return step.emit.reduce("ReduceSum", step.gradient, axes, keep=False)


def _gemm(step: GradientStep) -> Mapping[int, ir.Value]:
    """Of alpha A B + beta C."""
    emit, gradients = step.emit, {}
    alpha, beta = float(step.attribute("alpha", 1.0)), float(step.attribute("beta", 1.0))
    first, second = int(step.attribute("transA", 0)), int(step.attribute("transB", 0))
    g = step.gradient
    if 0 in step.wanted:
        pair = (step.input(1), g) if first else (g, step.input(1))
        turned = {"transA": second, "transB": 1} if first else {"transB": 1 - second}
        gradients[0] = emit.op("Gemm", *pair, alpha=alpha, **turned)
    if 1 in step.wanted:
        pair = (g, step.input(0)) if second else (step.input(0), g)
        turned = {"transA": 1, "transB": first} if second else {"transA": 1 - first}
        gradients[1] = emit.op("Gemm", *pair, alpha=alpha, **turned)
    if 2 in step.wanted:
        share = emit.sum_to(g, step.input(2), step.output)
        same = beta == 1
        gradients[2] = share if same else emit.op("Mul", share, emit.number(beta, step.output))
    return gradients


def _matmul(step: GradientStep) -> Mapping[int, ir.Value]:
    """Of products of stacks of matrices, stacks broadcast."""
    emit, gradients = step.emit, {}
    left, right = step.input(0), step.input(1)
    if min(step.rank(0), step.rank(1)) < 2:
        return _with_vector(step)
    if 0 in step.wanted:
        product = emit.op("MatMul", step.gradient, _turned(step, right))
        gradients[0] = emit.sum_to(product, left, step.output, matrix_axes=2)
    if 1 in step.wanted and step.rank(0) > step.rank(1) == 2:
        # one product over all rows of the stack
        rows = [
            emit.reshape(value, emit.joined(emit.integers(-1), emit.extents(right, axis, axis + 1)))
            for axis, value in enumerate((left, step.gradient))
        ]
        gradients[1] = emit.op("Gemm", *rows, transA=1)
    elif 1 in step.wanted:
        product = emit.op("MatMul", _turned(step, left), step.gradient)
        gradients[1] = emit.sum_to(product, right, step.output, matrix_axes=2)
    return gradients


def _with_vector(step: GradientStep) -> Mapping[int, ir.Value]:
    """Of products one operand of which has one axis: it stands for a row or a column."""
    emit, left, right = step.emit, step.input(0), step.input(1)
    if step.rank(1) == 1:
        g = emit.unsqueeze(step.gradient, [emit.rank(step.output)])
        places = list(range(step.rank(0) - 1))
        summed = emit.reduce("ReduceSum", emit.op("Mul", g, left), places, keep=False)
        return {0: emit.op("Mul", g, right), 1: summed}
    inner = step.rank(1) - 2
    g = emit.unsqueeze(step.gradient, [inner])
    places = [axis for axis in range(step.rank(1)) if axis != inner]
    summed = emit.reduce("ReduceSum", emit.op("Mul", g, right), places, keep=False)
    return {0: summed, 1: emit.op("Mul", g, emit.unsqueeze(left, [1]))}


def _turned(step: GradientStep, value: ir.Value) -> ir.Value:
    """The matrices of a stack, transposed."""
    rank = step.emit.rank(value)
    return step.emit.op("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])


def _einsum(step: GradientStep) -> Mapping[int, ir.Value]:
    """The gradient takes the place of an operand, and the operand that of the result."""
    terms, result = _without_dots(step)
    if any(len(set(term)) < len(term) for term in terms):
        raise NoGradient(f"its operands are {','.join(terms)}, expected no repeated letters")
    gradients = {}
    for slot in sorted(step.wanted):
        others = [other for other in range(len(terms)) if other != slot]
        known = {letter for other in others for letter in terms[other]} | set(result)
        kept = "".join(letter for letter in terms[slot] if letter in known)
        operands = [step.gradient, *(step.input(other) for other in others)]
        turned = ",".join([result, *(terms[other] for other in others)]) + f"->{kept}"
        share = step.emit.op("Einsum", *operands, equation=turned)
        missing = [axis for axis, letter in enumerate(terms[slot]) if letter not in known]
        whole = step.emit.unsqueeze(share, missing)
        if missing:
            whole = step.emit.op("Expand", whole, step.emit.shape(step.input(slot)))
        gradients[slot] = whole
    return gradients


def _without_dots(step: GradientStep) -> tuple[list[str], str]:
    """Operands and result of an equation, with letters for the axes that dots stand for."""
    equation = str(step.attribute("equation")).replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        counted = [letter for letter in sorted(set(left) - {",", "."}) if left.count(letter) == 1]
        result = _DOTS * (_DOTS in left) + "".join(counted)
    counts = [
        step.rank(slot) - len(term.replace(_DOTS, "")) if _DOTS in term else 0
        for slot, term in enumerate(terms)
    ]
    most = max(counts)
    free = [letter for letter in string.ascii_letters if letter not in equation][:most]
    spelled = [
        term.replace(_DOTS, "".join(free[most - count :]))
        for term, count in zip(terms, counts, strict=True)
    ]
    extents: dict[str, int] = {}
    for slot, term in enumerate(spelled):
        for letter, extent in zip(term, step.emit.shape_seen(step.input(slot)), strict=True):
            if extents.setdefault(letter, extent) != extent:
                raise NoGradient(f"its equation is {equation!r}, expected no axis to be stretched")
    return spelled, result.replace(_DOTS, "".join(free))


_DOTS = "..."


RULES: dict[tuple[str, str], Rule] = {
    ("", "Conv"): _conv,
    ("", "ConvTranspose"): _conv_transpose,
    ("", "Gemm"): _gemm,
    ("", "MatMul"): _matmul,
    ("", "Einsum"): _einsum,
}
