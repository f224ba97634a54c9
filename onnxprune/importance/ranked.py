"""What a criterion hands to allocation: a group, its removal order, the error of each prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.coupling.groups import Group
from onnxprune.importance.removal_order import RemovalStep


@dataclass(frozen=True)
class RankedGroup:
    """A group with its removal order and what the removal costs.

    Attributes:
        group: the group.
        steps: its removal order.
        curves: error after each step by name of the scaling, float [steps].
        parts: removals of the group that do not depend on each other, each ranked for itself;
            empty when it has only one.
    """

    group: Group
    steps: tuple[RemovalStep, ...]
    curves: Mapping[str, NDArray[np.float64]]
    parts: tuple[RankedGroup, ...] = ()
