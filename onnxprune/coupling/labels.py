"""Labels of tensors: which units the entries of their axes belong to, and how labels move and meet.

An *axis label* is an integer array of atoms over some axes of a tensor. The order of its axes is
its nesting order: rows of a joint label may be ragged inside, and changing the order costs an
alignment. An element of a tensor is removed when the unit of any of its atoms is. An axis without
a label is fixed.

Operands of one op meet in a common space of axes (broadcast axes, or the letters of an einsum).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.coupling.relations import Origin, Relations


@dataclass(frozen=True)
class AxisLabel:
    """Atoms over some axes of a tensor.

    Attributes:
        axes: distinct axes of the tensor, outermost of the nesting first.
        atoms: int32, one dimension per entry of `axes`.
        flexible: made by an expansion of extent 1; owned by no weight.
    """

    axes: tuple[int, ...]
    atoms: NDArray[np.int32]
    flexible: bool = False


AxisLabels = tuple[AxisLabel, ...]


@dataclass
class TensorLabels:
    """What the tracer knows of one tensor.

    Attributes:
        name: name of the tensor in the graph.
        shape: its concrete shape at the traced size.
        axis_labels: its labels.
        constant: made from constants by movement alone.
        pristine: a constant no op has looked at yet; its first partner labels it.
        zero: the value is zero where it is removed, once removed slices of constants are zero.
        integer: an integer constant nobody has looked at yet; quantised ops take it for data, and
            those that want an index for every entry.
    """

    name: str
    shape: tuple[int, ...]
    axis_labels: AxisLabels = field(default=())
    constant: bool = False
    pristine: bool = False
    zero: bool = False
    integer: bool = False

    def materialise(self, relations: Relations) -> AxisLabels:
        """Give a pristine constant atoms of its own on every axis longer than 1; return labels."""
        if self.pristine:
            self.pristine = False
            self.axis_labels = tuple(
                AxisLabel((axis,), relations.fresh((extent,), Origin(self.name, axis)))
                for axis, extent in enumerate(self.shape)
                if extent > 1
            )
        return self.axis_labels

    def moved(self, shape: tuple[int, ...], axis_labels: AxisLabels) -> TensorLabels:
        """The same data in another shape, with the labels it has there."""
        return replace(self, shape=shape, axis_labels=axis_labels, pristine=False, integer=False)


def rename(axis_labels: Iterable[AxisLabel], axes: dict[int, int]) -> AxisLabels:
    """Give labels the axis numbers of another tensor; `axes` maps old to new."""
    return tuple(
        replace(label, axes=tuple(axes[axis] for axis in label.axes)) for label in axis_labels
    )


def simplify(relations: Relations, axis_labels: Iterable[AxisLabel]) -> AxisLabels:
    """Bring labels to normal form: no extent 1, no repeated rows, nothing wholly frozen."""
    result = []
    for label in axis_labels:
        axes, atoms = list(label.axes), relations.roots(label.atoms)
        if atoms.size == 0:
            continue
        for position in reversed(range(len(axes))):
            first = atoms.take([0], axis=position)
            if atoms.shape[position] == 1 or (len(axes) > 1 and (atoms == first).all()):
                del axes[position]
                atoms = first.squeeze(position)
        if not axes:
            relations.freeze(np.atleast_1d(atoms), "one index of the axis is used alone")
            continue
        if len(axes) == 1 and (atoms == atoms[0]).all():
            relations.freeze(atoms[:1], "its entries can only be removed all together")
        if relations.find(atoms).any():
            result.append(AxisLabel(tuple(axes), atoms, label.flexible))
    return tuple(result)


def drop_tied(axis_labels: AxisLabels) -> AxisLabels:
    """Drop labels whose axes another label covers: joining has already tied their units."""
    kept: list[AxisLabel] = []
    for label in sorted(axis_labels, key=lambda label: (-len(label.axes), label.flexible)):
        if not any(set(label.axes) <= set(other.axes) for other in kept):
            kept.append(label)
    return tuple(kept)


def align_nesting(relations: Relations, label: AxisLabel) -> None:
    """Demand that what is kept of a joint label is a product of positions per axis."""
    for position in range(1, len(label.axes)):
        columns = label.atoms.shape[position]
        relations.align(np.moveaxis(label.atoms, position, -1).reshape(-1, columns))


def project(relations: Relations, label: AxisLabel, keep: Iterable[int]) -> AxisLabel:
    """Label a subset of a label's axes: a kept position is removed when its whole row is.

    Keeping a prefix of the nesting order leaves rows free; any other subset shares positions
    between rows and therefore aligns them.
    """
    wanted = set(keep)
    kept = [i for i, axis in enumerate(label.axes) if axis in wanted]
    dropped = [i for i, axis in enumerate(label.axes) if axis not in wanted]
    if not dropped:
        return label
    shape = tuple(label.atoms.shape[i] for i in kept)
    rows = label.atoms.transpose(kept + dropped).reshape(int(np.prod(shape)), -1)
    if kept != list(range(len(kept))):
        relations.align(rows.T)
    atoms = relations.conjunction(rows).reshape(shape)
    return AxisLabel(tuple(label.axes[i] for i in kept), atoms, label.flexible)


def reorder(relations: Relations, label: AxisLabel, axes: Sequence[int]) -> AxisLabel:
    """Nest a label in another order of the same axes."""
    if tuple(axes) == label.axes:
        return label
    align_nesting(relations, label)
    order = [label.axes.index(axis) for axis in axes]
    return AxisLabel(tuple(axes), label.atoms.transpose(order), label.flexible)


def collapse(
    relations: Relations, axis_labels: Iterable[AxisLabel], axis: int, text: str
) -> AxisLabels:
    """Statistics run over an axis: freeze a plain label, tie a joint one along it."""
    result = []
    for label in axis_labels:
        if axis not in label.axes:
            result.append(label)
        elif len(label.axes) == 1:
            relations.freeze(label.atoms, text)
        else:
            first = label.atoms.take([0], axis=label.axes.index(axis))
            relations.unify(label.atoms, np.broadcast_to(first, label.atoms.shape))
            result.append(label)
    return simplify(relations, result)


def take(
    relations: Relations, axis_labels: Iterable[AxisLabel], axis: int, index: NDArray[np.int64]
) -> AxisLabels:
    """Labels after `numpy.take(x, index, axis)` with a 1-D index.

    One index serves all rows of a joint label. So no kept row may lose its part whole, up to
    the end of a range every row has to keep equally many entries, and for any other index the
    rows keep the same positions.
    """
    steps = np.unique(np.diff(index))
    result = []
    for label in axis_labels:
        if axis not in label.axes:
            result.append(label)
            continue
        position = label.axes.index(axis)
        if position and len(steps) > 1:
            align_nesting(relations, label)
        elif position and len(index) and index.min() > 0:
            relations.rectangle(label.atoms.take(np.arange(index.max() + 1), axis=position))
        atoms = label.atoms.take(index, axis=position)
        if position and len(index):
            rows = int(np.prod(atoms.shape[:position]))
            part, whole = (relations.conjunction(a.reshape(rows, -1)) for a in (atoms, label.atoms))
            relations.unify(part, whole)
        relations.rectangle(atoms)
        result.append(replace(label, atoms=atoms))
    return simplify(relations, result)


def combine(relations: Relations, left: AxisLabel, right: AxisLabel) -> AxisLabel:
    """Join two independent labels: an element is removed with its row or its column."""
    shape = left.atoms.shape + right.atoms.shape
    axes = left.axes + right.axes
    atoms = relations.fresh(shape, Origin(relations.node, axes[0]))
    joint = AxisLabel(axes, atoms)
    for part in (left, right):
        projected = project(relations, joint, part.axes)
        relations.unify(projected.atoms, part.atoms)
    align_nesting(relations, joint)
    return joint


def merge_overlapping(
    relations: Relations, axis_labels: Iterable[AxisLabel], axes: Iterable[int]
) -> AxisLabels:
    """Make one label of all those that touch any of `axes`; leave the others alone."""
    wanted = set(axes)
    touching = [label for label in axis_labels if wanted & set(label.axes)]
    others = [label for label in axis_labels if not wanted & set(label.axes)]
    if any(not label.flexible for label in touching):
        for label in touching:
            if label.flexible:
                relations.freeze(label.atoms, "the repeat count of an expanded axis stays")
        touching = [label for label in touching if not label.flexible]
    while len(touching) > 1:
        left, right = touching[:2]
        if set(left.axes) & set(right.axes):
            for label in (left, right):
                relations.freeze(label.atoms, "labels that share an axis would have to be merged")
            touching[:2] = []
        else:
            touching[:2] = [combine(relations, left, right)]
    return tuple(others + touching)


def _matching_blocks(
    before: tuple[int, ...], after: tuple[int, ...]
) -> list[tuple[list[int], list[int]]]:
    """Split two shapes of equal size, extents 1 left out, into minimal blocks of equal product."""
    left = [axis for axis, extent in enumerate(before) if extent != 1]
    right = [axis for axis, extent in enumerate(after) if extent != 1]
    blocks = []
    while left and right:
        ours, theirs = [left.pop(0)], [right.pop(0)]
        size, target = before[ours[0]], after[theirs[0]]
        while size != target:
            if size < target:
                ours.append(left.pop(0))
                size *= before[ours[-1]]
            else:
                theirs.append(right.pop(0))
                target *= after[theirs[-1]]
        blocks.append((ours, theirs))
    return blocks


def _reshape_block(
    relations: Relations,
    label: AxisLabel,
    block: tuple[list[int], list[int]],
    before: tuple[int, ...],
    after: tuple[int, ...],
) -> AxisLabel:
    """Reshape the part of a label that one block covers; new axes are numbered -1 - axis."""
    ours, theirs = block
    start = min(label.axes.index(axis) for axis in ours if axis in label.axes)
    head = label.axes[:start]
    tail = tuple(axis for axis in label.axes[start:] if axis not in ours)
    nested = head + tuple(ours) + tail
    label = reorder(relations, label, [axis for axis in nested if axis in label.axes])
    atoms = label.atoms[tuple(slice(None) if axis in label.axes else np.newaxis for axis in nested)]
    extents = dict(zip(label.axes, label.atoms.shape, strict=True))
    atoms = np.broadcast_to(atoms, tuple(extents.get(a, before[a]) for a in nested))
    shape = [extents[axis] for axis in head] + [after[a] for a in theirs]
    atoms = atoms.reshape(*shape, *(extents[axis] for axis in tail))
    return AxisLabel(head + tuple(-1 - axis for axis in theirs) + tail, atoms, label.flexible)


def reshape(
    relations: Relations, axis_labels: AxisLabels, before: tuple[int, ...], after: tuple[int, ...]
) -> AxisLabels:
    """Labels after a reshape: blocks of axes are split and merged on the atom arrays."""
    if 0 in before or 0 in after:
        return ()
    renamed: dict[int, int] = {}
    split = []
    for ours, theirs in _matching_blocks(before, after):
        if len(ours) == len(theirs) == 1:
            renamed[ours[0]] = -1 - theirs[0]
        else:
            split.append((ours, theirs))
            axis_labels = merge_overlapping(relations, axis_labels, ours)
    result = []
    for label in axis_labels:
        for block in split:
            if set(block[0]) & set(label.axes):
                label = _reshape_block(relations, label, block, before, after)
        axes = tuple(-1 - (axis if axis < 0 else renamed[axis]) for axis in label.axes)
        result.append(replace(label, axes=axes))
    simple = simplify(relations, result)
    for label in simple:
        relations.rectangle(label.atoms)
    return simple


def concat(relations: Relations, parts: Sequence[tuple[AxisLabels, int]], axis: int) -> AxisLabels:
    """Concatenate the labels that carry the axis.

    Args:
        relations: where new constraints are recorded.
        parts: for each input its labels that contain `axis` and its extent there.
        axis: the concatenated axis.
    """
    extents: dict[int, int] = {}
    order: list[int] = []
    merged: list[tuple[AxisLabel | None, int]] = []
    for axis_labels, extent in parts:
        whole = merge_overlapping(relations, axis_labels, (axis,))
        label = whole[0] if whole else None
        merged.append((label, extent))
        if label is not None:
            for a, e in zip(label.axes, label.atoms.shape, strict=True):
                extents[a] = e
                if a not in order:
                    order.append(a)
    if not order:
        return ()
    arrays = []
    for label, extent in merged:
        shape = tuple(extent if a == axis else extents[a] for a in order)
        if label is None:
            arrays.append(np.zeros(shape, np.int32))
            continue
        label = reorder(relations, label, [a for a in order if a in label.axes])
        spread = tuple(slice(None) if a in label.axes else np.newaxis for a in order)
        arrays.append(np.broadcast_to(label.atoms[spread], shape))
    atoms = np.concatenate(arrays, axis=order.index(axis))
    simple = simplify(relations, [AxisLabel(tuple(order), atoms)])
    for label in simple:
        relations.rectangle(label.atoms)
    return simple


@dataclass(frozen=True)
class Operand:
    """A tensor and where its axes lie in the common space; None for axes that stay out of it."""

    labels: TensorLabels
    axes: tuple[int | None, ...]

    @classmethod
    def of(cls, labels: TensorLabels) -> Operand:
        """A tensor whose axes are those of the space."""
        return cls(labels, tuple(range(len(labels.shape))))

    def extents(self) -> dict[int, int]:
        """Extent on each axis of the space where the operand is longer than 1."""
        pairs = zip(self.axes, self.labels.shape, strict=True)
        return {axis: extent for axis, extent in pairs if axis is not None and extent != 1}

    def axis_labels(self) -> AxisLabels:
        """Labels with the axis numbers of the space."""
        space = {own: axis for own, axis in enumerate(self.axes) if axis is not None}
        return rename(self.labels.axis_labels, space)

    def receive(self, axis_labels: AxisLabels) -> None:
        """Label a pristine constant with labels of the space."""
        self.labels.pristine = False
        own = {axis: i for i, axis in enumerate(self.axes) if axis is not None}
        self.labels.axis_labels = rename(axis_labels, own)

    def blanks(self, axis_labels: AxisLabels) -> bool:
        """Whether what each label (of the space) removes is exactly zero in this operand."""
        extents = self.extents().keys()
        return self.labels.zero and all(extents >= set(label.axes) for label in axis_labels)


def broadcast_axes(rank: int, common: int) -> tuple[int, ...]:
    """Space axes of an operand of `rank` broadcast to `common` axes (numpy rules)."""
    return tuple(range(common - rank, common))


def join(relations: Relations, operands: Sequence[Operand]) -> AxisLabels:
    """Tie operands position by position and return the labels of the result in the space."""
    ordered = sorted(operands, key=lambda operand: operand.labels.pristine)
    first = ordered[0]
    if first.labels.pristine:
        result, extents = _label_constant(relations, first, (), {}), first.extents()
    else:
        result, extents = first.axis_labels(), first.extents()
    for operand in ordered[1:]:
        if operand.labels.pristine:
            result += _label_constant(relations, operand, result, extents)
        else:
            result = _join_pair(relations, result, extents, operand)
        extents |= operand.extents()
    return drop_tied(simplify(relations, result))


def contract(
    relations: Relations, operands: Sequence[Operand], kept: Sequence[int], text: str
) -> AxisLabels:
    """Join operands, sum over every axis of the space that is not kept (einsum semantics).

    Args:
        relations: where new constraints are recorded.
        operands: the factors.
        kept: space axes of the result.
        text: reason given for contracted labels that must be frozen.

    Returns:
        The labels of the product, still with the axis numbers of the space.
    """
    axis_labels = join(relations, operands)
    contracted = {axis for label in axis_labels for axis in label.axes} - set(kept)
    safe = {axis for operand in operands if operand.labels.zero for axis in operand.extents()}
    for axis in sorted(contracted - safe):
        axis_labels = collapse(relations, axis_labels, axis, text)
    survivors = [label for label in axis_labels if set(label.axes) & set(kept)]
    return simplify(relations, [project(relations, label, kept) for label in survivors])


def _label_constant(
    relations: Relations, operand: Operand, axis_labels: AxisLabels, extents: dict[int, int]
) -> AxisLabels:
    """Label a pristine constant as its partner asks; return the labels only it brings."""
    own = operand.extents()
    received: list[AxisLabel] = []
    for label in axis_labels:
        shared = set(label.axes) & own.keys() & extents.keys()
        if shared:
            received.append(project(relations, label, shared))
    brought = [
        AxisLabel((axis,), relations.fresh((extent,), Origin(operand.labels.name, own_axis)))
        for own_axis, (axis, extent) in enumerate(
            zip(operand.axes, operand.labels.shape, strict=True)
        )
        if axis is not None and extent > 1 and axis not in extents
    ]
    operand.receive(drop_tied(simplify(relations, received)) + tuple(brought))
    return tuple(brought)


def _join_pair(
    relations: Relations, left: AxisLabels, extents: dict[int, int], operand: Operand
) -> AxisLabels:
    """Tie the labels of an operand to those joined so far; `extents` are the joined ones'."""
    right = operand.axis_labels()
    shared = extents.keys() & operand.extents().keys()
    for ours in left:
        for theirs in right:
            _tie(relations, ours, theirs, shared)
    for one_side, other_side in ((left, right), (right, left)):
        labelled = {axis for label in other_side for axis in label.axes}
        for label in one_side:
            fixed = (set(label.axes) & shared) - labelled
            if fixed:
                text = f"it meets an axis of {operand.labels.name} that cannot be cut"
                relations.freeze(project(relations, label, fixed).atoms, text)
    return left + right


def _tie(relations: Relations, ours: AxisLabel, theirs: AxisLabel, shared: set[int]) -> None:
    first, second = set(ours.axes) & shared, set(theirs.axes) & shared
    common = first & second
    if not common:
        return
    if first == second:
        left = project(relations, ours, first)
        right = reorder(relations, project(relations, theirs, second), left.axes)
        relations.unify(left.atoms, right.atoms)
        return
    for axis in sorted(common):
        left, right = (project(relations, label, (axis,)) for label in (ours, theirs))
        relations.unify(left.atoms, right.atoms)
