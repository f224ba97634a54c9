"""Reductions and pooling: a gradient goes back to every entry that went into a result."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.gradients.operators.windows import windows_of
from onnxprune.gradients.step import GradientStep, NoGradient, Rule


def _reduce_sum(step: GradientStep) -> Mapping[int, ir.Value]:
    emit = step.emit
    return {0: emit.op("Expand", _kept(step, step.gradient), emit.shape(step.input()))}


def _reduce_mean(step: GradientStep) -> Mapping[int, ir.Value]:
    """A sum over a count."""
    emit, x = step.emit, step.input()
    ones = emit.op("Expand", emit.number(1.0, x), emit.shape(x))
    count = emit.reduce("ReduceSum", ones, step.axes())
    share = emit.op("Div", _kept(step, step.gradient), count)
    return {0: emit.op("Expand", share, emit.shape(x))}


def _reduce_extreme(step: GradientStep) -> Mapping[int, ir.Value]:
    """Maximum and minimum: entries that are equally extreme share."""
    emit, x = step.emit, step.input()
    taken = emit.cast_like(emit.op("Equal", x, _kept(step, step.output)), x)
    share = emit.op("Div", _kept(step, step.gradient), emit.reduce("ReduceSum", taken, step.axes()))
    return {0: emit.op("Mul", taken, share)}


def _reduce_l2(step: GradientStep) -> Mapping[int, ir.Value]:
    emit = step.emit
    unit = emit.op("Div", step.input(), _kept(step, step.output))
    return {0: emit.op("Mul", unit, _kept(step, step.gradient))}


def _kept(step: GradientStep, value: ir.Value) -> ir.Value:
    """What has the shape of the result, with the axes that it went without."""
    return value if int(step.attribute("keepdims", 1)) else step.emit.unsqueeze(value, step.axes())


def _global_average_pool(step: GradientStep) -> Mapping[int, ir.Value]:
    emit, x = step.emit, step.input()
    count = emit.cast_like(emit.extent_of(x, 2, step.rank()), x)
    share = emit.op("Div", step.gradient, count)
    return {0: emit.op("Expand", share, emit.shape(x))}


def _global_max_pool(step: GradientStep) -> Mapping[int, ir.Value]:
    emit, x, axes = step.emit, step.input(), range(2, step.rank())
    taken = emit.cast_like(emit.op("Equal", x, step.output), x)
    share = emit.op("Div", step.gradient, emit.reduce("ReduceSum", taken, axes))
    return {0: emit.op("Mul", taken, share)}


def _average_pool(step: GradientStep) -> Mapping[int, ir.Value]:
    """A convolution of each channel with ones, over the number of entries a window covers."""
    emit, x = step.emit, step.input()
    kernel = tuple(step.attribute("kernel_shape"))
    windows = windows_of(step, kernel)
    ones = emit.op("Expand", emit.number(1.0, x), emit.integers(1, 1, *kernel))
    if int(step.attribute("count_include_pad", 0)):
        if int(step.attribute("ceil_mode", 0)):
            raise NoGradient("it counts padding and rounds up, expected one of both")
        share = emit.op("Div", step.gradient, emit.number(math.prod(kernel), x))
    else:
        full = emit.op("Expand", emit.number(1.0, x), _channel(step, x))
        count = emit.op("Conv", full, ones, **windows.attributes())
        share = emit.op("Div", step.gradient, count)
    share = emit.reshape(share, _channels_alone(step, step.output))
    return {0: emit.reshape_like(windows.spread(step, share, ones, x, 1), x)}


def _max_pool(step: GradientStep) -> Mapping[int, ir.Value]:
    """Taps that are equal to the maximum of their window share its gradient.

    A convolution with one unit weight for each tap lays the taps of a window side by side as
    channels, its transpose brings them back.
    """
    emit, x = step.emit, step.input()
    kernel = tuple(step.attribute("kernel_shape"))
    windows = windows_of(step, kernel)
    taps = math.prod(kernel)
    unit = emit.constant(np.eye(taps, dtype=np.float32).reshape(taps, 1, *kernel))
    unit = emit.cast_like(unit, x)
    alone = emit.reshape(emit.real(x), _channels_alone(step, x))
    beside = emit.op("Conv", alone, unit, **windows.attributes())
    full = emit.op("Expand", emit.number(1.0, x), _channel(step, x))
    inside = emit.op("Conv", full, unit, **windows.attributes())
    top = emit.reshape(emit.real(step.output), _channels_alone(step, step.output))
    taken = emit.cast_like(emit.op("Equal", beside, top), x)
    taken = emit.op("Mul", taken, inside)
    count = emit.reduce("ReduceSum", taken, [1])
    back = emit.reshape(step.gradient, _channels_alone(step, step.output))
    share = emit.op("Mul", taken, emit.op("Div", back, count))
    return {0: emit.reshape_like(windows.spread(step, share, unit, alone, 1), x)}


def _channel(step: GradientStep, value: ir.Value) -> ir.Value:
    """Shape of one channel of one sample: [1, 1, *spatial]."""
    spatial = step.emit.extents(value, 2, step.rank())
    return step.emit.joined(step.emit.integers(1, 1), spatial)


def _channels_alone(step: GradientStep, value: ir.Value) -> ir.Value:
    """Shape [samples * channels, 1, *spatial]."""
    spatial = step.emit.extents(value, 2, step.rank())
    return step.emit.joined(step.emit.integers(-1, 1), spatial)


RULES: dict[tuple[str, str], Rule] = {
    ("", "ReduceSum"): _reduce_sum,
    ("", "ReduceMean"): _reduce_mean,
    ("", "ReduceMax"): _reduce_extreme,
    ("", "ReduceMin"): _reduce_extreme,
    ("", "ReduceL2"): _reduce_l2,
    ("", "GlobalAveragePool"): _global_average_pool,
    ("", "GlobalMaxPool"): _global_max_pool,
    ("", "AveragePool"): _average_pool,
    ("", "MaxPool"): _max_pool,
}
