"""No importance at all: the baseline every criterion has to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.coupling.group_view import GroupView
from onnxprune.importance.criterion import ScoreCriterion


class Random(ScoreCriterion):
    """Uniformly random scores from the run's seeded generator."""

    name = "random"

    def score(self, group: GroupView, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return float [size]."""
        return rng.random(group.group.size)
