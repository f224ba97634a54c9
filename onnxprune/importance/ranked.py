"""Allocations worth trying: one error curve looked at in several scalings.

No static scaling of reconstruction errors is best everywhere, so each gives one candidate and the
divergence of the outputs decides, measured on samples that were not fitted (METHODS.md 4)::

    raw         E                   error of the readers' outputs
    stream      E / var(stream)     relative to the sum the output enters
    balanced    the geometric mean of both; `towards raw`, `towards stream`: closer to one
    root        sqrt(E)
"""

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
