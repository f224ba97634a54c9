"""The widths on which the time of an operator depends, and its shapes at other widths.

    Conv, QLinearConv, ConvInteger   groups, input channels of one, output channels of one
    ConvTranspose                    groups, input channels of one, output channels of one
    Gemm                             rows, summed extent, columns
    MatMul and its quantised forms   matrices, rows, summed extent, columns
    LSTM, GRU, RNN                   input width, hidden width

Everything else about a node (kernel size, strides, image size, element types) is fixed; a cut only
changes widths. An operator that is not in the table has no widths, and its time is not modelled by
timing it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

Shapes = tuple[tuple[int, ...], ...]
"""Shape of every input of a node; () for scalars and for inputs that are left out."""

Widths = tuple[int, ...]


@dataclass(frozen=True)
class Slots:
    """Which inputs of an operator matter; -1 for none.

    Attributes:
        data: the activation, or the left operand.
        weight: the filter, or the right operand.
        transposed: which operands are stored transposed, (data, weight).
    """

    data: int = 0
    weight: int = 1
    transposed: tuple[bool, bool] = (False, False)


@dataclass(frozen=True)
class Family:
    """How one kind of operator depends on widths.

    Attributes:
        slots: which inputs matter.
        widths: (slots, shapes of the inputs, shape of the output) -> widths; raises ValueError
            where the shapes are none the operator takes.
        resized: (slots, shapes, widths, other widths) -> shapes at these other widths.
        attributes: widths -> integer attributes that follow from them.
        batched: the first axis of the data counts samples, which are computed one by one.
    """

    slots: Slots
    widths: Callable[[Slots, Shapes, tuple[int, ...]], Widths]
    resized: Callable[[Slots, Shapes, Widths, Widths], Shapes]
    attributes: Callable[[Widths], dict[str, int]]
    batched: bool = False


def family_of(node: ir.Node) -> Family | None:
    """The family of an operator, None when its time is not modelled."""
    make = _FAMILIES.get((node.domain, node.op_type))
    return make(node) if make is not None else None


def _conv_widths(slots: Slots, shapes: Shapes, output: tuple[int, ...]) -> Widths:
    data, weight = shapes[slots.data], shapes[slots.weight]
    groups = _exact(data[1], weight[1])
    return groups, weight[1], _exact(weight[0], groups)


def _conv_resized(slots: Slots, shapes: Shapes, before: Widths, after: Widths) -> Shapes:
    groups, inner, outer = after
    return _conv_shapes(slots, shapes, before, after, (groups * outer, inner))


def _transposed_conv_widths(slots: Slots, shapes: Shapes, output: tuple[int, ...]) -> Widths:
    weight = shapes[slots.weight]
    groups = _exact(output[1], weight[1])
    return groups, _exact(weight[0], groups), weight[1]


def _transposed_conv_resized(slots: Slots, shapes: Shapes, before: Widths, after: Widths) -> Shapes:
    groups, inner, outer = after
    return _conv_shapes(slots, shapes, before, after, (groups * inner, outer))


def _conv_shapes(
    slots: Slots, shapes: Shapes, before: Widths, after: Widths, weight: tuple[int, int]
) -> Shapes:
    """Shapes at other widths, with the first two axes of the weight."""
    groups, inner, outer = after
    result = [_followed(shape, before[0] * before[2], groups * outer) for shape in shapes]
    data = shapes[slots.data]
    result[slots.data] = (data[0], groups * inner, *data[2:])
    result[slots.weight] = (*weight, *shapes[slots.weight][2:])
    return tuple(result)


def _grouped(widths: Widths) -> dict[str, int]:
    return {"group": widths[0]}


def _gemm_widths(slots: Slots, shapes: Shapes, output: tuple[int, ...]) -> Widths:
    rows, summed = _turned(shapes[slots.data], slots.transposed[0])
    _, columns = _turned(shapes[slots.weight], slots.transposed[1])
    return rows, summed, columns


def _gemm_resized(slots: Slots, shapes: Shapes, before: Widths, after: Widths) -> Shapes:
    rows, summed, columns = after
    result = [_followed(shape, before[2], columns) for shape in shapes]
    result[slots.data] = _turned((rows, summed), slots.transposed[0])
    result[slots.weight] = _turned((summed, columns), slots.transposed[1])
    if len(shapes) > 2 and len(shapes[2]) == 2:
        added = ((rows, before[0]), (columns, before[2]))
        pairs = zip(shapes[2], added, strict=True)
        result[2] = tuple(new if old == full else old for old, (new, full) in pairs)
    return tuple(result)


def _matmul_widths(slots: Slots, shapes: Shapes, output: tuple[int, ...]) -> Widths:
    left, right = shapes[slots.data], shapes[slots.weight]
    if len(left) < 2 or len(right) < 2:
        raise ValueError("a vector times a matrix")
    if len(right) == 2:
        return 1, prod(left[:-1]), left[-1], right[-1]
    return max(prod(left[:-2]), prod(right[:-2])), left[-2], left[-1], right[-1]


def _matmul_resized(slots: Slots, shapes: Shapes, before: Widths, after: Widths) -> Shapes:
    matrices, rows, summed, columns = after
    result = [_followed(shape, before[3], columns) for shape in shapes]
    right = shapes[slots.weight]
    result[slots.data] = (rows, summed) if len(right) == 2 else (matrices, rows, summed)
    shared = prod(right[:-2]) == 1
    result[slots.weight] = (summed, columns) if shared else (matrices, summed, columns)
    return tuple(result)


def _recurrent_widths(slots: Slots, shapes: Shapes, output: tuple[int, ...]) -> Widths:
    return shapes[0][2], shapes[2][2]


def _recurrent_resized(slots: Slots, shapes: Shapes, before: Widths, after: Widths) -> Shapes:
    (width, hidden), (_, full) = after, before
    gates = _exact(shapes[2][1], full)
    result = list(shapes)
    result[0] = (*shapes[0][:2], width)
    result[1] = (shapes[1][0], gates * hidden, width)
    result[2] = (shapes[2][0], gates * hidden, hidden)
    extents = {3: 2 * gates, 5: 1, 6: 1, 7: 3}
    for slot, times in extents.items():
        if slot < len(shapes) and shapes[slot]:
            result[slot] = (*shapes[slot][:-1], times * hidden)
    return tuple(result)


def _followed(shape: tuple[int, ...], before: int, after: int) -> tuple[int, ...]:
    """A vector with one entry for each output channel (bias, scale, zero point) keeps that."""
    return (after,) if shape == (before,) and before > 1 else shape


def _turned(shape: Sequence[int], transposed: bool) -> tuple[int, int]:
    rows, columns = shape
    return (columns, rows) if transposed else (rows, columns)


def _exact(total: int, part: int) -> int:
    if not part or total % part:
        raise ValueError(f"{total} is no multiple of {part}")
    return total // part


def _conv(data: int, weight: int) -> Callable[[ir.Node], Family]:
    slots = Slots(data, weight)
    return lambda node: Family(slots, _conv_widths, _conv_resized, _grouped, batched=True)


def _transposed_conv(node: ir.Node) -> Family:
    return Family(
        Slots(), _transposed_conv_widths, _transposed_conv_resized, _grouped, batched=True
    )


def _gemm(node: ir.Node) -> Family:
    left, right = (bool(node.attributes.get_int(name, 0)) for name in ("transA", "transB"))
    slots = Slots(transposed=(left, right))
    return Family(slots, _gemm_widths, _gemm_resized, lambda w: {})


def _matmul(data: int, weight: int) -> Callable[[ir.Node], Family]:
    slots = Slots(data, weight)
    return lambda node: Family(slots, _matmul_widths, _matmul_resized, lambda w: {})


def _recurrent(node: ir.Node) -> Family:
    return Family(Slots(), _recurrent_widths, _recurrent_resized, lambda w: {"hidden_size": w[1]})


_FAMILIES: dict[tuple[str, str], Callable[[ir.Node], Family]] = {
    ("", "Conv"): _conv(0, 1),
    ("", "ConvInteger"): _conv(0, 1),
    ("", "QLinearConv"): _conv(0, 3),
    ("", "ConvTranspose"): _transposed_conv,
    ("", "Gemm"): _gemm,
    ("", "MatMul"): _matmul(0, 1),
    ("", "MatMulInteger"): _matmul(0, 1),
    ("", "QLinearMatMul"): _matmul(0, 3),
    ("", "LSTM"): _recurrent,
    ("", "GRU"): _recurrent,
    ("", "RNN"): _recurrent,
}
