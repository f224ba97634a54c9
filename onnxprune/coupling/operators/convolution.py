"""Conv and ConvTranspose, with groups.

A plain convolution contracts the input's channels with the weight's input axis. With groups, the
weight is cut per group: with in-atoms A [g, I/g] and out-atoms o [g, O/g], a group disappears whole
on both sides, all groups keep equally many channels, and the positions kept within a group are the
same everywhere, so that the cut is a product of kept indices per axis (plan format).
Depthwise falls out: a conjunction of one atom is that atom.

A convolution runs over its spatial axes, which are fixed, unless its kernel has one entry and every
place is taken: then it is a matrix product at each place (features behind one over tokens).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.coupling.labels import AxisLabel, Operand, TensorLabels
from onnxprune.coupling.operators.contraction import contract_operands
from onnxprune.coupling.relations import Origin
from onnxprune.coupling.step import Refusal, RuleTable, Step

_KERNEL = "kernel axes of a convolution"
_SPATIAL = "a convolution runs over this axis"


def _conv(step: Step) -> None:
    convolve(step)


def _conv_transpose(step: Step) -> None:
    convolve(step, transposed=True)


def convolve(
    step: Step,
    data_slot: int = 0,
    weight_slot: int = 1,
    bias_slot: int = 2,
    transposed: bool = False,
) -> TensorLabels:
    """Relate input, weight, bias and output of any kind of convolution; returns the output.

    Args:
        step: the node.
        data_slot: input slot of the activation.
        weight_slot: input slot of the weight.
        bias_slot: input slot of the bias; may be absent.
        transposed: the weight is [I, O/group, ...].
    """
    data, weight = step.read(data_slot), step.read_weight(weight_slot)
    rank = len(data.shape)
    group = int(step.attribute("group", 1))
    pointwise = group == 1 and not transposed and _is_pointwise(step, weight.shape)
    plain = {label.axes[0] for label in data.axis_labels if len(label.axes) == 1}
    places = [axis for axis in range(2, rank) if pointwise and axis in plain]
    step.fix(data, [axis for axis in range(2, rank) if axis not in places], _SPATIAL)
    step.fix(weight, range(2, rank), _KERNEL)
    if group > 1:
        output = _grouped(step, data, weight, group, transposed)
    else:
        output = _plain(step, data, weight, transposed, places)
    step.add_bias(output, bias_slot, (1,))
    return output


def _is_pointwise(step: Step, kernel: tuple[int, ...]) -> bool:
    """Whether every place of the output is made of the same place of the input alone."""
    ones = (*kernel[2:], *step.attribute("strides", ()))
    return set(ones) <= {1} and not any(step.attribute("pads", ()))


def _plain(
    step: Step, data: TensorLabels, weight: TensorLabels, transposed: bool, places: Sequence[int]
) -> TensorLabels:
    """Contract the channels; axes that are places keep their labels, others have none."""
    rank = len(weight.shape)
    space = [axis if axis in places else None for axis in range(2, rank)]
    batch, channel, made = 0, 1, rank
    axes = (channel, made) if transposed else (made, channel)
    operands = [
        Operand(data, (batch, channel, *space)),
        Operand(weight, (*axes, *[None] * (rank - 2))),
    ]
    return contract_operands(step, operands, (batch, made, *range(2, rank)))


def _grouped(
    step: Step, data: TensorLabels, weight: TensorLabels, group: int, transposed: bool
) -> TensorLabels:
    inside = _input_atoms(data).reshape(group, -1)
    made = weight.shape[1] * group if transposed else weight.shape[0]
    if weight.pristine:
        weight.pristine = False
        origin = Origin(weight.name, 1 if transposed else 0)
        outside = step.relations.fresh((group, made // group), origin)
        weight.axis_labels = _weight_layers(inside, outside, transposed)
    else:
        outside = _shared_weight(step, weight, inside, group, transposed)
    relations = step.relations
    relations.unify(relations.conjunction(inside), relations.conjunction(outside))
    relations.rectangle(inside)
    relations.rectangle(outside)
    relations.align(outside if transposed else inside)
    if inside.shape[1] > 1:
        where = (weight.name, 0 if transposed else 1, group)
        step.note_consumer(data, 1, *where)
    batch = [label for label in data.axis_labels if label.axes == (0,)]
    return step.emit([*batch, AxisLabel((1,), outside.ravel())], zero=True)


def _input_atoms(data: TensorLabels) -> NDArray[np.int32]:
    axis_labels = [label for label in data.axis_labels if 1 in label.axes]
    if any(label.axes != (1,) for label in axis_labels):
        raise Refusal("the channels of a grouped convolution are part of a joint label")
    return axis_labels[0].atoms if axis_labels else np.zeros(data.shape[1], np.int32)


def _weight_layers(
    inside: NDArray[np.int32], outside: NDArray[np.int32], transposed: bool
) -> tuple[AxisLabel, ...]:
    """Axis 0 of the weight is flat; axis 1 shows every row the other side of its own group."""
    rows, columns = (inside, outside) if transposed else (outside, inside)
    axis_labels = [AxisLabel((0,), rows.ravel())]
    if columns.shape[1] > 1:
        axis_labels.append(AxisLabel((0, 1), np.repeat(columns, rows.shape[1], axis=0)))
    return tuple(axis_labels)


def _shared_weight(
    step: Step, weight: TensorLabels, inside: NDArray[np.int32], group: int, transposed: bool
) -> NDArray[np.int32]:
    """Tie a grouped weight that another node has labelled already; returns its out-atoms."""
    by_axes = {label.axes: label.atoms for label in weight.axis_labels}
    flat, nested = by_axes.get((0,)), by_axes.get((0, 1))
    if nested is None and (1,) in by_axes:  # a label of its own: all groups share their positions
        nested = np.broadcast_to(by_axes[1,], weight.shape[:2])
    if not weight.constant or flat is None or (nested is None and weight.shape[1] > 1):
        raise Refusal("the weight of a grouped convolution is computed or used by another op")
    rows = flat.reshape(group, -1)
    if nested is None:
        columns = step.relations.conjunction(rows)[:, np.newaxis]
    else:
        columns = nested[:: rows.shape[1]]
    known, outside = (rows, columns) if transposed else (columns, rows)
    step.relations.unify(known, inside)
    return outside


RULES: RuleTable = {("", "Conv"): _conv, ("", "ConvTranspose"): _conv_transpose}
