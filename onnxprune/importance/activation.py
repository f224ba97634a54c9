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

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.moments import Moments
from onnxprune.coupling.group_view import GroupView
from onnxprune.coupling.groups import Reading
from onnxprune.importance.criterion import ScoreCriterion


class _AtReaders(ScoreCriterion):
    """A statistic of every position that is read, added up by unit."""

    needs_calibration = True

    @abstractmethod
    def at(self, group: GroupView, reading: Reading, moments: Moments) -> NDArray[np.float64]:
        """Statistic of each position of a reading, shaped like `reading.units`."""

    def score(self, group: GroupView, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return float [size]."""
        if not group.moments:
            return group.weight_share()
        total = np.zeros(group.group.size)
        for reading, moments in group.moments.items():
            total += group.per_unit(reading.units, self.at(group, reading, moments))
        return total


class Std(_AtReaders):
    """Standard deviation of the activation."""

    name = "std"

    def at(self, group: GroupView, reading: Reading, moments: Moments) -> NDArray[np.float64]:
        """Variance."""
        return moments.variance

    def score(self, group: GroupView, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return float [size]."""
        total = super().score(group, rng)
        return np.sqrt(total) if group.moments else total


class Variance(_AtReaders):
    """Share of the consumers' output variance that is lost when the unit becomes its mean."""

    name = "variance"
    comparable = True

    def at(self, group: GroupView, reading: Reading, moments: Moments) -> NDArray[np.float64]:
        """Share of the variance, weighted by the consumer's weights."""
        lost = moments.variance * group.reader_power(reading)
        share: NDArray[np.float64] = lost / max(lost.sum(), np.finfo(float).tiny)
        return share


class Activity(_AtReaders):
    """Mean absolute activation."""

    name = "activity"

    def at(self, group: GroupView, reading: Reading, moments: Moments) -> NDArray[np.float64]:
        """Mean magnitude."""
        return moments.mean_magnitude
