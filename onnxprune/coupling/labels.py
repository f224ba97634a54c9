"""Labels of one tensor and the movements of data done on them.

A *layer* is an integer array of atoms over some axes of a tensor. The order of its axes is its
nesting order: rows of a joint layer may be ragged inside, and changing the order costs an
alignment. An element of a tensor is removed when the atom of any layer at its position is dead.
An axis without a layer is fixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxprune.coupling.relations import Origin, Relations


@dataclass(frozen=True)
class Layer:
    """Atoms over some axes of a tensor.

    Attributes:
        axes: distinct axes of the tensor, outermost of the nesting first.
        atoms: int32, one dimension per entry of `axes`.
        flexible: made by an expansion of extent 1; owned by no weight.
    """

    axes: tuple[int, ...]
    atoms: NDArray[np.int32]
    flexible: bool = False


Layers = tuple[Layer, ...]


@dataclass
class TensorLabels:
    """What the tracer knows of one tensor.

    Attributes:
        name: name of the tensor in the graph.
        shape: its concrete shape at the traced size.
        layers: its labels.
        constant: made from constants by movement alone.
        pristine: a constant no op has looked at yet; its first partner labels it.
        zero: the value is zero where it is removed, once all dead constant slices are zero.
        integer: an integer constant nobody has looked at yet; only quantised ops take it for data.
    """

    name: str
    shape: tuple[int, ...]
    layers: Layers = field(default=())
    constant: bool = False
    pristine: bool = False
    zero: bool = False
    integer: bool = False

    def materialise(self, relations: Relations) -> None:
        """Give a pristine constant atoms of its own, one label for each axis longer than 1."""
        if self.pristine:
            self.pristine = False
            self.layers = tuple(
                Layer((axis,), relations.fresh((extent,), Origin(self.name, axis)))
                for axis, extent in enumerate(self.shape)
                if extent > 1
            )


def movable(relations: Relations, labels: TensorLabels) -> Layers:
    """Layers of a tensor that is about to be moved as a whole."""
    labels.materialise(relations)
    return labels.layers


def rename(layers: Iterable[Layer], axes: dict[int, int]) -> Layers:
    """Give layers the axis numbers of another tensor; `axes` maps old to new."""
    return tuple(
        Layer(tuple(axes[a] for a in layer.axes), layer.atoms, layer.flexible) for layer in layers
    )


def simplify(relations: Relations, layers: Iterable[Layer]) -> Layers:
    """Bring layers to normal form: no extent 1, no repeated rows, nothing wholly frozen."""
    result = []
    for layer in layers:
        axes, atoms = list(layer.axes), relations.roots(layer.atoms)
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
            relations.freeze(atoms[:1], "the whole axis would go at once")
        if relations.find(atoms).any():
            result.append(Layer(tuple(axes), atoms, layer.flexible))
    return tuple(result)


def drop_tied(layers: Layers) -> Layers:
    """Drop layers whose axes another layer covers: joining has already tied their classes."""
    kept: list[Layer] = []
    for layer in sorted(layers, key=lambda one: (-len(one.axes), one.flexible)):
        if not any(set(layer.axes) <= set(other.axes) for other in kept):
            kept.append(layer)
    return tuple(kept)


def align_nesting(relations: Relations, layer: Layer) -> None:
    """Demand that what survives of a joint layer is a product of positions per axis."""
    for position in range(1, len(layer.axes)):
        columns = layer.atoms.shape[position]
        relations.align(np.moveaxis(layer.atoms, position, -1).reshape(-1, columns))


def project(relations: Relations, layer: Layer, keep: Iterable[int]) -> Layer:
    """Label a subset of a layer's axes: a kept position dies when its whole row does.

    Keeping a prefix of the nesting order leaves rows free; any other subset shares positions
    between rows and therefore aligns them.
    """
    wanted = set(keep)
    kept = [i for i, axis in enumerate(layer.axes) if axis in wanted]
    dropped = [i for i, axis in enumerate(layer.axes) if axis not in wanted]
    if not dropped:
        return layer
    shape = tuple(layer.atoms.shape[i] for i in kept)
    rows = layer.atoms.transpose(kept + dropped).reshape(int(np.prod(shape)), -1)
    if kept != list(range(len(kept))):
        relations.align(rows.T)
    atoms = relations.conjunction(rows).reshape(shape)
    return Layer(tuple(layer.axes[i] for i in kept), atoms, layer.flexible)


def reorder(relations: Relations, layer: Layer, axes: Sequence[int]) -> Layer:
    """Nest a layer in another order of the same axes."""
    if tuple(axes) == layer.axes:
        return layer
    align_nesting(relations, layer)
    order = [layer.axes.index(axis) for axis in axes]
    return Layer(tuple(axes), layer.atoms.transpose(order), layer.flexible)


def collapse(relations: Relations, layers: Iterable[Layer], axis: int, text: str) -> Layers:
    """Statistics run over an axis: freeze a plain label, tie a joint one along it."""
    result = []
    for layer in layers:
        if axis not in layer.axes:
            result.append(layer)
        elif len(layer.axes) == 1:
            relations.freeze(layer.atoms, text)
        else:
            first = layer.atoms.take([0], axis=layer.axes.index(axis))
            relations.unify(layer.atoms, np.broadcast_to(first, layer.atoms.shape))
            result.append(layer)
    return simplify(relations, result)


def take(
    relations: Relations, layers: Iterable[Layer], axis: int, index: NDArray[np.int64]
) -> Layers:
    """Labels after `numpy.take(x, index, axis)` with a 1-D index.

    One index serves all rows of a joint layer. So no surviving row may lose its part whole, up to
    the end of a range every row has to keep equally many entries, and for any other index the
    rows keep the same positions.
    """
    steps = np.unique(np.diff(index))
    result = []
    for layer in layers:
        if axis not in layer.axes:
            result.append(layer)
            continue
        position = layer.axes.index(axis)
        if position and len(steps) > 1:
            align_nesting(relations, layer)
        elif position and len(index) and index.min() > 0:
            relations.rectangle(layer.atoms.take(np.arange(index.max() + 1), axis=position))
        atoms = layer.atoms.take(index, axis=position)
        if position and len(index):
            rows = int(np.prod(atoms.shape[:position]))
            part, whole = (relations.conjunction(a.reshape(rows, -1)) for a in (atoms, layer.atoms))
            relations.unify(part, whole)
        relations.rectangle(atoms)
        result.append(Layer(layer.axes, atoms, layer.flexible))
    return simplify(relations, result)


def combine(relations: Relations, left: Layer, right: Layer) -> Layer:
    """Make two independent layers one joint layer: an element dies with its row or its column."""
    shape = left.atoms.shape + right.atoms.shape
    axes = left.axes + right.axes
    atoms = relations.fresh(shape, Origin(relations.node, axes[0]))
    joint = Layer(axes, atoms)
    for part in (left, right):
        projected = project(relations, joint, part.axes)
        relations.unify(projected.atoms, part.atoms)
    align_nesting(relations, joint)
    return joint


def merge_overlapping(relations: Relations, layers: Iterable[Layer], axes: Iterable[int]) -> Layers:
    """Make one layer of all those that touch any of `axes`; leave the others alone."""
    wanted = set(axes)
    touching = [layer for layer in layers if wanted & set(layer.axes)]
    others = [layer for layer in layers if not wanted & set(layer.axes)]
    if any(not layer.flexible for layer in touching):
        for layer in touching:
            if layer.flexible:
                relations.freeze(layer.atoms, "the repeat count of an expanded axis stays")
        touching = [layer for layer in touching if not layer.flexible]
    while len(touching) > 1:
        left, right = touching[:2]
        if set(left.axes) & set(right.axes):
            for layer in (left, right):
                relations.freeze(layer.atoms, "labels that share an axis would have to be merged")
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
    layer: Layer,
    block: tuple[list[int], list[int]],
    before: tuple[int, ...],
    after: tuple[int, ...],
) -> Layer:
    """Reshape the part of a layer that one block covers; new axes are numbered -1 - axis."""
    ours, theirs = block
    start = min(layer.axes.index(axis) for axis in ours if axis in layer.axes)
    head = layer.axes[:start]
    tail = tuple(axis for axis in layer.axes[start:] if axis not in ours)
    nested = head + tuple(ours) + tail
    layer = reorder(relations, layer, [axis for axis in nested if axis in layer.axes])
    atoms = layer.atoms[tuple(slice(None) if axis in layer.axes else np.newaxis for axis in nested)]
    extents = dict(zip(layer.axes, layer.atoms.shape, strict=True))
    atoms = np.broadcast_to(atoms, tuple(extents.get(a, before[a]) for a in nested))
    shape = [extents[axis] for axis in head] + [after[a] for a in theirs]
    atoms = atoms.reshape(*shape, *(extents[axis] for axis in tail))
    return Layer(head + tuple(-1 - axis for axis in theirs) + tail, atoms, layer.flexible)


def reshape(
    relations: Relations, layers: Layers, before: tuple[int, ...], after: tuple[int, ...]
) -> Layers:
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
            layers = merge_overlapping(relations, layers, ours)
    result = []
    for layer in layers:
        for block in split:
            if set(block[0]) & set(layer.axes):
                layer = _reshape_block(relations, layer, block, before, after)
        axes = tuple(-1 - (axis if axis < 0 else renamed[axis]) for axis in layer.axes)
        result.append(Layer(axes, layer.atoms, layer.flexible))
    simple = simplify(relations, result)
    for layer in simple:
        relations.rectangle(layer.atoms)
    return simple


def concat(relations: Relations, parts: Sequence[tuple[Layers, int]], axis: int) -> Layers:
    """Concatenate the layers that carry the axis.

    Args:
        relations: where new constraints are recorded.
        parts: for each input its layers that contain `axis` and its extent there.
        axis: the concatenated axis.
    """
    extents: dict[int, int] = {}
    order: list[int] = []
    merged: list[tuple[Layer | None, int]] = []
    for layers, extent in parts:
        whole = merge_overlapping(relations, layers, (axis,))
        layer = whole[0] if whole else None
        merged.append((layer, extent))
        if layer is not None:
            for a, e in zip(layer.axes, layer.atoms.shape, strict=True):
                extents[a] = e
                if a not in order:
                    order.append(a)
    if not order:
        return ()
    arrays = []
    for layer, extent in merged:
        shape = tuple(extent if a == axis else extents[a] for a in order)
        if layer is None:
            arrays.append(np.zeros(shape, np.int32))
            continue
        layer = reorder(relations, layer, [a for a in order if a in layer.axes])
        spread = tuple(slice(None) if a in layer.axes else np.newaxis for a in order)
        arrays.append(np.broadcast_to(layer.atoms[spread], shape))
    atoms = np.concatenate(arrays, axis=order.index(axis))
    simple = simplify(relations, [Layer(tuple(order), atoms)])
    for layer in simple:
        relations.rectangle(layer.atoms)
    return simple
