"""Ops whose statistics run over some axes: those axes are collapsed, parameters are joined.

Collapsing freezes a plain label (its statistics would change) and ties a joint one along the axis,
so that a whole head or a whole group, which has statistics of its own, can still be removed. When
the user allows normalised axes to be cut, a plain label stays and the op later runs on its input
padded with zeros to the original width.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.coupling.labels import Operand, TensorLabels, join, reshape
from onnxprune.coupling.step import Refusal, RuleTable, Step

_SMALLEST_EPSILON = 1e-12


def _normalise(
    step: Step, over: Sequence[int], parameters: Sequence[int], axes: Sequence[int]
) -> None:
    """Collapse the axes `over`, then join per-channel parameters that lie along `axes`."""
    labels = step.read()
    widened = [axis for axis in over if step.cut_statistics(labels, axis, widened=True)]
    fixed = [axis for axis in over if axis not in widened]
    step.fix(labels, fixed, f"{step.node.op_type} takes statistics over it")
    operands = [Operand.of(labels)]
    for slot in parameters:
        if step.has(slot):
            parameter = step.read(slot)
            aligned = tuple(axes)[-len(parameter.shape) :] if parameter.shape else ()
            operands.append(Operand(parameter, aligned))
    axis_labels = join(step.relations, operands)
    step.emit(
        axis_labels,
        zero=all(operand.blanks(axis_labels) for operand in operands[1:]) and len(operands) > 1,
    )


def _batch(step: Step) -> None:
    """BatchNormalization: per channel, so nothing collapses unless it recomputes statistics."""
    if any(value.uses() or value.is_graph_output() for value in step.node.outputs[1:]):
        raise Refusal("BatchNormalization with training outputs")
    rank = len(step.shape())
    training = bool(step.attribute("training_mode", 0))
    over = [axis for axis in range(rank) if axis != 1] if training else []
    _normalise(step, over, (1, 2, 3, 4), (1,))


def _instance(step: Step) -> None:
    if float(step.attribute("epsilon", 1e-5)) < _SMALLEST_EPSILON:
        raise Refusal("InstanceNormalization without epsilon divides 0 by 0")
    _normalise(step, range(2, len(step.shape())), (1, 2), (1,))


def _layer(step: Step) -> None:
    """LayerNormalization and its relatives normalise every axis from `axis` on."""
    rank = len(step.shape())
    over = range(step.axis(-1), rank)
    _normalise(step, over, (1, 2), range(rank))
    for slot in step.outputs()[1:]:  # mean and deviation, of extent 1 along the normalised axes
        axis_labels = step.emitted().axis_labels
        step.emit([label for label in axis_labels if not set(label.axes) & set(over)], slot)


def _group(step: Step) -> None:
    """GroupNormalization: whole groups; its parameters lie per channel."""
    if step.opset < 21:
        raise Refusal("GroupNormalization before opset 21 (deprecated)")
    if float(step.attribute("epsilon", 1e-5)) < _SMALLEST_EPSILON:
        raise Refusal("GroupNormalization without epsilon divides 0 by 0")
    labels, groups = step.read(), int(step.attribute("num_groups"))
    batch, channels, *space = labels.shape
    split = (batch, groups, channels // groups, *space)
    axis_labels = reshape(step.relations, labels.materialise(step.relations), labels.shape, split)
    apart = TensorLabels(labels.name, split, axis_labels)
    step.fix(apart, range(2, len(split)), "GroupNormalization takes statistics over it")
    parameters = [Operand(step.read(slot), (1,)) for slot in (1, 2)]
    operands = [Operand.of(labels), *parameters]
    joined = join(step.relations, operands)
    step.emit(joined, zero=all(operand.blanks(joined) for operand in parameters))


def _along_axis(step: Step) -> None:
    """LpNormalization, CumSum and the like: one axis, no parameters."""
    rank = len(step.shape())
    axes = step.integers(1, "axis") or [-1]
    _normalise(step, [axes[0] % rank], (), ())


def _softmax(step: Step) -> None:
    """Before opset 13 the input is flattened to 2-D at `axis`."""
    rank = len(step.shape())
    axis = step.axis(1 if step.opset < 13 else -1)
    _normalise(step, range(axis, rank) if step.opset < 13 else [axis], (), ())


def _local_response(step: Step) -> None:
    _normalise(step, [1], (), ())


RULES: RuleTable = {
    ("", "BatchNormalization"): _batch,
    ("", "InstanceNormalization"): _instance,
    ("", "GroupNormalization"): _group,
    **{
        ("", op): _layer
        for op in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
    },
    **{("", op): _along_axis for op in ("LpNormalization", "CumSum")},
    **{("", op): _softmax for op in ("Softmax", "LogSoftmax", "Hardmax")},
    ("", "LRN"): _local_response,
}
