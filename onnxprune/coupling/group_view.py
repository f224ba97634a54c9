"""A group with the values that a criterion may look at, and the gradients of its mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.moments import Moments
from onnxprune.coupling.groups import Group, Reading
from onnxprune.model.observe import ConstantValues


@dataclass(frozen=True)
class MaskGradients:
    """Gradients of the loss of each sample with respect to a mask of ones on the units.

    Attributes:
        count: number of samples.
        mean_magnitude: average absolute value over samples, float [size].
        mean_square: average square over samples, float [size].
    """

    count: int
    mean_magnitude: NDArray[np.float64]
    mean_square: NDArray[np.float64]


class WeightSums:
    """Sums of powers of weights over the axes of a tensor that do not carry units.

    Args:
        constants: values of the constant tensors of a model, by name.

    Attributes:
        shared: the same as `of`, worked out once: for tensors that many groups have a part of.
    """

    def __init__(self, constants: ConstantValues) -> None:
        self._constants = constants
        self.shared = cache(self.of)

    def of(self, name: str, axes: tuple[int, ...], power: int) -> NDArray[np.float64]:
        """Sum of |w|^power of a constant over all but some axes, which come in ascending order."""
        total: NDArray[np.float64] = np.zeros(())
        parts = []
        for _, block in self._constants.blocks(name):
            others = tuple(axis for axis in range(block.ndim) if axis not in axes)
            parts.append((np.abs(block.astype(np.float64)) ** power).sum(axis=others))
            if 0 not in axes:
                total = total + parts.pop()
        return np.concatenate(parts) if 0 in axes else total


@dataclass(frozen=True)
class GroupView:
    """A group with the values a criterion may need.

    Attributes:
        group: units, owned tensors and readings.
        constants: values of the constant tensors of the model, by name.
        moments: activation statistics of each reading; empty without calibration.
        gradients: of the loss with respect to the units' mask; None unless the criterion has a true
            attribute `needs_gradients`.
        sums: sums of powers of weights, where views of several groups share them.
    """

    group: Group
    constants: ConstantValues
    moments: Mapping[Reading, Moments]
    gradients: MaskGradients | None = None
    sums: WeightSums | None = None

    def per_unit(
        self, units: NDArray[np.int64], values: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Add values up by unit.

        Args:
            units: unit index of each position, -1 for none; any shape.
            values: one value per position, same shape.

        Returns:
            float [size].
        """
        mine = units >= 0
        return np.bincount(units[mine], values[mine], minlength=self.group.size).astype(np.float64)

    def weight_power(self, power: int) -> NDArray[np.float64]:
        """Sum of |w|^power over all entries of all tensors that go with each unit: float [size]."""
        total = np.zeros(self.group.size)
        sums = self.sums or WeightSums(self.constants)
        for owned in self.group.owned:
            has_all = len(owned.positions) == prod(owned.shape)
            sum_of = sums.of if has_all else sums.shared
            summed = sum_of(owned.tensor, owned.axes, power)
            if len(owned.axes) > 1:
                summed = summed.transpose(np.argsort(np.argsort(owned.axes))).reshape(-1)
            total += np.bincount(owned.indices, summed[owned.positions], self.group.size)
        return total

    def weight_share(self) -> NDArray[np.float64]:
        """The squared weights of each unit as a share of those of all: float [size]."""
        power = self.weight_power(2)
        share: NDArray[np.float64] = power / max(float(power.sum()), np.finfo(float).tiny)
        return share

    def reader_power(self, reading: Reading) -> NDArray[np.float64]:
        """Squared norm of the consumer's weights behind each position it reads.

        Returns:
            float, shaped like `reading.units`; ones where the consumer has no weight, or one that
            the model picks by its input.
        """
        consumer = reading.consumer
        if consumer.weight is None:
            return np.ones(reading.shape)
        extent = reading.shape[reading.axes.index(consumer.axis)]
        sums = WeightSums(self.constants)
        try:
            norms = sums.of(consumer.weight, (consumer.weight_axis,), 2)
        except KeyError:
            return np.ones(reading.shape)
        if consumer.group > 1 and len(norms) < extent:
            # A grouped Conv: axis 1 counts within a group, the rows of axis 0 say which group.
            by_row = sums.of(consumer.weight, (0, 1), 2)
            norms = by_row.reshape(consumer.group, -1, len(norms)).sum(axis=1).reshape(-1)
        shape = [extent if axis == consumer.axis else 1 for axis in reading.axes]
        return np.broadcast_to(norms.reshape(shape), reading.shape)
