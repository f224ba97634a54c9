"""What a criterion hands to allocation: a group, its removal order, the error of each prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.coupling.groups import Group
from onnxprune.importance.removal_order import RemovalStep, aligned


@dataclass(frozen=True)
class RankedGroup:
    """A group with its removal order and what the removal costs.

    Attributes:
        group: the group.
        steps: its removal order.
        curves: error after each step by name of the scaling, float [steps]; empty where the
            criterion measures none.
        parts: removals of the group that do not depend on each other, each ranked for itself;
            empty when it has only one.
    """

    group: Group
    steps: tuple[RemovalStep, ...]
    curves: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    parts: tuple[RankedGroup, ...] = ()

    def bundled(self, multiple: int, *, finer: bool = False) -> RankedGroup:
        """Bundle steps so that the axes of the group keep a multiple of some number of units.

        Args:
            multiple: 1 changes nothing.
            finer: go on in smaller steps behind the last such width.
        """
        if multiple == 1:
            return self
        # 11 heads of 64, or 12 of 62, are multiples of 8; 11 of 62 are not
        parts = [part._bundled(multiple, finer, by_row=not finer) for part in self.parts]
        whole = self._bundled(multiple, finer)
        return replace(whole, parts=tuple(parts) if all(part.steps for part in parts) else ())

    def _bundled(self, multiple: int, finer: bool, *, by_row: bool = False) -> RankedGroup:
        """Steps bundled to a multiple, with the errors at their ends."""
        steps = tuple(aligned(self.group, self.steps, multiple, finer=finer, by_row=by_row))
        ends = np.cumsum([len(step.units) for step in self.steps])
        removed = np.cumsum([len(step.units) for step in steps])
        last = np.searchsorted(ends, removed)
        curves = {name: curve[last] for name, curve in self.curves.items()}
        return RankedGroup(self.group, steps, curves)
