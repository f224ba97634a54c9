"""No importance at all: the baseline every criterion has to beat."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.coupling.group_view import GroupView


class Random:
    """Uniformly random scores from the run's seeded generator."""

    name: ClassVar[str] = "random"
    needs_calibration: ClassVar[bool] = False
    comparable: ClassVar[bool] = False

    def score(self, group: GroupView, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return float [size]."""
        return rng.random(group.group.size)
