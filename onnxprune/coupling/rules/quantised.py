"""Quantised graphs: scales and zero points are cut with the axis they describe.

Between QuantizeLinear and DequantizeLinear the integers carry the same labels as the floats. The
integer forms of convolution and matrix product contract like their float twins; a removed slice of
a quantised weight is held at its zero point, which is what zero means there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxprune.coupling.join import Operand, join
from onnxprune.coupling.labels import Layer, TensorLabels, simplify
from onnxprune.coupling.relations import Origin
from onnxprune.coupling.rules.contraction import contract_operands, matmul_axes
from onnxprune.coupling.rules.convolution import convolve
from onnxprune.coupling.step import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnxprune.coupling.step import Step

__all__ = ["RULES"]


def _scaled(step: Step, data: TensorLabels, slots: Sequence[int], axis: int) -> TensorLabels:
    """Join scale and zero point (scalars, or vectors along `axis`) with a tensor."""
    for slot in slots:
        if not step.has(slot):
            continue
        labels = step.read_weight(slot)
        if len(labels.shape) == 1 and labels.shape[0] > 1:
            operands = [Operand(data, tuple(range(len(data.shape)))), Operand(labels, (axis,))]
            data.layers = join(step.relations, operands)
        elif len(labels.shape) > 1:
            raise Refusal("blocked quantisation")
    return data


def _linear(step: Step) -> None:
    """QuantizeLinear, DequantizeLinear: the same tensor, in integers or floats."""
    data = step.read_weight(0)
    rank = len(data.shape)
    if data.pristine:
        data.materialise(step.relations)
    axis = step.axis(rank, 1) if rank else 0
    view = TensorLabels(data.name, data.shape, data.layers, data.constant, False, data.zero)
    view = _scaled(step, view, (1, 2), axis)
    step.note_zero_point(0, 2, axis)
    step.emit(view.layers, zero=data.zero, constant=data.constant)


def _dynamic(step: Step) -> None:
    """DynamicQuantizeLinear: its range always contains 0, so zeros never change the scale."""
    data = step.read(0)
    if not data.zero:
        step.fix(data, range(len(data.shape)), "its run-time range would change")
    step.emit(data.layers, 0, zero=data.zero)
    for slot in step.outputs()[1:]:
        step.emit((), slot)


def _matmul_integer(step: Step) -> None:
    first, second = step.read_weight(0), step.read_weight(1)
    left, right, kept = matmul_axes(len(first.shape), len(second.shape))
    output = contract_operands(step, [Operand(first, left), Operand(second, right)], kept)
    for slot, axis in ((2, len(output.shape) - 2), (3, len(output.shape) - 1)):
        _scaled(step, output, (slot,), axis)
    step.note_zero_point(0, 2)
    step.note_zero_point(1, 3, axis=len(second.shape) - 1)
    output.zero = True


def _conv_integer(step: Step) -> None:
    output = convolve(step, bias_slot=len(step.node.inputs))
    step.note_zero_point(1, 3)
    _scaled(step, output, (2, 3), 1)


def _qlinear_conv(step: Step) -> None:
    """x, scale, zero, w, scale, zero, scale, zero, bias."""
    output = convolve(step, weight_slot=3, bias_slot=8)
    step.note_zero_point(3, 5)
    _scaled(step, output, (1, 2, 4, 5, 6, 7), 1)


def _qlinear_matmul(step: Step) -> None:
    """a, scale, zero, b, scale, zero, scale, zero."""
    first, second = step.read_weight(0), step.read_weight(3)
    left, right, kept = matmul_axes(len(first.shape), len(second.shape))
    output = contract_operands(step, [Operand(first, left), Operand(second, right)], kept)
    step.note_zero_point(3, 5, axis=len(second.shape) - 1)
    _scaled(step, output, (4, 5), len(output.shape) - 1)
    _scaled(step, output, (1, 2, 6, 7), max(len(output.shape) - 2, 0))
    output.zero = True


def _qgemm(step: Step) -> None:
    """com.microsoft QGemm: a, scale, zero, b, scale, zero, bias, scale, zero."""
    left = (1, 0) if step.attribute("transA", 0) else (0, 1)
    right = (2, 1) if step.attribute("transB", 0) else (1, 2)
    operands = [Operand(step.read_weight(0), left), Operand(step.read_weight(3), right)]
    output = contract_operands(step, operands, (0, 2))
    step.note_zero_point(3, 5, axis=right.index(2))
    _scaled(step, output, (4, 5), 1)
    _scaled(step, output, (1, 2, 7, 8), 0)
    if step.has(6):
        bias = step.read_weight(6)
        rank = len(bias.shape)
        operands = [Operand(output, (0, 1)), Operand(bias, tuple(range(2 - rank, 2)))]
        output.layers = join(step.relations, operands)
    output.zero = True


def _qlinear_pairwise(step: Step) -> None:
    """com.microsoft QLinearAdd, QLinearMul: a, scale, zero, b, scale, zero, scale, zero."""
    for slot in (1, 2, 4, 5, 6, 7):
        step.read_weight(slot)
    operands, layers = step.join_inputs([0, 3])
    step.emit(layers, zero=all(operand.blanks(layers) for operand in operands))


def _qlinear_unary(step: Step) -> None:
    """com.microsoft QLinearLeakyRelu, QLinearSigmoid: element-wise with scalar scales."""
    for slot in range(1, len(step.node.inputs)):
        step.read_weight(slot)
    data = step.read(0)
    step.emit(data.layers, zero=data.zero and step.node.op_type == "QLinearLeakyRelu")


def _matmul_nbits(step: Step) -> None:
    """com.microsoft MatMulNBits: packed rows [N, blocks, bytes]; only the N outputs can be cut."""
    data = step.read(0)
    step.fix(data, [len(data.shape) - 1], "4-bit weights are packed along it")
    made = int(step.attribute("N"))
    name = step.name(1)
    atoms = step.relations.fresh((made,), Origin(name, 0))
    for slot in range(1, len(step.node.inputs)):
        if not step.has(slot) or slot == 4:
            continue
        labels = step.read_weight(slot)
        extent = labels.shape[0]
        if not labels.pristine or extent % made:
            raise Refusal("4-bit weights that are shared or packed across rows")
        labels.pristine = False
        repeated = np.repeat(atoms, extent // made)
        labels.layers = simplify(step.relations, [Layer((0,), repeated)])
    layers = [layer for layer in data.layers if len(data.shape) - 1 not in layer.axes]
    step.emit([*layers, Layer((len(step.out_shape()) - 1,), atoms)], zero=True)


RULES: dict[tuple[str, str], Callable[[Step], None]] = {
    ("", "QuantizeLinear"): _linear,
    ("", "DequantizeLinear"): _linear,
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
    ("com.microsoft", "MatMulNBits"): _matmul_nbits,
}
