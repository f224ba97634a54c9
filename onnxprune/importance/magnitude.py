"""Size of the weights: what the field calls magnitude or norm pruning.

    l1: score_j = sum |w|          l2: score_j = sqrt(sum w^2)

over every entry of every tensor coupled to unit j: the filters that make it, its normalisation
parameters and bias, the weights of all its consumers. Source: Li et al. 2017, "Pruning filters for
efficient ConvNets"; the sum over coupled tensors follows Fang et al. 2023 (DepGraph).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.coupling.group_view import GroupView
from onnxprune.importance.criterion import ScoreCriterion


class L1(ScoreCriterion):
    """Sum of absolute weights."""

    name = "l1"

    def score(self, group: GroupView, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return float [size]."""
        return group.weight_power(1)


class L2(ScoreCriterion):
    """Euclidean norm of the weights."""

    name = "l2"

    def score(self, group: GroupView, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return float [size]."""
        return np.sqrt(group.weight_power(2))
