"""Softmax, and operators that divide by a deviation computed from the activation itself.

With x^ = (x - mean) / deviation and g = dL/dy * scale, over the axes the statistics run over:

    dL/dx = (g - mean(g) - x^ mean(g x^)) / deviation

without the mean(g) where no mean is subtracted (root mean square). Source: Ba et al. 2016.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

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
    axes = range(step.axis(-1), step.rank())
    g = step.emit.op("Mul", step.gradient, step.input(1))
    return {0: _normalised(step, step.input(), g, axes, centred=True)}


def _rms_normalisation(step: GradientStep) -> Mapping[int, ir.Value]:
    axes = range(step.axis(-1), step.rank())
    g = step.emit.op("Mul", step.gradient, step.input(1))
    return {0: _normalised(step, step.input(), g, axes, centred=False)}


def _skip_layer_normalisation(step: GradientStep) -> Mapping[int, ir.Value]:
    """LayerNormalization of x + skip + bias, whose sum may be an output of its own."""
    emit, node = step.emit, step.node
    total = emit.op("Add", step.input(0), step.input(1))
    if step.has(4):
        total = emit.op("Add", total, step.input(4))
    axes = [step.rank() - 1]
    centred = node.op_type == "SkipLayerNormalization"
    g = emit.op("Mul", step.gradient, step.input(2))
    gradient = _normalised(step, total, g, axes, centred=centred)
    if len(step.gradients) > 3 and step.gradients[3] is not None:
        gradient = emit.op("Add", gradient, step.gradients[3])
    return {slot: emit.sum_to(gradient, step.input(slot), step.output) for slot in (0, 1)}


def _instance_normalisation(step: GradientStep) -> Mapping[int, ir.Value]:
    rank = step.rank()
    scale = step.emit.unsqueeze(step.input(1), range(1, rank - 1))
    g = step.emit.op("Mul", step.gradient, scale)
    return {0: _normalised(step, step.input(), g, range(2, rank), centred=True)}


def _group_normalisation(step: GradientStep) -> Mapping[int, ir.Value]:
    """One scale for each channel; before operator set 21 one for each group."""
    emit, x = step.emit, step.input()
    groups = int(step.attribute("num_groups"))
    split = emit.joined(emit.extents(x, 0, 1), emit.integers(groups, -1))
    if emit.opset < 21:
        scale = emit.unsqueeze(step.input(1), [1])
        g = emit.op("Mul", emit.reshape(step.gradient, split), scale)
    else:
        scale = emit.unsqueeze(step.input(1), range(1, step.rank() - 1))
        g = emit.reshape(emit.op("Mul", step.gradient, scale), split)
    return {
        0: emit.reshape_like(_normalised(step, emit.reshape(x, split), g, [2], centred=True), x)
    }


def _normalised(
    step: GradientStep, x: ir.Value, g: ir.Value, axes: Sequence[int], *, centred: bool
) -> ir.Value:
    emit = step.emit
    axes = list(axes)
    if centred:
        x = emit.op("Sub", x, emit.reduce("ReduceMean", x, axes))
    spread = emit.reduce("ReduceMean", emit.op("Mul", x, x), axes)
    epsilon = emit.number(float(step.attribute("epsilon", 1e-5)), step.input())
    inverse = emit.op("Reciprocal", emit.op("Sqrt", emit.op("Add", spread, epsilon)))
    unit = emit.op("Mul", x, inverse)
    along = emit.op("Mul", unit, emit.reduce("ReduceMean", emit.op("Mul", g, unit), axes))
    rest = emit.op("Sub", g, along)
    if centred:
        rest = emit.op("Sub", rest, emit.reduce("ReduceMean", g, axes))
    return emit.op("Mul", rest, inverse)


RULES: dict[tuple[str, str], Rule] = {
    ("", "Softmax"): _softmax,
    ("", "LogSoftmax"): _log_softmax,
    ("", "BatchNormalization"): _batch_normalisation,
    ("", "LayerNormalization"): _layer_normalisation,
    ("", "RMSNormalization"): _rms_normalisation,
    ("", "SimplifiedLayerNormalization"): _rms_normalisation,
    ("com.microsoft", "SkipLayerNormalization"): _skip_layer_normalisation,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_layer_normalisation,
    ("", "InstanceNormalization"): _instance_normalisation,
    ("", "GroupNormalization"): _group_normalisation,
}
