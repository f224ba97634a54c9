"""Which units of a group the model can do without: dead, constant, or like another unit."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.moments import Moments, Tap
from onnxprune.compensation.lossless.value_numbers import ABSENT, NOTHING, ZERO, Numbering
from onnxprune.coupling.group_view import GroupView
from onnxprune.coupling.groups import Group, Reading
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.surgery.linear import SMALL_MAP, is_linear, is_mergeable, move_weights


class SpareUnits:
    """Units of one group that the model can do without, as its values and readers are now.

    Args:
        target: the model at full size.
        group: the group.
        numbering: the values of its units.
        moments: activation statistics by tap, if there are any.
    """

    def __init__(
        self,
        target: EditableModel,
        group: Group,
        numbering: Numbering,
        moments: Mapping[Tap, Moments],
    ) -> None:
        self.target = target
        self.group = group
        self.numbering = numbering
        self.moments = moments
        self.values = [numbering.at(one.consumer.tensor, one.axes) for one in group.readings]
        self.unfelt = self._unfelt()

    def dead(self) -> NDArray[np.bool_]:
        """Units that no reader feels."""
        result: NDArray[np.bool_] = ~self.numbering.mixed & np.all(
            [*self.unfelt, np.ones(self.group.size, bool)], axis=0
        )
        return result

    def constant(self) -> NDArray[np.bool_]:
        """Units that every reader that feels them sees unchanged, and can do without."""
        fixed = np.fromiter(self.numbering.fixed, np.int64)
        result = ~self.numbering.mixed
        for reading, values, unfelt in zip(
            self.group.readings, self.values, self.unfelt, strict=True
        ):
            steady = np.isin(values.number, fixed) | self._steady(reading)
            foldable = is_linear(self.target, reading) and 0 not in reading.axes
            result &= unfelt | (steady & foldable)
        return result

    def merged(self, candidates: NDArray[np.bool_]) -> dict[int, int]:
        """Units that another one can stand for: unit -> that one."""
        free = candidates & ~self.numbering.mixed
        numbers, sizes = [], np.zeros(self.group.size)
        for reading, values in zip(self.group.readings, self.values, strict=True):
            if is_mergeable(self.target, reading):
                numbers.append(values.number)
                sizes = np.where(sizes == 0, np.abs(values.factor), sizes)
            else:
                free &= values.number <= ZERO
        if not numbers:
            return {}
        keys = np.stack(numbers, axis=1)
        order = np.flatnonzero(free)
        order = order[np.argsort(-sizes[order], kind="stable")]
        stands: dict[bytes, int] = {}
        result = {}
        for unit in order.tolist():
            kept = stands.setdefault(keys[unit].tobytes(), unit)
            if kept != unit:
                result[unit] = kept
        return result

    def move(self, merged: Mapping[int, int]) -> None:
        """Add the weights behind the merged units to those behind the ones that stand for them."""
        for reading, values in zip(self.group.readings, self.values, strict=True):
            moved = [
                (unit, kept, float(values.factor[unit] / values.factor[kept]))
                for unit, kept in merged.items()
                if values.number[unit] > ZERO
            ]
            if moved:
                move_weights(self.target, reading, moved)

    def _unfelt(self) -> list[NDArray[np.bool_]]:
        """For each reading the units that add nothing there: zero, or behind weights of zero."""
        view = GroupView(self.group, self.numbering.constants, {})
        zero_at: dict[str, NDArray[np.bool_]] = {}
        for reading, values in zip(self.group.readings, self.values, strict=True):
            node = reading.consumer.node
            zero_at[node] = zero_at.get(node, np.zeros(self.group.size, bool))
            zero_at[node] |= values.number == ZERO
        result = []
        for reading, values in zip(self.group.readings, self.values, strict=True):
            zero = zero_at[reading.consumer.node] | (values.number == ABSENT)
            if is_linear(self.target, reading):
                power = np.array(view.reader_power(reading))
                felt = view.per_unit(reading.units, power)
                zero = zero | (felt <= NOTHING**2 * felt.max())
            result.append(zero)
        return result

    def _steady(self, reading: Reading) -> NDArray[np.bool_]:
        tensor = reading.consumer.tensor
        rank = len(self.target.coupling.tensors[tensor].shape)
        moments = self.moments.get(Tap(tensor, reading.axes, rank))
        result = np.zeros(self.group.size, bool)
        if moments is not None:
            steady = moments.steady
            if not self._pays_off(reading, steady & ~moments.even):
                steady = steady & moments.even
            moving = reading.units[~steady]
            result[reading.units[reading.units >= 0]] = True
            result[moving[moving >= 0]] = False
        return result

    def _pays_off(self, reading: Reading, uneven: NDArray[np.bool_]) -> bool:
        """Whether weights that go with uneven units outnumber the constant map in their place."""
        consumer, coupling = reading.consumer, self.target.coupling
        weight, tensors = coupling.facts.constants.get(consumer.weight or ""), coupling.tensors
        if weight is None or consumer.node not in tensors:
            return True
        each = weight.size / max(tensors[consumer.tensor].shape[consumer.axis], 1)
        saved = int(uneven.sum()) * each
        return prod(tensors[consumer.node].shape[1:]) <= max(saved, SMALL_MAP)
