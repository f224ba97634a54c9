"""Where the units of a set stand on a tensor, and multiplying a tensor with a matrix there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Places:
    """The places of all units of a set on the labelled axes of a tensor.

    A tensor may hold the set several times: keys that serve several heads, the places of a map
    that was flattened.

    Attributes:
        axes: labelled axes; within a copy of the set only the last one changes.
        units: number of the unit in the set at each place of these axes, -1 elsewhere.
        atoms: label at each place. Queries and keys that stand on one tensor, made by one weight,
            are the same units by the time they have met, but other atoms.
        index: place of each unit in each copy, counted over these axes: [copies, units].
    """

    axes: tuple[int, ...]
    units: NDArray[np.int64]
    atoms: NDArray[np.int32]
    index: NDArray[np.int64]

    @property
    def keys(self) -> NDArray[np.int32]:
        """Atom of the first unit of each copy: [copies]."""
        return self.atoms.ravel()[self.index[:, 0]]

    def only(self, copies: NDArray[np.bool_]) -> Places:
        """Some of the copies."""
        return replace(self, index=self.index[copies])

    def gathered(self, array: NDArray[Any]) -> NDArray[Any]:
        """What a tensor holds at the places of the set: [rest, copies, units].

        Raises:
            ValueError: when the extents differ from those of the labels in a way that is no
                repetition.
        """
        moved = np.moveaxis(array, self.axes, range(-len(self.axes), 0))
        shape = moved.shape[moved.ndim - len(self.axes) :]
        index = self.index
        if shape != self.units.shape:
            index = copies_of(_repeated(self.units, shape), index.shape[1])
        return moved.reshape(-1, prod(shape))[:, index]

    def multiplied(self, array: NDArray[Any], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """A tensor with the vector of units of each copy multiplied by a matrix from the left."""
        moved = np.moveaxis(array.astype(np.float64), self.axes, range(len(self.axes)))
        flat = moved.reshape(self.units.size, -1).copy()
        flat[self.index] = matrix @ flat[self.index]
        return np.moveaxis(flat.reshape(moved.shape), range(len(self.axes)), self.axes)

    def partners(self, other: Places, shift: int) -> NDArray[np.int32] | None:
        """Atoms that stand for the first unit here and on a tensor that this one is broadcast to.

        Args:
            other: places on that tensor.
            shift: number of axes that broadcasting puts in front.

        Returns:
            int32 [pairs, 2]; None when not each place there has its unit here too.
        """
        axes = tuple(axis + shift for axis in self.axes)
        if axes[-1] != other.axes[-1]:
            return None
        every = tuple(sorted({*axes, *other.axes}))
        here, there = _spread(self.units, axes, every), _spread(other.units, other.axes, every)
        if not ((here == there) | (there < 0)).all():
            return None
        both = np.broadcast_arrays(
            _spread(self.atoms, axes, every), _spread(other.atoms, other.axes, every), there
        )
        return np.unique(np.stack(both[:2], axis=-1)[both[2] == 0], axis=0)


def places_of(
    axes: tuple[int, ...], units: NDArray[np.int64], atoms: NDArray[np.int32], size: int
) -> Places | None:
    """Find the copies of a set on a label.

    Args:
        axes: axes of the label.
        units: number of the unit in the set at each of its places, -1 elsewhere.
        atoms: its atoms.
        size: units of the set.

    Returns:
        None when a copy is incomplete or spreads over more than one axis.
    """
    for position in reversed(range(len(axes))):
        moved = np.moveaxis(units, position, -1)
        try:
            index = copies_of(moved, size)
        except ValueError:
            return None
        rows = index // moved.shape[-1]
        if (rows == rows[:, :1]).all():
            order = (*axes[:position], *axes[position + 1 :], axes[position])
            return Places(order, moved, np.moveaxis(atoms, position, -1), index)
    return None


def _spread(array: NDArray[Any], axes: tuple[int, ...], every: tuple[int, ...]) -> NDArray[Any]:
    """An array over some axes as one over more of them, extent 1 where it has none."""
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    return array.transpose(order)[
        tuple(slice(None) if axis in axes else np.newaxis for axis in every)
    ]


def copies_of(units: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Place of each unit in each copy of a set: the n-th of every unit are one copy.

    Raises:
        ValueError: when there is not the same number of each unit.
    """
    flat = units.ravel()
    places = np.flatnonzero(flat >= 0)
    order: NDArray[np.int64] = places[np.argsort(flat[places], kind="stable")]
    if not len(order) or len(order) % size:
        raise ValueError("copies are incomplete")
    index: NDArray[np.int64] = order.reshape(size, -1).T
    if (flat[index] != np.arange(size)).any():
        raise ValueError("copies are incomplete")
    return index


def _repeated(units: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Labels at another batch size, where a batch has been merged into a labelled axis."""
    for axis, extent in enumerate(shape):
        known = units.shape[axis]
        if extent == known:
            continue
        for period in range(1, known + 1):
            part = units.take(np.arange(period), axis=axis)
            whole = part.take(np.arange(known) % period, axis=axis)
            if known % period == 0 and (whole == units).all():
                break
        if extent % period:
            raise ValueError("places depend on the size in an unknown way")
        units = part.take(np.arange(extent) % period, axis=axis)
    return units
