"""Gradient of the loss with respect to a mask of ones on the units of groups, sample by sample.

A mask m_j multiplies unit j wherever a reader of its group reads it; over places p of readers c

    dL/dm_j = sum_c sum_p (x_cjp - x0_cj) dL/dx_cjp

is what the loss changes by, to first order, as unit j goes from x to x0: zero, or the mean where
that is folded into the biases of the readers. L is a sum over samples, and in inference samples do
not meet, so one backward pass over a batch gives the gradient of every sample. That is checked:
where the first sample comes out differently alone (rows that are not samples, samples that do
meet), samples are gone through one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxprune.calibration.feeds import batch_rows
from onnxprune.calibration.parts import numbered
from onnxprune.calibration.statistics import BATCH
from onnxprune.errors import InputError
from onnxprune.gradients.backward import Edge, add_backward
from onnxprune.gradients.emitter import Emitter
from onnxprune.gradients.losses import LossGradient, heads_of
from onnxprune.importance.base import MaskGradients
from onnxprune.model.execution import Execution
from onnxprune.model.observe import observe
from onnxprune.progress import silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from onnxprune.calibration.samples import Samples
    from onnxprune.coupling.groups import Group, Reading
    from onnxprune.gradients.losses import Objective
    from onnxprune.model.runtime import Runtime
    from onnxprune.progress import Progress

__all__ = ["mask_gradients"]

_AGREEING = 1e-3
_SEED = "onnxprune/seed"


def mask_gradients(
    model: ir.Model,
    groups: Sequence[Group],
    samples: Samples,
    objective: Objective,
    runtime: Runtime,
    *,
    seed: int = 0,
    means: Mapping[Reading, NDArray[np.float64]] | None = None,
    progress: Progress[Any] = silent,
) -> dict[str, MaskGradients]:
    """Run a model forwards and backwards over samples.

    Args:
        model: unchanged.
        groups: whose units are masked.
        samples: what to run on.
        objective: loss and labels.
        runtime: how to run.
        seed: of labels that are drawn.
        means: what units go to at each reading, shaped like its units; None for zero.
        progress: told about every batch.

    Returns:
        by group name.

    Raises:
        InputError: naming a node that gradients do not get through; for labels or a loss function
            that do not fit.
        CalibrationError: for unusable samples.
    """
    passes = _Passes(model, groups, samples, objective, runtime, seed, means or {})
    sums = {group.name: (np.zeros(group.size), np.zeros(group.size)) for group in groups}
    count = 0
    total = None if samples.count is None else -(-samples.count // BATCH)
    for numbers, feed in progress(numbered(samples, BATCH), "gradients", total):
        for found in passes.of(feed, numbers):
            count += len(next(iter(found.values())))
            for name, gradients in found.items():
                sums[name][0][:] += np.abs(gradients).sum(axis=0)
                sums[name][1][:] += (gradients**2).sum(axis=0)
    return {
        name: MaskGradients(count, magnitude / count, square / count)
        for name, (magnitude, square) in sums.items()
    }


class _Passes:
    """A model with its backward graph, run batch by batch."""

    def __init__(
        self,
        model: ir.Model,
        groups: Sequence[Group],
        samples: Samples,
        objective: Objective,
        runtime: Runtime,
        seed: int,
        means: Mapping[Reading, NDArray[np.float64]],
    ) -> None:
        rng = np.random.default_rng(seed)
        heads = heads_of(model, objective.loss)
        self._groups, self._specs, self._labels = groups, samples.specs, objective.labels
        self._loss = LossGradient(heads, objective.loss, rng)
        self._forwards = Execution(model, runtime, arena=False)
        backwards, self._names = _with_backward(
            model, [head.seed for head in heads], groups, means, samples, runtime, rng
        )
        self._seeds = {
            (value.name or "").removeprefix(f"{_SEED}/"): value.dtype
            for value in backwards.graph.inputs
            if (value.name or "").startswith(_SEED)
        }
        self._backwards = Execution(backwards, runtime, arena=False)
        self._checked = self._one_by_one = False

    def of(
        self, feed: Mapping[str, NDArray[Any]], numbers: NDArray[np.int64]
    ) -> Iterator[dict[str, NDArray[np.float64]]]:
        """Gradients of the samples of a feed, [rows, size] by group; in one or several parts."""
        rows = batch_rows(feed, self._specs) or 1
        outputs = self._forwards.run(feed)
        labels = None if self._labels is None else self._labels[numbers]
        seeds = self._loss.of(outputs, labels)
        fixed = isinstance((self._specs[0].shape or (None,))[0], int)
        whole = None if self._one_by_one else self._masks(feed, seeds, rows)
        if rows == 1 or fixed:
            yield whole if whole is not None else self._single(feed, seeds)
            return
        apart = all(len(one) == rows for one in seeds.values() if one.ndim)
        if whole is not None and not self._checked:
            self._checked = True
            first = self._single(_row(feed, 0), _row(seeds, 0)) if apart else None
            if first is None or not _agree(whole, first):
                self._one_by_one, whole = True, None
        if whole is not None:
            yield whole
            return
        self._one_by_one = True
        for row in range(rows):
            single = _row(feed, row)
            if not apart:
                part = None if labels is None else labels[row : row + 1]
                yield self._single(single, self._loss.of(self._forwards.run(single), part))
            else:
                yield self._single(single, _row(seeds, row))

    def _masks(
        self, feed: Mapping[str, NDArray[Any]], seeds: Mapping[str, NDArray[Any]], rows: int
    ) -> dict[str, NDArray[np.float64]] | None:
        """Gradients of each sample, [rows, size]; None where rows of a tensor are no samples."""
        given = {
            f"{_SEED}/{name}": seeds[name].astype(dtype.numpy())
            if name in seeds
            else np.zeros((0,), np.float32)
            for name, dtype in self._seeds.items()
            if dtype is not None
        }
        results = self._backwards.run({**feed, **given})
        found = {}
        for group in self._groups:
            gradients = np.zeros((rows, group.size))
            for reading in group.readings:
                name = self._names.get(reading)
                if name is None:
                    continue
                placed = _by_sample(results[name], reading, rows)
                if placed is None:
                    return None
                units = reading.units.reshape(-1)
                np.add.at(gradients.T, units[units >= 0], placed.T[units >= 0])
            found[group.name] = gradients
        return found

    def _single(
        self, feed: Mapping[str, NDArray[Any]], seeds: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[np.float64]]:
        """Gradients of a feed that counts as one sample, [1, size]."""
        found = self._masks(feed, seeds, 1)
        assert found is not None
        return found


def _with_backward(
    model: ir.Model,
    seeded: Sequence[str],
    groups: Sequence[Group],
    means: Mapping[Reading, NDArray[np.float64]],
    samples: Samples,
    runtime: Runtime,
    rng: np.random.Generator,
) -> tuple[ir.Model, dict[Reading, str]]:
    """A copy of the model that gives the gradient of each reading; and the names of these."""
    facts = observe(model, runtime, rng, samples.take(2))
    probe = model.clone()
    emit = Emitter(probe, (facts.first, facts.second))
    values = {value.name: value for node in probe.graph for value in node.outputs}
    values |= {value.name: value for value in probe.graph.inputs}
    seeds = {}
    for name in dict.fromkeys(seeded):
        dtype = emit.dtype(values[name])
        if dtype is not None:
            shape = ir.Shape([None] * emit.rank(values[name]))
            seeds[name] = ir.Value(name=f"{_SEED}/{name}", type=ir.TensorType(dtype), shape=shape)
    if not seeds:
        raise InputError("no output of the model is of floating point, so that no loss has a slope")
    readings = [reading for group in groups for reading in group.readings]
    edges = {one: Edge(one.consumer.node, one.consumer.tensor) for one in readings}
    gradients = add_backward(probe, emit, seeds, set(edges.values()))
    del probe.graph.outputs[:]
    names = {}
    for reading, edge in edges.items():
        if edge in gradients:
            tensor = values[edge.tensor]
            names[reading] = _reduced(emit, tensor, gradients[edge], reading, means.get(reading))
    probe.graph.inputs.extend(seeds.values())
    return probe, names


def _reduced(
    emit: Emitter,
    tensor: ir.Value,
    gradient: ir.Value,
    reading: Reading,
    mean: NDArray[np.float64] | None,
) -> str:
    """Append (x - x0) dL/dx added up over all axes but the first and those of the units."""
    rank = emit.rank(tensor)
    value = emit.op("Cast", tensor, to=int(ir.DataType.FLOAT))
    if mean is not None:
        order = np.argsort(reading.axes)
        extents = dict(zip(reading.axes, mean.shape, strict=True))
        shape = [extents.get(axis, 1) for axis in range(rank)]
        centre = mean.transpose(order).reshape(shape).astype(np.float32)
        value = emit.op("Sub", value, emit.constant(centre))
    product = emit.op("Mul", value, emit.op("Cast", gradient, to=int(ir.DataType.FLOAT)))
    others = [axis for axis in range(1, rank) if axis not in reading.axes]
    found = emit.op("Identity", emit.reduce("ReduceSum", product, others))
    found.type = ir.TensorType(ir.DataType.FLOAT)
    emit.graph.outputs.append(found)
    return found.name or ""


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


def _agree(
    whole: Mapping[str, NDArray[np.float64]], first: Mapping[str, NDArray[np.float64]]
) -> bool:
    """Whether the first sample has the same gradients in the batch and alone."""
    return all(
        np.abs(gradients[0] - first[name][0]).max(initial=0)
        <= _AGREEING * max(float(np.abs(gradients).max(initial=0)), np.finfo(float).tiny)
        for name, gradients in whole.items()
    )


def _row(arrays: Mapping[str, NDArray[Any]], row: int) -> dict[str, NDArray[Any]]:
    return {name: array[row : row + 1] if array.ndim else array for name, array in arrays.items()}
