"""Softmax, and operators that divide by a deviation computed from the activation itself.

With x^ = (x - mean) / deviation and g = dL/dy * scale, over the axes the statistics run over:

    dL/dx = (g - mean(g) - x^ mean(g x^)) / deviation

without the mean(g) where no mean is subtracted (root mean square). The scale's gradient is the sum
of dL/dy x^, the bias's that of dL/dy. Source: Ba et al. 2016.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.gradients.emitter import Emitter
from onnxprune.gradients.step import GradientStep, NoGradient, Rule


def _softmax(step: GradientStep) -> Mapping[int, ir.Value]:
    emit, y = step.emit, step.output
    product = emit.op("Mul", step.gradient, y)
    mean = emit.reduce("ReduceSum", product, _softmax_axes(step))
    return {0: emit.op("Sub", product, emit.op("Mul", y, mean))}


def _log_softmax(step: GradientStep) -> Mapping[int, ir.Value]:
    emit = step.emit
    summed = emit.reduce("ReduceSum", step.gradient, _softmax_axes(step))
    share = emit.op("Mul", emit.op("Exp", step.output), summed)
    return {0: emit.op("Sub", step.gradient, share)}


def _softmax_axes(step: GradientStep) -> Sequence[int]:
    """One axis; before operator set 13 all from it on."""
    if step.emit.opset < 13:
        return range(step.axis(1), step.rank())
    return [step.axis(-1)]


def _batch_normalisation(step: GradientStep) -> Mapping[int, ir.Value]:
    """In inference mean and deviation are constants."""
    emit, gradients = step.emit, {}
    statistics = step.wanted & {3, 4}
    if statistics or int(step.attribute("training_mode", 0)):
        raise NoGradient("its mean and variance are computed, expected constants", statistics)
    epsilon = emit.number(float(step.attribute("epsilon", 1e-5)), step.input(4))
    deviation = emit.op("Sqrt", emit.op("Add", step.input(4), epsilon))
    trailing = range(1, step.rank() - 1)
    if 0 in step.wanted:
        factor = emit.op("Div", step.input(1), deviation)
        gradients[0] = emit.op("Mul", step.gradient, emit.unsqueeze(factor, trailing))
    others = [axis for axis in range(step.rank()) if axis != 1]
    if 1 in step.wanted:
        # sum of g (x - mean), without a normalised copy of x
        centred = emit.op("Sub", step.input(), emit.unsqueeze(step.input(3), trailing))
        product = emit.op("Mul", step.gradient, centred)
        summed = emit.reduce("ReduceSum", product, others, keep=False)
        gradients[1] = emit.op("Div", summed, deviation)
    if 2 in step.wanted:
        gradients[2] = emit.reduce("ReduceSum", step.gradient, others, keep=False)
    return gradients


def _layer_normalisation(step: GradientStep) -> Mapping[int, ir.Value]:
    """Of LayerNormalization, and of RMSNormalization, which subtracts no mean."""
    _require_no_statistics(step)
    emit, axes = step.emit, range(step.axis(-1), step.rank())
    normal = _Normal.of(step, step.input(), axes, centred=step.node.op_type == _CENTRED)
    gradients = _of_scale_and_bias(step, normal, 1, 2)
    if 0 in step.wanted:
        gradients[0] = normal.back(emit.op("Mul", step.gradient, step.input(1)))
    return gradients


_CENTRED = "LayerNormalization"


def _skip_layer_normalisation(step: GradientStep) -> Mapping[int, ir.Value]:
    """Of x + skip + bias, whose sum may be an output of its own."""
    _require_no_statistics(step)
    emit, centred = step.emit, step.node.op_type == "SkipLayerNormalization"
    shift, bias = (3, 4) if centred else (None, 3)
    gradients: dict[int, ir.Value] = {}
    back = step.gradients[3] if len(step.gradients) > 3 else None
    if step.gradients[0] is not None:
        total = emit.op("Add", step.input(0), step.input(1))
        if step.has(bias):
            total = emit.op("Add", total, step.input(bias))
        normal = _Normal.of(step, total, [step.rank() - 1], centred=centred)
        gradients = _of_scale_and_bias(step, normal, 2, shift)
        if step.wanted & {0, 1, bias}:
            through = normal.back(emit.op("Mul", step.gradient, step.input(2)))
            back = emit.total(back, through)
    if back is not None:
        for slot in sorted(step.wanted & {0, 1, bias}):
            gradients[slot] = emit.sum_to(back, step.input(slot), step.output)
    return gradients


def _of_scale_and_bias(
    step: GradientStep, normal: _Normal, scale: int, bias: int | None
) -> dict[int, ir.Value]:
    """Those that are wanted, added up to their shapes."""
    emit, gradients = step.emit, {}
    if scale in step.wanted:
        share = emit.op("Mul", step.gradient, normal.unit)
        gradients[scale] = emit.sum_to(share, step.input(scale), step.output)
    if bias is not None and bias in step.wanted:
        gradients[bias] = emit.sum_to(step.gradient, step.input(bias), step.output)
    return gradients


def _require_no_statistics(step: GradientStep) -> None:
    if any(gradient is not None for gradient in step.gradients[1:3]):
        raise NoGradient("the loss depends on its mean or deviation, expected its result alone")


def _instance_normalisation(step: GradientStep) -> Mapping[int, ir.Value]:
    emit, rank, gradients = step.emit, step.rank(), {}
    normal = _Normal.of(step, step.input(), range(2, rank), centred=True)
    others = [axis for axis in range(rank) if axis != 1]
    if 0 in step.wanted:
        scale = emit.unsqueeze(step.input(1), range(1, rank - 1))
        gradients[0] = normal.back(emit.op("Mul", step.gradient, scale))
    if 1 in step.wanted:
        share = emit.op("Mul", step.gradient, normal.unit)
        gradients[1] = emit.reduce("ReduceSum", share, others, keep=False)
    if 2 in step.wanted:
        gradients[2] = emit.reduce("ReduceSum", step.gradient, others, keep=False)
    return gradients


def _group_normalisation(step: GradientStep) -> Mapping[int, ir.Value]:
    """One scale for each channel; before operator set 21 one for each group."""
    emit, x, gradients = step.emit, step.input(), {}
    # [samples, scales, entries that share one] and [samples, groups, entries]
    lines = emit.joined(emit.extents(x, 0, 1), emit.extents(step.input(1), 0, 1), emit.integers(-1))
    groups = emit.integers(int(step.attribute("num_groups")), -1)
    groups = emit.joined(emit.extents(x, 0, 1), groups)
    normal = _Normal.of(step, emit.reshape(x, groups), [2], centred=True)
    slope = emit.reshape(step.gradient, lines)
    if 0 in step.wanted:
        scaled = emit.op("Mul", slope, emit.unsqueeze(step.input(1), [1]))
        gradients[0] = emit.reshape_like(normal.back(emit.reshape(scaled, groups)), x)
    if 1 in step.wanted:
        share = emit.op("Mul", slope, emit.reshape(normal.unit, lines))
        gradients[1] = emit.reduce("ReduceSum", share, [0, 2], keep=False)
    if 2 in step.wanted:
        gradients[2] = emit.reduce("ReduceSum", slope, [0, 2], keep=False)
    return gradients


@dataclass(frozen=True)
class _Normal:
    """An activation divided by its deviation.

    Attributes:
        emit: appends nodes.
        unit: x^.
        inverse: 1 / deviation.
        axes: that the statistics run over.
        centred: whether the mean was subtracted.
    """

    emit: Emitter
    unit: ir.Value
    inverse: ir.Value
    axes: Sequence[int]
    centred: bool

    @classmethod
    def of(cls, step: GradientStep, x: ir.Value, axes: Sequence[int], *, centred: bool) -> _Normal:
        """Append the nodes that compute it."""
        emit, axes = step.emit, list(axes)
        if centred:
            x = emit.op("Sub", x, emit.reduce("ReduceMean", x, axes))
        spread = emit.reduce("ReduceMean", emit.op("Mul", x, x), axes)
        epsilon = emit.number(float(step.attribute("epsilon", 1e-5)), step.input())
        inverse = emit.op("Reciprocal", emit.op("Sqrt", emit.op("Add", spread, epsilon)))
        return cls(emit, emit.op("Mul", x, inverse), inverse, axes, centred)

    def back(self, g: ir.Value) -> ir.Value:
        """Append dL/dx, of g = dL/dx^."""
        emit, unit = self.emit, self.unit
        along = emit.reduce("ReduceMean", emit.op("Mul", g, unit), self.axes)
        rest = emit.op("Sub", g, emit.op("Mul", unit, along))
        if self.centred:
            rest = emit.op("Sub", rest, emit.reduce("ReduceMean", g, self.axes))
        return emit.op("Mul", rest, self.inverse)


RULES: dict[tuple[str, str], Rule] = {
    ("", "Softmax"): _softmax,
    ("", "LogSoftmax"): _log_softmax,
    ("", "BatchNormalization"): _batch_normalisation,
    ("", "LayerNormalization"): _layer_normalisation,
    ("", "RMSNormalization"): _layer_normalisation,
    ("", "SimplifiedLayerNormalization"): _layer_normalisation,
    ("com.microsoft", "SkipLayerNormalization"): _skip_layer_normalisation,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_layer_normalisation,
    ("", "InstanceNormalization"): _instance_normalisation,
    ("", "GroupNormalization"): _group_normalisation,
}
