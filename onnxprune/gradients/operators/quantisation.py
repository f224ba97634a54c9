"""Quantised tensors, differentiated as if nothing was rounded (straight through).

The gradient of a quantised tensor is taken with respect to its integers, as if they were real
numbers: x = scale (q - zero). Source: Bengio et al. 2013.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxprune.gradients.step import GradientStep, NoGradient, Rule


def _dequantise(step: GradientStep) -> Mapping[int, ir.Value]:
    return {0: step.emit.op("Mul", step.gradient, _scale(step))}


def _quantise(step: GradientStep) -> Mapping[int, ir.Value]:
    """What was cut off at the ends of the range has no gradient."""
    emit, scale = step.emit, _scale(step)
    stepwise = [value for value in step.node.inputs[1:3] if value is not None]
    attributes = {name: step.attribute(name) for name in ("axis",) if name in step.node.attributes}
    back = emit.op("DequantizeLinear", step.output, *stepwise, **attributes)
    apart = emit.op("Abs", emit.op("Sub", step.input(), back))
    near = emit.op("Less", apart, scale)
    share = emit.op("Div", step.gradient, scale)
    return {0: emit.op("Where", near, share, emit.number(0.0, step.input()))}


def _quantise_dynamically(step: GradientStep) -> Mapping[int, ir.Value]:
    """The range is that of the tensor: nothing is cut off, and the scale counts as a constant."""
    return {0: step.emit.op("Div", step.gradient, step.node.outputs[1])}


def _scale(step: GradientStep) -> ir.Value:
    """Of the tensor, or one for each index of an axis."""
    scale = step.input(1)
    rank = step.emit.rank(scale)
    if rank == 0 or step.emit.shape_seen(scale) == (1,):
        return scale
    if rank > 1:
        raise NoGradient("it has a scale for each block, expected one for each channel or tensor")
    return step.emit.unsqueeze(scale, range(1, step.rank() - step.axis(1)))


RULES: dict[tuple[str, str], Rule] = {
    **{(domain, "DequantizeLinear"): _dequantise for domain in ("", "com.microsoft")},
    **{(domain, "QuantizeLinear"): _quantise for domain in ("", "com.microsoft")},
    ("", "DynamicQuantizeLinear"): _quantise_dynamically,
}
"""Rule of every operator, by domain and name."""
