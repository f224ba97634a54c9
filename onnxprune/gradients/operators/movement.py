"""Operators that only move entries: the gradient moves back, and adds up where entries were copied.

What picks places along an axis is a product with a matrix of zeros and ones, and its gradient one
with the transposed matrix: of any places, in any operator set, whatever was picked twice. Rows of a
table, which may be long, are added up where they were taken from instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.gradients.step import GradientStep, NoGradient, Rule

_FLOAT, _INT64 = int(ir.DataType.FLOAT), int(ir.DataType.INT64)
_ADDING = 16
_UNUSUAL = {"antialias": (0,), "keep_aspect_ratio_policy": ("stretch",), "axes": ()}


def _reshape(step: GradientStep) -> Mapping[int, ir.Value]:
    """Of everything that keeps the order of entries."""
    return {0: step.emit.reshape_like(step.gradient, step.input())}


def _transpose(step: GradientStep) -> Mapping[int, ir.Value]:
    order = step.attribute("perm") or list(range(step.rank()))[::-1]
    return {0: step.emit.op("Transpose", step.gradient, perm=np.argsort(order).tolist())}


def _expand(step: GradientStep) -> Mapping[int, ir.Value]:
    return {0: step.emit.sum_to(step.gradient, step.input(), step.output)}


def _concat(step: GradientStep) -> Mapping[int, ir.Value]:
    emit, axis, gradients = step.emit, step.axis(0), {}
    start = emit.integers(0)
    for slot in range(len(step.node.inputs)):
        stop = emit.op("Add", start, emit.extents(step.input(slot), axis, axis + 1))
        if slot in step.wanted:
            gradients[slot] = emit.op("Slice", step.gradient, start, stop, emit.integers(axis))
        start = stop
    return gradients


def _split(step: GradientStep) -> Mapping[int, ir.Value]:
    """Parts that do not reach the loss have the gradient zero."""
    emit = step.emit
    parts = []
    for value, gradient in zip(step.node.outputs, step.gradients, strict=True):
        zeros = None
        if gradient is None:
            nothing = emit.number(0.0, step.input())
            zeros = emit.op("Expand", nothing, emit.shape(value))
        parts.append(gradient if zeros is None else zeros)
    return {0: emit.op("Concat", *parts, axis=step.axis(0))}


def _slice(step: GradientStep) -> Mapping[int, ir.Value]:
    """The places that were taken along each axis, put back one axis after another."""
    emit, x, rank = step.emit, step.input(), step.rank()
    given = step.constant(3).tolist() if step.has(3) else list(range(len(step.constant(1))))
    axes = [int(axis) % rank for axis in given]
    if not step.has(4) or _is_one(step, 4):
        return {0: _surrounded(step, axes)}
    gradient = step.gradient
    for number, axis in enumerate(axes):
        start, stop, *stride = (
            emit.op("Cast", _entry(step, step.input(slot), number), to=_INT64)
            for slot in (1, 2, 4)
            if step.has(slot)
        )
        taken = emit.op("Slice", _places(step, x, axis), start, stop, emit.integers(0), *stride)
        gradient = _put_back(step, gradient, taken, x, axis)
    return {0: gradient}


def _is_one(step: GradientStep, slot: int) -> bool:
    """Whether all entries of an input are known to be one."""
    try:
        return bool((step.constant(slot) == 1).all())
    except NoGradient:
        return False


def _surrounded(step: GradientStep, axes: Sequence[int]) -> ir.Value:
    """The gradient of a slice without steps, with zeros before and behind it."""
    emit, x = step.emit, step.input()
    start = emit.op("Cast", step.input(1), to=_INT64)
    along = emit.integers(*axes)
    extents = emit.op("Gather", emit.shape(x), along, axis=0)
    taken = emit.op("Gather", emit.shape(step.output), along, axis=0)
    nothing = emit.integers(0)
    from_end = emit.op("Add", start, extents)
    begin = emit.op("Where", emit.op("Less", start, nothing), from_end, start)
    begin = emit.op("Where", emit.op("Less", begin, nothing), nothing, begin)
    begin = emit.op("Where", emit.op("Less", extents, begin), extents, begin)
    behind = emit.op("Sub", emit.op("Sub", extents, begin), taken)
    # what is not sliced gets no zeros
    order = [[*axes, *range(step.rank())].index(axis) for axis in range(step.rank())]
    rest = emit.integers(*[0] * step.rank())
    before, after = (
        emit.op("Gather", emit.joined(ends, rest), emit.integers(*order), axis=0)
        for ends in (begin, behind)
    )
    return emit.op("Pad", step.gradient, emit.joined(before, after))


def _entry(step: GradientStep, vector: ir.Value, number: int) -> ir.Value:
    """One entry of a vector, [1]."""
    return step.emit.op("Gather", vector, step.emit.integers(number), axis=0)


def _gather(step: GradientStep) -> Mapping[int, ir.Value]:
    """Of data; places may count from the end."""
    emit, x, axis = step.emit, step.input(), step.axis(0)
    if axis == 0 and emit.opset >= _ADDING:
        places = emit.op("Cast", step.input(1), to=_INT64)
        places = emit.unsqueeze(places, [emit.rank(step.input(1))])
        nothing = emit.op("Expand", emit.number(0.0, x), emit.shape(x))
        return {0: emit.op("ScatterND", nothing, places, step.gradient, reduction="add")}
    extent = emit.extents(x, axis, axis + 1)
    flat = emit.op("Cast", emit.reshape(step.input(1), emit.integers(-1)), to=_INT64)
    negative = emit.op("Less", flat, emit.integers(0))
    taken = emit.op("Where", negative, emit.op("Add", flat, extent), flat)
    rank = step.rank()
    before = [emit.extents(x, 0, axis)] if axis else []
    behind = [emit.extents(x, axis + 1, rank)] if axis + 1 < rank else []
    along = emit.reshape(step.gradient, emit.joined(*before, emit.integers(-1), *behind))
    return {0: _put_back(step, along, taken, x, axis)}


def _pad(step: GradientStep) -> Mapping[int, ir.Value]:
    """Constants have no gradient; what is reflected or repeated adds up."""
    emit, x = step.emit, step.input()
    rank = step.rank()
    amounts = step.input(1)
    axes = [int(a) % rank for a in step.constant(3)] if step.has(3) else list(range(rank))
    seen = emit.integers_seen(amounts)
    constant = step.attribute("mode", "constant") == "constant"
    if not constant or seen is None or (seen < 0).any():
        return {0: _unpadded(step, amounts, axes)}
    start = emit.op("Gather", amounts, emit.integers(*range(len(axes))), axis=0)
    extents = emit.op("Gather", emit.shape(x), emit.integers(*axes), axis=0)
    stop = emit.op("Add", extents, start)
    return {0: emit.op("Slice", step.gradient, start, stop, emit.integers(*axes))}


def _unpadded(step: GradientStep, amounts: ir.Value, axes: Sequence[int]) -> ir.Value:
    """The places that are left along each axis, put back: padding may cut off as well."""
    emit, gradient = step.emit, step.gradient
    mode = step.attribute("mode", "constant")
    for number, axis in enumerate(axes):
        ends = emit.op("Gather", amounts, emit.integers(number, number + len(axes)), axis=0)
        filler = emit.constant(np.array(-1, np.int64)) if mode == "constant" else None
        taken = emit.op("Pad", _places(step, step.input(), axis), ends, filler, mode=mode)
        gradient = _put_back(step, gradient, taken, step.input(), axis)
    return gradient


def _resize(step: GradientStep) -> Mapping[int, ir.Value]:
    """Along each axis a product with the matrix that it makes of the unit matrix."""
    emit, x, rank = step.emit, step.input(), step.rank()
    attributes = {name: attribute.value for name, attribute in step.node.attributes.items()}
    if any(attributes[name] not in usual for name, usual in _UNUSUAL.items() if name in attributes):
        raise NoGradient("it resizes by axes or keeps an aspect ratio, expected scales or sizes")
    gradient = step.gradient
    for axis in range(rank):
        if emit.shape_seen(x)[axis] == emit.shape_seen(step.output)[axis]:
            continue
        extent = emit.extents(x, axis, axis + 1)
        same = emit.op("Equal", _column(step, x, axis), emit.unsqueeze(_places(step, x, axis), [0]))
        unit = emit.unsqueeze(emit.op("Cast", same, to=_FLOAT), [0, 1])
        none = emit.constant(np.zeros(0, np.float32))
        if step.has(3):
            size = _entry(step, step.input(3), axis)
            sizes = emit.joined(emit.integers(1, 1), extent, size)
            weights = emit.op("Resize", unit, None, None, sizes, **attributes)
        else:
            scale = _entry(step, step.input(2), axis)
            scales = emit.joined(emit.constant(np.ones(3, np.float32)), scale)
            weights = emit.op("Resize", unit, none, scales, **attributes)
        # [extent before, extent behind]
        shape = emit.joined(extent, emit.integers(-1))
        weights = emit.cast_like(emit.reshape(weights, shape), x)
        gradient = _along(step, weights, gradient, axis)
    return {0: gradient}


def _space_to_depth(step: GradientStep) -> Mapping[int, ir.Value]:
    size = int(step.attribute("blocksize"))
    return {0: step.emit.op("DepthToSpace", step.gradient, blocksize=size, mode="DCR")}


def _depth_to_space(step: GradientStep) -> Mapping[int, ir.Value]:
    emit, x = step.emit, step.input()
    size = int(step.attribute("blocksize"))
    if step.attribute("mode", "DCR") == "DCR":
        return {0: emit.op("SpaceToDepth", step.gradient, blocksize=size)}
    batch, channels = emit.extents(x, 0, 1), emit.extents(x, 1, 2)
    rows, columns = emit.extents(x, 2, 3), emit.extents(x, 3, 4)
    block = emit.integers(size)
    split = emit.joined(batch, emit.integers(-1), rows, block, columns, block)
    parts = emit.op("Transpose", emit.reshape(step.gradient, split), perm=[0, 1, 3, 5, 2, 4])
    return {0: emit.reshape(parts, emit.joined(batch, channels, rows, columns))}


def _places(step: GradientStep, value: ir.Value, axis: int) -> ir.Value:
    """0, 1, ... along an axis: int64 [extent]."""
    emit = step.emit
    scalar = emit.constant(np.array(axis, np.int64))
    extent = emit.op("Gather", emit.shape(value), scalar, axis=0)
    start, step_size = (emit.constant(np.array(number, np.int64)) for number in (0, 1))
    return emit.op("Range", start, extent, step_size)


def _column(step: GradientStep, value: ir.Value, axis: int) -> ir.Value:
    """0, 1, ... along an axis: int64 [extent, 1]."""
    return step.emit.unsqueeze(_places(step, value, axis), [1])


def _put_back(
    step: GradientStep, gradient: ir.Value, taken: ir.Value, whole: ir.Value, axis: int
) -> ir.Value:
    """Put entries along an axis back to the places they were taken from: int64 [entries]."""
    emit = step.emit
    picked = emit.op("Equal", _column(step, whole, axis), emit.unsqueeze(taken, [0]))
    return _along(step, emit.cast_like(picked, whole), gradient, axis)


def _along(step: GradientStep, matrix: ir.Value, value: ir.Value, axis: int) -> ir.Value:
    """Multiply every line along an axis by a matrix, [extent after, extent before]."""
    emit = step.emit
    rank = step.rank()
    if axis == rank - 2:
        return emit.op("MatMul", matrix, value)
    order = [other for other in range(rank) if other != axis] + [axis]
    back = np.argsort(order).tolist()
    last = value if axis == rank - 1 else emit.op("Transpose", value, perm=order)
    product = emit.op("MatMul", last, emit.op("Transpose", matrix, perm=[1, 0]))
    return product if axis == rank - 1 else emit.op("Transpose", product, perm=back)


RULES: dict[tuple[str, str], Rule] = {
    **{("", kind): _reshape for kind in ("Reshape", "Flatten", "Squeeze", "Unsqueeze")},
    ("", "Transpose"): _transpose,
    ("", "Expand"): _expand,
    ("", "Concat"): _concat,
    ("", "Split"): _split,
    ("", "Slice"): _slice,
    ("", "Gather"): _gather,
    ("", "Pad"): _pad,
    ("", "Resize"): _resize,
    ("", "SpaceToDepth"): _space_to_depth,
    ("", "DepthToSpace"): _depth_to_space,
}
