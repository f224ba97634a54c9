"""Relating the labels of several operands: element-wise joins and contractions.

Operands meet in a common space of axes (broadcast axes, or the letters of an einsum). Each operand
is given with the space axis of each of its own axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.coupling.labels import (
    AxisLabel,
    AxisLabels,
    TensorLabels,
    collapse,
    drop_tied,
    project,
    rename,
    reorder,
    simplify,
)
from onnxprune.coupling.relations import Origin, Relations


@dataclass(frozen=True)
class Operand:
    """A tensor and where its axes lie in the common space; None for axes that stay out of it."""

    labels: TensorLabels
    axes: tuple[int | None, ...]

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
        return self.labels.zero and all(
            set(one.axes) <= self.extents().keys() for one in axis_labels
        )


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
    for one in left:
        for other in right:
            _tie(relations, one, other, shared)
    for ours, theirs in ((left, right), (right, left)):
        labelled = {axis for label in theirs for axis in label.axes}
        for label in ours:
            fixed = (set(label.axes) & shared) - labelled
            if fixed:
                text = f"it meets an axis of {operand.labels.name} that cannot be cut"
                relations.freeze(project(relations, label, fixed).atoms, text)
    return left + right


def _tie(relations: Relations, one: AxisLabel, other: AxisLabel, shared: set[int]) -> None:
    first, second = set(one.axes) & shared, set(other.axes) & shared
    common = first & second
    if not common:
        return
    if first == second:
        left = project(relations, one, first)
        right = reorder(relations, project(relations, other, second), left.axes)
        relations.unify(left.atoms, right.atoms)
        return
    for axis in sorted(common):
        left, right = (project(relations, label, (axis,)) for label in (one, other))
        relations.unify(left.atoms, right.atoms)
