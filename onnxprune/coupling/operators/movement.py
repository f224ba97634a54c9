"""Ops that only move data: the same movement is done on the small atom arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxprune.coupling.labels import (
    AxisLabel,
    AxisLabels,
    Operand,
    TensorLabels,
    concat,
    join,
    rename,
    reshape,
    simplify,
    take,
)
from onnxprune.coupling.relations import Origin
from onnxprune.coupling.step import Refusal, RuleTable, Step


def _transpose(step: Step) -> None:
    labels = step.read()
    rank = len(labels.shape)
    order = step.attribute("perm") or tuple(reversed(range(rank)))
    step.pass_on(labels, step.move(labels, {axis: i for i, axis in enumerate(order)}))


def reshaped(step: Step) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the observed output shape says it all."""
    labels = step.read()
    axis_labels = labels.materialise(step.relations)
    step.pass_on(labels, reshape(step.relations, axis_labels, labels.shape, step.output_shape()))


def _repeated(step: Step) -> None:
    """Expand, Tile: labels stay or are repeated; an axis that grows from 1 is flexible."""
    labels = step.read()
    axis_labels = labels.materialise(step.relations)
    shape = step.output_shape()
    shift = len(shape) - len(labels.shape)
    result: list[AxisLabel] = []
    for label in axis_labels:
        axes = tuple(axis + shift for axis in label.axes)
        repeats = [shape[a] // e for a, e in zip(axes, label.atoms.shape, strict=True)]
        atoms = np.tile(label.atoms, repeats)
        step.relations.rectangle(atoms)
        result.append(replace(label, axes=axes, atoms=atoms))
    before = (1,) * shift + labels.shape
    name = step.node.outputs[0].name or ""
    grown = [
        AxisLabel((axis,), step.relations.fresh((extent,), Origin(name, axis)), flexible=True)
        for axis, extent in enumerate(shape)
        if extent > 1 and before[axis] == 1
    ]
    # Copies made along a new axis are zero where they are removed only if all of it is.
    value = step.constant(0)
    zero = labels.zero and (not grown or (value is not None and not np.any(value)))
    step.emit([*result, *grown], zero=zero, constant=labels.constant)


def _concat(step: Step) -> None:
    concatenated(step, range(len(step.node.inputs)))


def concatenated(step: Step, slots: Sequence[int]) -> None:
    """Concat of the inputs at some slots."""
    axis = step.axis(1, slot=slots[0])
    parts = [step.read(slot) for slot in slots]
    parts = [part for part in parts if part.shape[axis] > 0]
    for part in parts:
        part.materialise(step.relations)
    along = [
        (tuple(label for label in part.axis_labels if axis in label.axes), part.shape[axis])
        for part in parts
    ]
    across = join(step.relations, [_without(part, axis) for part in parts])
    axis_labels = (*across, *concat(step.relations, along, axis))
    zero = all(part.zero for part in parts)
    step.emit(axis_labels, zero=zero, constant=all(part.constant for part in parts))


def _without(part: TensorLabels, axis: int) -> Operand:
    """An operand whose labels and extent along one axis stay out of a join."""
    axis_labels = tuple(label for label in part.axis_labels if axis not in label.axes)
    view = part.moved(part.shape, axis_labels)
    return Operand(view, tuple(None if i == axis else i for i in range(len(part.shape))))


def _split(step: Step) -> None:
    labels = step.read()
    axis = step.axis(0)
    axis_labels = labels.materialise(step.relations)
    if len(step.outputs()) < len(step.node.outputs):
        raise Refusal("a Split with an unused part")
    start = 0
    for slot in step.outputs():
        extent = step.output_shape(slot)[axis]
        index = np.arange(start, start + extent)
        step.pass_on(labels, take(step.relations, axis_labels, axis, index), slot)
        start += extent


def _slice(step: Step) -> None:
    labels = step.read()
    rank = len(labels.shape)
    starts, ends = step.integers(1, "starts"), step.integers(2, "ends")
    if starts is None or ends is None:
        raise Refusal("a Slice without bounds")
    axes = step.integers(3, "axes") or list(range(len(starts)))
    steps = step.integers(4, "steps") or [1] * len(starts)
    axis_labels = labels.materialise(step.relations)
    for start, end, axis, stride in zip(starts, ends, axes, steps, strict=True):
        index = np.arange(labels.shape[axis % rank])[slice(start, _end(end, stride), stride)]
        axis_labels = _tie_strides(step, axis_labels, axis % rank, abs(stride))
        axis_labels = take(step.relations, axis_labels, axis % rank, index)
    step.pass_on(labels, axis_labels)


def _end(end: int, stride: int) -> int | None:
    """ONNX's `ends` as a Python slice bound: running off the front means 'to the start'."""
    return None if stride < 0 and end < -(2**30) else end


def _tie_strides(step: Step, axis_labels: AxisLabels, axis: int, stride: int) -> AxisLabels:
    """A strided Slice keeps its stride only if whole blocks of `stride` entries are removed."""
    if stride > 1:
        for label in axis_labels:
            if axis in label.axes:
                atoms = np.moveaxis(label.atoms, label.axes.index(axis), 0)
                whole = len(atoms) - len(atoms) % stride
                for offset in range(1, stride):
                    step.relations.unify(atoms[0:whole:stride], atoms[offset:whole:stride])
                step.relations.freeze(atoms[whole:], "the rest of a strided Slice")
    return axis_labels


def _gather(step: Step) -> None:
    table = step.read()
    axis, rank = step.axis(0), len(table.shape)
    # a constant; what follows from shapes may be another index at run time
    index = step.constant(1) if step.peek(1).constant else None
    if index is None or np.ndim(index) > 1:
        table.materialise(step.relations)
        step.fix(table, [axis], "its entries are looked up at run time")
        axis_labels: AxisLabels = table.axis_labels
    else:
        flat = np.atleast_1d(np.asarray(index, np.int64)) % table.shape[axis]
        axis_labels = take(step.relations, table.materialise(step.relations), axis, flat)
    shift = len(step.shape(1)) - 1
    step.pass_on(table, rename(axis_labels, {a: a + shift * (a > axis) for a in range(rank)}))


def _gather_nd(step: Step) -> None:
    """GatherND: the first axes of the table are looked up, the others keep their meaning."""
    table, index = step.read(), step.constant(1)
    *outer, depth = step.shape(1)
    if step.attribute("batch_dims", 0):
        raise Refusal("GatherND with batch axes")
    table.materialise(step.relations)
    if depth == 1 and len(outer) <= 1 and index is not None and step.peek(1).constant:
        flat = np.asarray(index, np.int64).reshape(-1) % table.shape[0]
        axis_labels = take(step.relations, table.axis_labels, 0, flat)
        known = bool(outer)
    else:
        axis_labels = step.fix(table, range(depth), "its entries are looked up at run time")
        known = False
    shift = len(outer) - depth
    rest = [label for label in axis_labels if known or min(label.axes) >= depth]
    moved = rename(rest, {axis: axis + shift for axis in range(len(table.shape))})
    step.emit(moved, zero=table.zero, constant=table.constant and known)


def _reverse_sequence(step: Step) -> None:
    """ReverseSequence: every row of the batch is turned round as far as it is long."""
    labels = step.read()
    over = [int(step.attribute("time_axis", 0)), int(step.attribute("batch_axis", 1))]
    axis_labels = step.fix(labels, over, "the order of its entries is only known at run time")
    step.emit(axis_labels, zero=labels.zero)


def _pad(step: Step) -> None:
    """Pad: entries added along a labelled axis can go like any other; the amounts follow."""
    labels = step.read()
    rank = len(labels.shape)
    pads = step.integers(1, "pads")
    if pads is None:
        raise Refusal("Pad without amounts")
    axes = [a % rank for a in (step.integers(3, "axes") or range(rank))]
    constant = str(step.attribute("mode", "constant")) == "constant"
    filler = step.constant(2) if step.has(2) else step.attribute("value", 0.0)
    blank = constant and filler is not None and not np.any(filler)
    axis_labels: AxisLabels = labels.materialise(step.relations)
    for position, axis in enumerate(axes):
        amounts = pads[position], pads[position + len(axes)]
        if any(amounts):
            axis_labels = _pad_axis(step, axis_labels, axis, amounts, constant)
    step.emit(axis_labels, zero=labels.zero and blank)


def _pad_axis(
    step: Step, axis_labels: AxisLabels, axis: int, amounts: tuple[int, int], constant: bool
) -> AxisLabels:
    result = []
    for label in axis_labels:
        if axis not in label.axes:
            result.append(label)
        elif min(amounts) < 0 or not constant or len(label.axes) > 1:
            step.relations.freeze(label.atoms, "Pad reads or cuts along this axis")
        else:
            origin = Origin(step.node.outputs[0].name or "", axis)
            before, after = (step.relations.fresh((n,), origin) for n in amounts)
            result.append(AxisLabel(label.axes, np.concatenate([before, label.atoms, after])))
    return simplify(step.relations, result)


def _resize(step: Step) -> None:
    labels = step.read()
    resized = [
        axis
        for axis, (old, new) in enumerate(zip(labels.shape, step.output_shape(), strict=True))
        if old != new
    ]
    axis_labels = step.fix(labels, resized, "the axis is resized")
    step.emit(axis_labels, zero=labels.zero)


def _grid_sample(step: Step) -> None:
    """GridSample: every channel is read at the same places; outside of the map lies zero."""
    labels = step.read()
    places = [axis for axis in range(len(labels.shape)) if axis != 1]
    step.emit(step.fix(labels, places, "GridSample reads along it"), zero=labels.zero)


def _pixel_blocks(step: Step, depth_first: bool, size: int) -> tuple[list[int], list[int]]:
    """Shape [b, ., ., C, h, w] that DepthToSpace reshapes to, and the transposition it does."""
    batch, channels, height, width = step.shape()
    if depth_first:
        return [batch, channels // size**2, size, size, height, width], [0, 1, 4, 2, 5, 3]
    return [batch, size, size, channels // size**2, height, width], [0, 3, 4, 1, 5, 2]


def _depth_to_space(step: Step) -> None:
    """Reshape, transpose, reshape; the sub-pixels of one output channel are tied."""
    labels, size = step.read(), int(step.attribute("blocksize"))
    split, order = _pixel_blocks(step, step.attribute("mode", "DCR") == "CRD", size)
    inner = reshape(step.relations, labels.materialise(step.relations), labels.shape, tuple(split))
    moved = _moved_whole_pixels(step, inner, tuple(split), order)
    after = tuple(split[axis] for axis in order)
    step.pass_on(labels, reshape(step.relations, moved, after, step.output_shape()))


def _moved_whole_pixels(
    step: Step, axis_labels: AxisLabels, shape: tuple[int, ...], order: Sequence[int]
) -> AxisLabels:
    position = {axis: i for i, axis in enumerate(order)}
    channels = 1 if order[1] == 1 else 3
    result = []
    for label in axis_labels:
        for axis in set(label.axes) - {channels}:
            first = label.atoms.take([0], axis=label.axes.index(axis))
            step.relations.unify(label.atoms, np.broadcast_to(first, label.atoms.shape))
        axes = tuple(position[axis] for axis in label.axes)
        result.append(replace(label, axes=axes))
    return simplify(step.relations, result)


def _space_to_depth(step: Step) -> None:
    """The inverse of DepthToSpace (DCR): each channel is repeated once per sub-pixel."""
    labels, size = step.read(), int(step.attribute("blocksize"))
    axis_labels = step.fix(labels, (2, 3), "SpaceToDepth runs over this axis")
    repeated: list[AxisLabel] = []
    for label in axis_labels:
        copies = [size**2 if axis == 1 else 1 for axis in label.axes]
        repeated.append(AxisLabel(label.axes, np.tile(label.atoms, copies)))
    step.pass_on(labels, repeated)


def _unlabelled(step: Step) -> None:
    """Shape, Size: the result follows the pruned shape by itself; no label is lost or frozen."""
    step.read()
    step.emit(())


def _filled(step: Step) -> None:
    """ConstantOfShape: every axis is flexible; the target follows what it is used for."""
    shape = step.output_shape()
    name = step.node.outputs[0].name or ""
    axis_labels: list[AxisLabel] = []
    if len(shape) > 1:
        axis_labels = [
            AxisLabel((axis,), step.relations.fresh((extent,), Origin(name, axis)), flexible=True)
            for axis, extent in enumerate(shape)
            if extent > 1
        ]
    filler = step.attribute("value")
    step.emit(axis_labels, zero=filler is None or not np.any(filler.numpy()))


RULES: RuleTable = {
    ("", "Transpose"): _transpose,
    **{("", op): reshaped for op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze")},
    **{("", op): _repeated for op in ("Expand", "Tile")},
    ("", "Concat"): _concat,
    ("", "Split"): _split,
    ("", "Slice"): _slice,
    ("", "Gather"): _gather,
    ("", "GatherND"): _gather_nd,
    ("", "ReverseSequence"): _reverse_sequence,
    ("", "Pad"): _pad,
    **{("", op): _resize for op in ("Resize", "Upsample")},
    **{(domain, "GridSample"): _grid_sample for domain in ("", "com.microsoft")},
    ("", "DepthToSpace"): _depth_to_space,
    ("", "SpaceToDepth"): _space_to_depth,
    **{("", op): _unlabelled for op in ("Shape", "Size")},
    ("", "ConstantOfShape"): _filled,
}
