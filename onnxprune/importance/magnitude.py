"""Size of the weights: what the field calls magnitude or norm pruning.

    l1: score_j = sum |w|          l2: score_j = sqrt(sum w^2)

over every entry of every tensor coupled to unit j: the filters that make it, its normalisation
parameters and bias, the weights of all its consumers. Source: Li et al. 2017, "Pruning filters for
efficient ConvNets"; the sum over coupled tensors follows Fang et al. 2023 (DepGraph).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.coupling.group_view import GroupView


class L1:
    """Sum of absolute weights."""

    name: ClassVar[str] = "l1"
    needs_calibration: ClassVar[bool] = False
    comparable: ClassVar[bool] = False

    def score(self, group: GroupView, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return float [size]."""
        del rng
        return group.weight_power(1)


class L2:
    """Euclidean norm of the weights."""

    name: ClassVar[str] = "l2"
    needs_calibration: ClassVar[bool] = False
    comparable: ClassVar[bool] = False

    def score(self, group: GroupView, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return float [size]."""
        del rng
        return np.sqrt(group.weight_power(2))
