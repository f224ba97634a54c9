"""Gradient of the loss with respect to a mask of ones on the units of groups, sample by sample.

A mask m_j multiplies unit j wherever a reader of its group reads it; over places p of readers c

    dL/dm_j = sum_c sum_p (x_cjp - x0_cj) dL/dx_cjp

is what the loss changes by, to first order, as unit j goes from x to x0: zero, or the mean where
that is folded into the biases of the readers. L is a sum over samples, and in inference samples do
not meet, so one backward pass over a batch gives the gradient of every sample. That is checked:
where the first sample comes out differently alone (rows that are not samples, samples that do
meet), the samples are run singly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.labels import take_labels
from onnxprune.calibration.moments import BATCH
from onnxprune.calibration.streams import Samples
from onnxprune.coupling.group_view import MaskGradients
from onnxprune.coupling.groups import Group, Reading
from onnxprune.errors import InputError, RuntimeFailure
from onnxprune.gradients.differentiated import differentiate
from onnxprune.gradients.divergence import DivergenceGradient
from onnxprune.gradients.losses import LossGradient, Objective, heads_of
from onnxprune.model.execution import Execution

_AGREEING = 1e-3
"""Share of the largest gradient by which float32 rounding may make a batch differ from a sample."""
_ACTIVATION_BYTES = 500_000_000
"""Memory for the activations of one backward pass."""


@dataclass(frozen=True)
class GroupGradients:
    """Gradients of the units of groups.

    Attributes:
        gradients: by group name.
        blocked: by name of each other group, why it has none.
    """

    gradients: dict[str, MaskGradients]
    blocked: Mapping[str, str]


def mask_gradients(
    model: ir.Model,
    groups: Sequence[Group],
    samples: Samples,
    objective: Objective | DivergenceGradient,
    context: RunContext,
    means: Mapping[Reading, NDArray[np.float64]] | None = None,
) -> GroupGradients:
    """Run a model forwards and backwards over samples.

    Args:
        model: unchanged.
        groups: whose units are masked; at least one.
        samples: what to run on.
        objective: loss and labels, or the gradient of the divergence.
        context: runtime, seed of labels that are drawn, progress callback.
        means: what units go to at each reading, shaped like its units; None for zero.

    Returns:
        what is known, by group name, and why the others have no gradients.

    Raises:
        InputError: where gradients get to no group, naming the node they do not get through; for
            labels or a loss function that do not fit.
        CalibrationError: for unusable samples.
    """
    passes = _Passes(model, groups, samples, objective, context, means or {})
    reached = [group for group in groups if group.name not in passes.blocked]
    sums = {group.name: (np.zeros(group.size), np.zeros(group.size)) for group in reached}
    count = 0
    total = None if samples.count is None else -(-samples.count // BATCH)
    for numbers, feed in context.progress(samples.numbered(BATCH), "gradients", total):
        for part in passes.of(feed, numbers):
            count += len(next(iter(part.values())))
            for name, gradients in part.items():
                sums[name][0][:] += np.abs(gradients).sum(axis=0)
                sums[name][1][:] += (gradients**2).sum(axis=0)
    known = {
        name: MaskGradients(count, magnitude / count, square / count)
        for name, (magnitude, square) in sums.items()
    }
    return GroupGradients(known, passes.blocked)


class _Loss:
    """Gradients with respect to the outputs, of a loss with its labels or of the divergence."""

    def __init__(
        self, model: ir.Model, objective: Objective | DivergenceGradient, rng: np.random.Generator
    ) -> None:
        self._labels = None if isinstance(objective, DivergenceGradient) else objective.labels
        self._gradient: DivergenceGradient | LossGradient
        if isinstance(objective, DivergenceGradient):
            self._gradient = objective
        else:
            self._gradient = LossGradient(heads_of(model, objective.loss), objective.loss, rng)
        self.tensors = self._gradient.tensors

    def of(
        self, outputs: Mapping[str, NDArray[Any]], numbers: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        """Gradients for the samples of these numbers, by tensor."""
        if isinstance(self._gradient, DivergenceGradient):
            return self._gradient.of(outputs)
        labels = None if self._labels is None else take_labels(self._labels, numbers)
        return self._gradient.of(outputs, labels)


class _Passes:
    """A model with its backward graph, run batch by batch."""

    def __init__(
        self,
        model: ir.Model,
        groups: Sequence[Group],
        samples: Samples,
        objective: Objective | DivergenceGradient,
        context: RunContext,
        means: Mapping[Reading, NDArray[np.float64]],
    ) -> None:
        rng, runtime = np.random.default_rng(context.seed), context.runtime
        self._axes = samples.axes
        self._loss = _Loss(model, objective, rng)
        self._forwards = Execution(model, runtime, arena=False)
        readings = [reading for group in groups for reading in group.readings]
        seeds, sample = self._loss.tensors, samples.take(2)
        try:
            self._made = differentiate(model, seeds, readings, means, sample, runtime, rng)
        except RuntimeFailure as error:
            raise _not_run(error) from error
        self.blocked = {
            group.name: self._made.blocked[reading]
            for group in groups
            for reading in group.readings
            if reading in self._made.blocked
        }
        self.blocked |= {
            group.name: f"no contraction that a mask could stand before reads {group.name}"
            for group in groups
            if not group.readings
        }
        self._groups = [group for group in groups if group.name not in self.blocked]
        if not self._groups:
            reason = next(iter(self.blocked.values()))
            raise InputError(f"no group has gradients: {reason}; take another criterion")
        try:
            self._backwards = Execution(self._made.model, runtime, arena=False)
        except RuntimeFailure as error:
            raise _not_run(error) from error
        self._checked = self._one_by_one = False
        each = self._made.activation_bytes / (samples.axes.rows(sample) or 1)
        self._most = max(1, int(_ACTIVATION_BYTES / max(each, 1)))

    def of(
        self, feed: Mapping[str, NDArray[Any]], numbers: NDArray[np.int64]
    ) -> Iterator[dict[str, NDArray[np.float64]]]:
        """Gradients of the samples of a feed, [rows, size] by group; in one or several parts."""
        rows = self._axes.rows(feed) or 1
        seeds = self._loss.of(self._forwards.run(feed), numbers)
        if rows == 1 or self._axes.fixed:
            whole = self._masks(feed, seeds, rows)
            yield whole if whole is not None else self._single(feed, seeds)
            return
        apart = all(len(seed) == rows for seed in seeds.values() if seed.ndim)
        parts = self._together(feed, seeds, rows) if apart and not self._one_by_one else None
        if parts is not None:
            yield from parts
            return
        self._one_by_one = True
        for row in range(rows):
            single = self._axes.cut(feed, slice(row, row + 1))
            if not apart:
                yield self._single(
                    single, self._loss.of(self._forwards.run(single), numbers[row : row + 1])
                )
            else:
                yield self._single(single, _rows(seeds, row, row + 1))

    def _together(
        self, feed: Mapping[str, NDArray[Any]], seeds: Mapping[str, NDArray[Any]], rows: int
    ) -> list[dict[str, NDArray[np.float64]]] | None:
        """Gradients of as many samples at a time as memory allows; None where they are no rows."""
        parts = []
        for start in range(0, rows, self._most):
            stop = min(start + self._most, rows)
            part = self._axes.cut(feed, slice(start, stop))
            slopes = _rows(seeds, start, stop)
            whole = self._masks(part, slopes, stop - start)
            if whole is None:
                return None
            if not self._checked and stop - start > 1:
                self._checked = True
                first = self._axes.cut(feed, slice(1))
                if not _agree(whole, self._single(first, _rows(seeds, 0, 1))):
                    return None
            parts.append(whole)
        return parts

    def _masks(
        self, feed: Mapping[str, NDArray[Any]], seeds: Mapping[str, NDArray[Any]], rows: int
    ) -> dict[str, NDArray[np.float64]] | None:
        """Gradients of each sample, [rows, size]; None where rows of a tensor are no samples."""
        try:
            results = self._backwards.run(self._made.feed(feed, seeds))
        except RuntimeFailure as error:
            raise _not_run(error) from error
        by_group = {}
        for group in self._groups:
            gradients = np.zeros((rows, group.size))
            for reading in group.readings:
                name = self._made.outputs.get(reading)
                if name is None:
                    continue
                placed = _by_sample(results[name], reading, rows)
                if placed is None:
                    return None
                units = _units_at(reading, len(results[name])).reshape(-1)
                np.add.at(gradients.T, units[units >= 0], placed.T[units >= 0])
            by_group[group.name] = gradients
        return by_group

    def _single(
        self, feed: Mapping[str, NDArray[Any]], seeds: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[np.float64]]:
        """Gradients of a feed that counts as one sample, [1, size]."""
        gradients = self._masks(feed, seeds, 1)
        assert gradients is not None
        return gradients


def _not_run(error: RuntimeFailure) -> InputError:
    return InputError(
        f"the gradients of this model cannot be computed: {error}; take another criterion"
    )


def _by_sample(result: NDArray[Any], reading: Reading, rows: int) -> NDArray[np.float64] | None:
    """What `_reduced` gives as float [rows, positions]; None where rows cannot be told apart."""
    value = result.astype(np.float64)
    if 0 in reading.axes:
        if rows > 1:
            return None
        value = value[np.newaxis]
        axes = [axis + 1 for axis in reading.axes]
    elif len(value) % rows:
        return None
    else:
        value = value.reshape(rows, -1, *value.shape[1:]).sum(axis=1)
        axes = list(reading.axes)
    others = tuple(axis for axis in range(1, value.ndim) if axis not in axes)
    order = [0, *(1 + sorted(axes).index(axis) for axis in axes)]
    return np.squeeze(value, axis=others).transpose(order).reshape(rows, -1)


def _units_at(reading: Reading, extent: int) -> NDArray[np.int64]:
    """Units of a reading where the first axis has another extent than in the traced batch.

    Where it carries units it goes through them once for each sample.
    """
    if 0 not in reading.axes:
        return reading.units
    place = reading.axes.index(0)
    lines = np.moveaxis(reading.units, place, 0)
    repeated = np.resize(lines, (extent, *lines.shape[1:]))
    if not np.array_equal(np.resize(repeated, lines.shape), lines):
        raise InputError(
            f"the units that {reading.consumer.node!r} reads of {reading.consumer.tensor!r} lie "
            "among samples in no regular order; take another criterion"
        )
    return np.moveaxis(repeated, 0, place)


def _agree(
    whole: Mapping[str, NDArray[np.float64]], first: Mapping[str, NDArray[np.float64]]
) -> bool:
    """Whether the first sample has the same gradients in the batch and alone."""
    return all(
        np.abs(gradients[0] - first[name][0]).max(initial=0)
        <= _AGREEING * max(float(np.abs(gradients).max(initial=0)), np.finfo(float).tiny)
        for name, gradients in whole.items()
    )


def _rows(arrays: Mapping[str, NDArray[Any]], start: int, stop: int) -> dict[str, NDArray[Any]]:
    return {name: array[start:stop] if array.ndim else array for name, array in arrays.items()}
