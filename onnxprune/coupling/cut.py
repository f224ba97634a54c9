"""What is kept of every tensor when some units are removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.coupling.closure import alive_shape
from onnxprune.coupling.labels import AxisLabel
from onnxprune.coupling.trace import Coupling


class CutError(Exception):
    """A removal cannot be carried out at some tensor; the groups that cut it have to stay.

    Attributes:
        tensor: name of the tensor.
    """

    def __init__(self, tensor: str, text: str) -> None:
        super().__init__(text)
        self.tensor = tensor


class Cut:
    """A coupling with a set of removed units.

    Args:
        coupling: labels of every tensor.
        removed: units to remove, composites included.
    """

    def __init__(self, coupling: Coupling, removed: Iterable[int]) -> None:
        self.coupling = coupling
        self._removed = np.zeros(coupling.relations.count, bool)
        self._removed[removed if isinstance(removed, np.ndarray) else list(removed)] = True

    def alive(self, label: AxisLabel) -> NDArray[np.bool_]:
        """Which positions of a label are kept, same shape as its atoms."""
        return self.keeps(self.coupling.unit_of[label.atoms])

    def keeps(self, units: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which of some units are kept, same shape."""
        return ~self._removed[units]

    def touches(self, name: str) -> bool:
        """Whether anything of a tensor is removed."""
        labels = self.coupling.tensors.get(name)
        return labels is not None and any(
            not self.alive(label).all() for label in labels.axis_labels
        )

    def shape(self, name: str, *, second: bool = False) -> tuple[int, ...]:
        """Shape of a tensor after the cut, at the first or the second observed size.

        Raises:
            CutError: when what is kept is not rectangular, or nothing is.
            KeyError: when the tensor was not observed.
        """
        facts = self.coupling.facts
        observed = (facts.second if second else facts.first).shapes[name]
        extents = list(observed)
        labels = self.coupling.tensors.get(name)
        for axis_labels in _overlapping(labels.axis_labels if labels else ()):
            axes, alive = self._together(axis_labels)
            if alive.all():
                continue
            surviving = alive_shape(alive)
            if surviving is None or 0 in surviving:
                raise CutError(name, f"the kept entries of {name} do not form a dense tensor")
            for axis, before, after in zip(axes, alive.shape, surviving, strict=True):
                extents[axis] = observed[axis] * after // before
        return tuple(extents)

    def kept(self, name: str) -> dict[int, NDArray[np.int64]]:
        """Kept indices of every axis of a constant that is cut.

        Raises:
            CutError: when the kept entries are no product of indices per axis, or there are none.
        """
        result: dict[int, NDArray[np.int64]] = {}
        for axis_labels in _overlapping(self.coupling.tensors[name].axis_labels):
            axes, alive = self._together(axis_labels)
            if alive.all():
                continue
            if alive.ndim == 1 and alive.any():
                result[axes[0]] = np.flatnonzero(alive)
                continue
            size = 1
            for position, axis in enumerate(axes):
                others = tuple(i for i in range(alive.ndim) if i != position)
                indices = np.flatnonzero(alive.any(axis=others))
                size *= len(indices)
                if len(indices) < alive.shape[position]:
                    result[axis] = indices
            if size != alive.sum() or size == 0:
                raise CutError(
                    name, f"the kept entries of {name} are not a product of indices per axis"
                )
        return dict(sorted(result.items()))

    def positions(
        self, name: str, axis: int, within: Mapping[int, NDArray[np.int64]] | None = None
    ) -> NDArray[np.bool_] | None:
        """Kept positions along one axis, one row for each kept row of the axes it is nested in.

        Args:
            name: the tensor.
            axis: the axis.
            within: the only entries that count of other axes; all of them where nothing is said.

        Returns:
            bool [rows, extent], or None when the axis loses nothing.
        """
        labels = self.coupling.tensors.get(name)
        axis_labels = [
            label for label in (labels.axis_labels if labels else ()) if axis in label.axes
        ]
        if not axis_labels:
            return None
        alive = self.alive(axis_labels[0])
        position = axis_labels[0].axes.index(axis)
        for outer, index in (within or {}).items():
            if outer in axis_labels[0].axes[:position]:
                alive = alive.take(index, axis=axis_labels[0].axes.index(outer))
        inner = tuple(range(position + 1, alive.ndim))
        rows = np.any(alive, axis=inner).reshape(-1, alive.shape[position])
        rows = rows[rows.any(axis=1)]
        return None if rows.all() else rows

    def alive_along(self, name: str, axis: int) -> NDArray[np.bool_]:
        """Kept positions along an axis with a label of its own: bool [extent]."""
        labels = self.coupling.tensors[name]
        for label in labels.axis_labels:
            if label.axes == (axis,):
                return self.alive(label)
        return np.ones(labels.shape[axis], bool)

    def _together(self, axis_labels: list[AxisLabel]) -> tuple[tuple[int, ...], NDArray[np.bool_]]:
        """Kept positions over the union of the axes of overlapping labels."""
        if len(axis_labels) == 1:
            return axis_labels[0].axes, self.alive(axis_labels[0])
        axes: list[int] = []
        extents: dict[int, int] = {}
        for label in sorted(axis_labels, key=lambda label: -len(label.axes)):
            axes += [axis for axis in label.axes if axis not in axes]
            extents |= dict(zip(label.axes, label.atoms.shape, strict=True))
        alive = np.ones([extents[axis] for axis in axes], bool)
        for label in axis_labels:
            order = sorted(range(len(label.axes)), key=lambda i: axes.index(label.axes[i]))
            part = self.alive(label).transpose(order)
            alive &= part[tuple(slice(None) if a in label.axes else np.newaxis for a in axes)]
        return tuple(axes), alive


def _overlapping(axis_labels: Iterable[AxisLabel]) -> list[list[AxisLabel]]:
    """Split labels into sets that share axes."""
    labels = list(axis_labels)
    axes = [axis for label in labels for axis in label.axes]
    if len(set(axes)) == len(axes):
        return [[label] for label in labels]
    components: list[list[AxisLabel]] = []
    for label in labels:
        touching = [c for c in components if any(set(o.axes) & set(label.axes) for o in c)]
        merged = [label, *(part for component in touching for part in component)]
        components = [c for c in components if not any(c is other for other in touching)]
        components.append(merged)
    return components


@dataclass(frozen=True)
class Removal:
    """What every group gives up.

    Attributes:
        units: removed units of each group that loses some, composites included, by group name.
    """

    units: Mapping[str, tuple[int, ...]]

    def removed_units(self) -> list[int]:
        """The removed units of all groups."""
        return [unit for units in self.units.values() for unit in units]

    def same_as(self, other: Removal) -> bool:
        """Whether the same units are removed."""
        return sorted(self.removed_units()) == sorted(other.removed_units())
