"""Shapes of all tensors of a model after any cut.

Most tensors carry the labels of others: what a cut leaves of a label is counted once, for all of
them, and the labels of one axis are counted together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from onnxprune.coupling.closure import alive_shape
from onnxprune.coupling.cut import Cut, CutError
from onnxprune.coupling.trace import Coupling

_Extents = tuple[int, ...]


class CutShapes:
    """Shapes at the first observed size, with some units removed.

    A tensor that a removal leaves ragged keeps its shape; such a cut cannot be built anyway.

    Args:
        coupling: labels of every tensor.

    Attributes:
        labels_of: name of a tensor -> numbers of its labels; equal labels have one number.
        labels: the units at the positions of each label, of the label's shape.
    """

    def __init__(self, coupling: Coupling) -> None:
        self._coupling = coupling
        self._observed = coupling.facts.first.shapes
        self.labels: list[NDArray[np.int32]] = []
        self.labels_of: dict[str, tuple[int, ...]] = {}
        self._axes: dict[str, tuple[tuple[int, ...], ...]] = {}
        self._overlapping: set[str] = set()
        numbers: dict[tuple[_Extents, bytes], int] = {}
        for name, tensor in coupling.tensors.items():
            axes = [axis for label in tensor.axis_labels for axis in label.axes]
            if not axes:
                continue
            found = []
            for label in tensor.axis_labels:
                units = coupling.unit_of[label.atoms]
                number = numbers.setdefault((units.shape, units.tobytes()), len(self.labels))
                if number == len(self.labels):
                    self.labels.append(units)
                found.append(number)
            self.labels_of[name] = tuple(found)
            self._axes[name] = tuple(label.axes for label in tensor.axis_labels)
            if len(set(axes)) < len(axes):
                self._overlapping.add(name)
        plain = [number for number, units in enumerate(self.labels) if units.ndim == 1]
        lengths = [len(self.labels[number]) for number in plain]
        self._plain = np.array(plain, np.int64)
        self._starts = np.cumsum([0, *lengths[:-1]]) if plain else np.zeros(0, np.int64)
        self._units = np.concatenate([self.labels[n] for n in plain] or [np.zeros(0, np.int32)])

    def after(
        self, removed: Iterable[int], *, everywhere: bool = False
    ) -> Callable[[str], tuple[int, ...]]:
        """Shape of any tensor by name; the function raises KeyError for one that was not observed.

        Args:
            removed: units that are removed, composites included.
            everywhere: whether shapes of most tensors will be asked for.
        """
        observed, cut = self._observed, Cut(self._coupling, removed)
        left: dict[int, _Extents | None] = self._counted(cut) if everywhere else {}

        def shape_of(name: str) -> tuple[int, ...]:
            numbers = self.labels_of.get(name)
            if numbers is None or name not in observed:
                return observed[name]
            if name in self._overlapping:
                return _shape_of_overlapping(cut, name)
            extents = list(observed[name])
            for number, axes in zip(numbers, self._axes[name], strict=True):
                units = self.labels[number]
                if number not in left:
                    left[number] = alive_shape(cut.keeps(units))
                kept = left[number]
                if kept is None or 0 in kept:
                    return observed[name]
                for axis, before, after in zip(axes, units.shape, kept, strict=True):
                    extents[axis] = extents[axis] * after // before
            return tuple(extents)

        return shape_of

    def _counted(self, cut: Cut) -> dict[int, _Extents | None]:
        """What is left of every label of one axis."""
        if not len(self._plain):
            return {}
        kept = np.add.reduceat(cut.keeps(self._units), self._starts, dtype=np.int64)
        pairs = zip(self._plain.tolist(), kept.tolist(), strict=True)
        return {number: (count,) for number, count in pairs}


def _shape_of_overlapping(cut: Cut, name: str) -> tuple[int, ...]:
    try:
        return cut.shape(name)
    except CutError:
        return cut.coupling.facts.first.shapes[name]
