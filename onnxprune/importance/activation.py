"""How much a unit's activation does, seen at the input of each consumer, after all non-linearities.

    std:      score_j = sqrt(sum_c var(x_cj))
    variance: score_j = sum_c v_cj / sum_i v_ci,   v_cj = var(x_cj) * ||W_c[:, j]||^2
    activity: score_j = sum_c E|x_cj|

v_cj is what consumer c loses when x_cj is replaced by its mean (bias folding); as a share of all it
reads, it can be compared between groups. E|x| is how often a unit is non-zero times how strongly.

c runs over the consumers, and over the positions a flattened unit has there. Where only bodies of
Loop, If or Scan read a group, no sample sees it: the share of the squared weights stands in, or its
units would always be the first to go.

Source: the variance form is that of An et al. 2024 (FLAP) and of variance-based pruning (VBP, ICCV
2025); activity is the average percentage of zeros of Hu et al. 2016 turned around and weighted by
strength.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.coupling.group_view import GroupView


class Std:
    """Standard deviation of the activation."""

    name: ClassVar[str] = "std"
    needs_calibration: ClassVar[bool] = True
    comparable: ClassVar[bool] = False

    def score(self, group: GroupView, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return float [size]."""
        del rng
        if not group.moments:
            return group.weight_share()
        total = np.zeros(group.group.size)
        for reading, moments in group.moments.items():
            total += group.per_unit(reading.units, moments.variance)
        return np.sqrt(total)


class Variance:
    """Share of the consumers' output variance that goes when the unit becomes its mean."""

    name: ClassVar[str] = "variance"
    needs_calibration: ClassVar[bool] = True
    comparable: ClassVar[bool] = True

    def score(self, group: GroupView, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return float [size]."""
        del rng
        if not group.moments:
            return group.weight_share()
        total = np.zeros(group.group.size)
        for reading, moments in group.moments.items():
            lost = moments.variance * group.reader_power(reading)
            total += group.per_unit(reading.units, lost / max(lost.sum(), np.finfo(float).tiny))
        return total


class Activity:
    """Mean absolute activation."""

    name: ClassVar[str] = "activity"
    needs_calibration: ClassVar[bool] = True
    comparable: ClassVar[bool] = False

    def score(self, group: GroupView, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return float [size]."""
        del rng
        if not group.moments:
            return group.weight_share()
        total = np.zeros(group.group.size)
        for reading, moments in group.moments.items():
            total += group.per_unit(reading.units, moments.mean_magnitude)
        return total
