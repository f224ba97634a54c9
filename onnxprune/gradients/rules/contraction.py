"""Operators that multiply and add up: with respect to one operand they are linear.

The gradient of a linear map is its transpose: of Conv a ConvTranspose with the same weights, of
ConvTranspose a Conv, of a product of matrices one with the other matrix transposed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.gradients.rules.windows import windows_of
from onnxprune.gradients.step import NoGradient

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from onnxprune.gradients.step import GradientStep, Rule

__all__ = ["RULES"]


def _conv(step: GradientStep) -> Mapping[int, ir.Value]:
    """With respect to the activation."""
    _require_first(step)
    weight = step.input(1)
    windows = windows_of(step, step.emit.shape_seen(weight)[2:])
    group = int(step.attribute("group", 1))
    return {0: windows.spread(step, step.gradient, weight, step.input(), group)}


def _conv_transpose(step: GradientStep) -> Mapping[int, ir.Value]:
    """With respect to the activation."""
    _require_first(step)
    weight = step.input(1)
    windows = windows_of(step, step.emit.shape_seen(weight)[2:], transposed=True)
    group = int(step.attribute("group", 1))
    given = windows.attributes()
    return {0: step.emit.op("Conv", step.gradient, weight, group=group, **given)}


def _require_first(step: GradientStep) -> None:
    if step.wanted != {0}:
        raise NoGradient("its weight or bias is computed, expected constants")


def _gemm(step: GradientStep) -> Mapping[int, ir.Value]:
    """Of alpha A B + beta C."""
    emit, found = step.emit, {}
    alpha, beta = float(step.attribute("alpha", 1.0)), float(step.attribute("beta", 1.0))
    first, second = int(step.attribute("transA", 0)), int(step.attribute("transB", 0))
    g = step.gradient
    if 0 in step.wanted:
        pair = (step.input(1), g) if first else (g, step.input(1))
        turned = {"transA": second, "transB": 1} if first else {"transB": 1 - second}
        found[0] = emit.op("Gemm", *pair, alpha=alpha, **turned)
    if 1 in step.wanted:
        pair = (g, step.input(0)) if second else (step.input(0), g)
        turned = {"transA": 1, "transB": first} if second else {"transA": 1 - first}
        found[1] = emit.op("Gemm", *pair, alpha=alpha, **turned)
    if 2 in step.wanted:
        share = emit.op("Mul", g, emit.number(beta, step.output))
        found[2] = emit.sum_to(share, step.input(2), step.output)
    return found


def _matmul(step: GradientStep) -> Mapping[int, ir.Value]:
    """Of products of stacks of matrices, stacks broadcast."""
    emit, found = step.emit, {}
    left, right = step.input(0), step.input(1)
    if min(step.rank(0), step.rank(1)) < 2:
        raise NoGradient("it multiplies a vector, expected matrices")
    if 0 in step.wanted:
        product = emit.op("MatMul", step.gradient, _turned(step, right))
        found[0] = _unstacked(step, product, left)
    if 1 in step.wanted:
        product = emit.op("MatMul", _turned(step, left), step.gradient)
        found[1] = _unstacked(step, product, right)
    return found


def _turned(step: GradientStep, value: ir.Value) -> ir.Value:
    """The matrices of a stack, transposed."""
    rank = step.emit.rank(value)
    return step.emit.op("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])


def _unstacked(step: GradientStep, product: ir.Value, operand: ir.Value) -> ir.Value:
    """Undo the broadcast of stacks: add up matrices over the axes that the operand lacks."""
    emit = step.emit
    seen, result = emit.shape_seen(operand), emit.shape_seen(step.output)
    lacking = len(result) - len(seen)
    stretched = [
        axis + lacking
        for axis in range(len(seen) - 2)
        if seen[axis] == 1 and result[axis + lacking] != 1
    ]
    if not stretched and not lacking:
        return product
    return emit.like(emit.reduce("ReduceSum", product, [*range(lacking), *stretched]), operand)


RULES: dict[tuple[str, str], Rule] = {
    ("", "Conv"): _conv,
    ("", "ConvTranspose"): _conv_transpose,
    ("", "Gemm"): _gemm,
    ("", "MatMul"): _matmul,
}
