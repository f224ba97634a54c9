"""Quantised graphs: scales and zero points are cut with the axis they describe.

Between QuantizeLinear and DequantizeLinear the integers carry the same labels as the floats. The
integer forms of convolution and matrix product contract like their float twins; a removed slice of
a quantised weight is held at its zero point, which is what zero means there. (Where the zero point
is 0, and for anything added rather than multiplied, plain zeros give the same result.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.coupling.labels import AxisLabel, Operand, TensorLabels, join, simplify
from onnxprune.coupling.operators.contraction import contract_operands, matmul_axes
from onnxprune.coupling.operators.convolution import convolve
from onnxprune.coupling.operators.movement import concatenated
from onnxprune.coupling.relations import Origin
from onnxprune.coupling.step import Refusal, RuleTable, Step

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})


def _hold(step: Step, slot: int, point: int, axis: int = 0, *, summed: bool = True) -> None:
    """Have removed slices of a quantised constant held at its zero point.

    Args:
        step: the node.
        slot: input slot of the constant.
        point: input slot of its zero point.
        axis: where the zero point lies when it is a vector.
        summed: the constant is only multiplied and summed away. Anywhere else the plan's stored
            zeros, which are not 0 here, would show: it then does not count as zero where removed.
    """
    if not step.walk.held or not step.has(point) or not step.peek(slot).constant:
        return
    value = step.constant(point)
    if value is not None and not np.any(value):
        return
    if any(_producer(step, source) not in ("", "Constant") for source in (slot, point)):
        raise Refusal("a quantised weight or its zero point is worked out from other constants")
    if not _alone(step, slot, point):
        raise Refusal(f"{step.name(slot)} is read with different zero points")
    step.note_zero_point(slot, point, axis)
    labels = step.peek(slot)
    labels.zero = labels.zero and summed


def _alone(step: Step, slot: int, point: int) -> bool:
    """Whether every reader of a constant takes the same zero point for it, along the same axis."""
    value, node = step.node.inputs[slot], step.node
    for reader, where in value.uses() if value is not None else ():
        alike = (reader.op_type, reader.domain, where) == (node.op_type, node.domain, slot)
        zeros = reader.inputs[point] if alike and point < len(reader.inputs) else None
        axes = [which.attributes.get_int("axis", 1) for which in (reader, node)]
        if zeros is None or axes[0] != axes[1] or reader.graph is not node.graph:
            return False
        theirs, ours = step.value_of(zeros.name or ""), step.constant(point)
        known = theirs is not None and ours is not None and np.array_equal(theirs, ours)
        if zeros is not node.inputs[point] and not known:
            return False
    return True


def _producer(step: Step, slot: int) -> str:
    """Type of the op that makes an input; empty for an initializer or a graph input."""
    value = step.node.inputs[slot]
    producer = value.producer() if value is not None else None
    return "" if producer is None else producer.op_type


def _scaled(step: Step, data: TensorLabels, slots: Sequence[int], axis: int) -> TensorLabels:
    """Join scale and zero point (scalars, or vectors along `axis`) with a tensor."""
    for slot in slots:
        if not step.has(slot):
            continue
        labels = step.read_weight(slot)
        if len(labels.shape) == 1 and labels.shape[0] > 1:
            operands = [Operand.of(data), Operand(labels, (axis,))]
            data.axis_labels = join(step.relations, operands)
        elif len(labels.shape) > 1:
            raise Refusal("blocked quantisation")
    return data


def _linear(step: Step) -> None:
    """QuantizeLinear, DequantizeLinear: the same tensor, in integers or floats."""
    data = step.read_weight(0)
    data.materialise(step.relations)
    axis = step.axis(1)
    view = data.moved(data.shape, data.axis_labels)
    view = _scaled(step, view, (1, 2), axis)
    if step.node.op_type == "DequantizeLinear" and _producer(step, 0) != "QuantizeLinear":
        readers = [use.node.op_type for use in step.node.outputs[0].uses()]
        _hold(step, 0, 2, axis, summed=all(reader in _PRODUCTS for reader in readers))
    step.emit(view.axis_labels, zero=data.zero, constant=data.constant)


def _dynamic(step: Step) -> None:
    """DynamicQuantizeLinear: its range always contains 0, so zeros never change the scale."""
    data = step.read(0)
    if not data.zero:
        step.fix(data, range(len(data.shape)), "its quantisation range is taken from all entries")
    step.emit(data.axis_labels, 0, zero=data.zero)
    for slot in step.outputs()[1:]:
        step.emit((), slot)


def _matmul_integer(step: Step) -> None:
    first, second = step.read_weight(0), step.read_weight(1)
    left, right, kept = matmul_axes(len(first.shape), len(second.shape))
    output = contract_operands(step, [Operand(first, left), Operand(second, right)], kept)
    for slot, axis in ((2, len(output.shape) - 2), (3, len(output.shape) - 1)):
        _scaled(step, output, (slot,), axis)
    _hold(step, 0, 2, max(len(first.shape) - 2, 0))
    _hold(step, 1, 3, len(second.shape) - 1)


def _conv_integer(step: Step) -> None:
    output = convolve(step, bias_slot=len(step.node.inputs))
    _hold(step, 1, 3)
    _scaled(step, output, (2, 3), 1)


def _qlinear_conv(step: Step) -> None:
    """x, scale, zero, w, scale, zero, scale, zero, bias."""
    output = convolve(step, weight_slot=3, bias_slot=8)
    _hold(step, 3, 5)
    _scaled(step, output, (1, 2, 4, 5, 6, 7), 1)


def _qlinear_matmul(step: Step) -> None:
    """a, scale, zero, b, scale, zero, scale, zero."""
    first, second = step.read_weight(0), step.read_weight(3)
    left, right, kept = matmul_axes(len(first.shape), len(second.shape))
    output = contract_operands(step, [Operand(first, left), Operand(second, right)], kept)
    _hold(step, 0, 2, max(len(first.shape) - 2, 0))
    _hold(step, 3, 5, len(second.shape) - 1)
    _scaled(step, output, (4, 5), len(output.shape) - 1)
    _scaled(step, output, (1, 2, 6, 7), max(len(output.shape) - 2, 0))


def _qgemm(step: Step) -> None:
    """com.microsoft QGemm: a, scale, zero, b, scale, zero, bias, scale, zero."""
    left = (1, 0) if step.attribute("transA", 0) else (0, 1)
    right = (2, 1) if step.attribute("transB", 0) else (1, 2)
    operands = [Operand(step.read_weight(0), left), Operand(step.read_weight(3), right)]
    output = contract_operands(step, operands, (0, 2))
    _hold(step, 0, 2)
    _hold(step, 3, 5, right.index(2))
    _scaled(step, output, (4, 5), 1)
    _scaled(step, output, (1, 2, 7, 8), 0)
    if step.has(6):
        step.add_bias(output, 6, range(2 - len(step.shape(6)), 2))


def _read_all(step: Step) -> None:
    """Scales and zero points of a whole tensor are scalars: nothing of them is cut."""
    for slot in step.inputs():
        step.read_weight(slot)


def _qlinear_pairwise(step: Step) -> None:
    """com.microsoft QLinearAdd, QLinearMul: a, scale, zero, b, scale, zero, scale, zero."""
    _read_all(step)
    operands, axis_labels = step.join_inputs([0, 3])
    for slot in (0, 3):
        _hold(step, slot, slot + 2, summed=False)
    blank = any if step.node.op_type == "QLinearMul" else all
    step.emit(axis_labels, zero=blank(operand.blanks(axis_labels) for operand in operands))


def _qlinear_unary(step: Step) -> None:
    """com.microsoft QLinearLeakyRelu, QLinearSigmoid: element-wise with scalar scales."""
    _read_all(step)
    data = step.read(0)
    step.emit(data.axis_labels, zero=data.zero and step.node.op_type == "QLinearLeakyRelu")


def _qlinear_pool(step: Step) -> None:
    """com.microsoft QLinearAveragePool, QLinearGlobalAveragePool: x, scale, zero, scale, zero."""
    _read_all(step)
    data, rank = step.read(0), len(step.shape(0))
    over = range(1, rank - 1) if step.attribute("channels_last", 0) else range(2, rank)
    axis_labels = step.fix(data, over, f"{step.node.op_type} runs over it")
    step.emit(axis_labels, zero=data.zero)


def _qlinear_concat(step: Step) -> None:
    """com.microsoft QLinearConcat: scale, zero, then x, scale, zero of each part."""
    _read_all(step)
    parts = range(2, len(step.node.inputs), 3)
    for slot in parts:
        _hold(step, slot, slot + 2, summed=False)
    concatenated(step, parts)


def _matmul_nbits(step: Step) -> None:
    """com.microsoft MatMulNBits: packed rows [N, blocks, bytes]; only the N outputs can be cut."""
    data = step.read(0)
    step.fix(data, [len(data.shape) - 1], "4-bit weights are packed along it")
    made = int(step.attribute("N"))
    name = step.name(1)
    atoms = step.relations.fresh((made,), Origin(name, 0))
    for slot in step.inputs():
        if slot in (0, 4):
            continue
        labels = step.read_weight(slot)
        extent = labels.shape[0]
        if not labels.pristine or extent % made:
            raise Refusal("4-bit weights that are shared or packed across rows")
        labels.pristine = False
        repeated = np.repeat(atoms, extent // made)
        labels.axis_labels = simplify(step.relations, [AxisLabel((0,), repeated)])
    axis_labels = [label for label in data.axis_labels if len(data.shape) - 1 not in label.axes]
    step.emit([*axis_labels, AxisLabel((len(step.output_shape()) - 1,), atoms)], zero=True)


RULES: RuleTable = {
    ("", "QuantizeLinear"): _linear,
    ("", "DequantizeLinear"): _linear,
    ("com.microsoft", "QuantizeLinear"): _linear,
    ("com.microsoft", "DequantizeLinear"): _linear,
    ("", "DynamicQuantizeLinear"): _dynamic,
    ("", "MatMulInteger"): _matmul_integer,
    ("", "ConvInteger"): _conv_integer,
    ("", "QLinearConv"): _qlinear_conv,
    ("", "QLinearMatMul"): _qlinear_matmul,
    ("com.microsoft", "QGemm"): _qgemm,
    ("com.microsoft", "QLinearAdd"): _qlinear_pairwise,
    ("com.microsoft", "QLinearMul"): _qlinear_pairwise,
    ("com.microsoft", "QLinearLeakyRelu"): _qlinear_unary,
    ("com.microsoft", "QLinearSigmoid"): _qlinear_unary,
    **{
        ("com.microsoft", op): _qlinear_pool
        for op in ("QLinearAveragePool", "QLinearGlobalAveragePool")
    },
    ("com.microsoft", "QLinearConcat"): _qlinear_concat,
    ("com.microsoft", "MatMulNBits"): _matmul_nbits,
}
