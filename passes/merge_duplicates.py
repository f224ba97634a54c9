"""Duplicate removal: of several units that compute the same, one is kept.

Formula, for units u and v whose values on the samples are correlated by r at every reader::

    x_u ~ c + a x_v  with  |r| >= similarity:    W[:, v] += a W[:, u], u is removed

and the layers around are re-fitted from there, since more than one unit can make up for u. Units
whose weights are equal, or equal up to a factor, are merged first, exactly and without samples
(`passes/remove_lossless.py`).

Conditions: of units with constraints (heads, grouped convolutions) only equal ones are merged.

Source: Srinivas & Babu 2015; Kim et al. 2020 (Neuron Merging).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.batches import BatchBudget, drawn_rows
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.streams import Samples
from onnxprune.calibration.walk import Walk
from onnxprune.compensation.regression.elimination import SMALLEST
from onnxprune.coupling.analysis import analyse
from onnxprune.coupling.cut import Removal
from onnxprune.coupling.groups import Group, Reading
from onnxprune.errors import InputError
from onnxprune.model.runtime import Runtime, matrix_threads
from onnxprune.options import PruneOptions
from onnxprune.passes.pipeline.protocol import Pass
from onnxprune.passes.remove_lossless import removed_exactly
from onnxprune.progress import Progress, silent
from onnxprune.pruning.build import build
from onnxprune.pruning.method import Method
from onnxprune.pruning.workspace import Workspace, calibrate
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.surgery.linear import is_mergeable, move_weights

_ROWS = 65_536


@dataclass(frozen=True)
class Likeness:
    """How alike the units of one group are.

    Attributes:
        covariances: of the units at every place that reads them, float64 [size, size].
    """

    covariances: Sequence[tuple[Reading, NDArray[np.float64]]]

    def alike(self) -> NDArray[np.float64]:
        """Absolute correlation of any two units, the smallest there is at a reader."""
        correlations = []
        for _, covariance in self.covariances:
            deviation = np.sqrt(np.diagonal(covariance))
            scale = np.maximum(np.multiply.outer(deviation, deviation), SMALLEST)
            correlations.append(np.abs(covariance / scale))
        return np.asarray(np.min(correlations, axis=0))

    def variance(self) -> NDArray[np.float64]:
        """Variance of each unit, summed over the readers, [size]."""
        return np.asarray(sum(np.diagonal(covariance) for _, covariance in self.covariances))

    def twins(self, similarity: float) -> dict[int, int]:
        """Pair units with more variable ones that are so alike: unit -> the one that stays.

        Args:
            similarity: smallest correlation. Units that never change are nobody's twin.
        """
        alike, variance = self.alike(), self.variance()
        kept: list[int] = []
        result: dict[int, int] = {}
        for unit in np.argsort(-variance, kind="stable").tolist():
            nearest = max(kept, key=lambda other: alike[unit, other], default=None)
            if nearest is not None and variance[unit] > 0 and alike[unit, nearest] >= similarity:
                result[unit] = nearest
            else:
                kept.append(unit)
        return result


def likeness(
    model: ir.Model,
    groups: Sequence[Group],
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    runtime: Runtime,
    seed: int = 0,
    progress: Progress[Any] = silent,
) -> dict[str, Likeness]:
    """Measure, in one walk through the model, how alike units are.

    Args:
        model: unchanged.
        groups: groups to look at.
        feeds: batches that fit into memory together.
        runtime: how to run the model.
        seed: of the rows that are drawn where there are very many.
        progress: progress callback.

    Returns:
        By name of the group. Groups are left out that nobody reads, that the body of a node
        reads, or where a reader sees more of some units than of others.
    """
    nodes = {value.name: node for node in model.graph for value in node.outputs}
    order = {node: number for number, node in enumerate(model.graph)}
    places = [
        (nodes[reading.consumer.node], group, reading)
        for group in groups
        for reading in group.readings
        if all(each.consumer.node in nodes for each in group.readings)
    ]
    places.sort(key=lambda place: order[place[0]])
    walk = Walk(model, feeds, runtime)
    covariances: dict[str, list[tuple[Reading, NDArray[np.float64]]]] = {}
    unequal: set[str] = set()
    for node, group, reading in progress(places, "comparing units", len(places)):
        walk.advance(node)
        rows = _rows(walk[reading.consumer.tensor], group, reading, seed)
        if rows is None:
            unequal.add(group.name)
            continue
        centred = rows - rows.mean(axis=0)
        covariances.setdefault(group.name, []).append((reading, centred.T @ centred / len(rows)))
    return {name: Likeness(each) for name, each in covariances.items() if name not in unequal}


def _rows(
    batches: Sequence[NDArray[Any]], group: Group, reading: Reading, seed: int
) -> NDArray[np.float64] | None:
    """Values of the units, [rows, size]; None when units have not equally many places."""
    units = reading.units.reshape(-1)
    places = np.argsort(units, kind="stable")[np.count_nonzero(units < 0) :]
    count, rest = divmod(len(places), group.size)
    if rest or not count or (np.bincount(units[places], minlength=group.size) != count).any():
        return None
    counts = [array.size // max(len(units), 1) for array in batches]
    parts = []
    for array, ids in zip(batches, drawn_rows(counts, _ROWS, [seed]), strict=True):
        last = np.moveaxis(array, reading.axes, range(-len(reading.axes), 0))
        values = last.reshape(-1, len(units))[ids][:, places].astype(np.float64)
        parts.append(values.reshape(-1, group.size, count).swapaxes(1, 2).reshape(-1, group.size))
    return np.concatenate(parts)


_OPTIONS = PruneOptions(criterion="l2", compensate="least-squares")


class MergeDuplicates(Pass, ir.passes.FunctionalPass):
    """Keep one of several units that do the same, by their weights or on the samples.

    Args:
        similarity: smallest correlation, of either sign, of units that are merged; used with
            samples
        samples: calibration samples; None merges only what is equal by its weights.
        runtime: how to run the model.
        seed: of randomly generated inputs, and of the rows that are drawn.
        progress: progress callback of long loops.

    Attributes:
        details: what went, by group.

    Raises:
        InputError: for a similarity that is not above 0 and at most 1.
    """

    def __init__(
        self,
        similarity: float = 0.99,
        samples: Samples | None = None,
        runtime: Runtime | None = None,
        seed: int = 0,
        progress: Progress[Any] = silent,
    ) -> None:
        super().__init__()
        if not 0 < similarity <= 1:
            raise InputError(f"similarity is above 0 and at most 1, not {similarity}")
        self.similarity = similarity
        self.samples = samples
        self.context = RunContext(samples, None, runtime or Runtime(), seed, progress)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge and certify.

        Raises:
            VerificationError: when the cut model does not compute what the masked one does.
        """
        exact = removed_exactly(model, self.context)
        current = model if exact is None else exact.model
        self.details = {"equal": {} if exact is None else exact.details["units"]}
        alike = self._merged_on_samples(current) if self.samples is not None else None
        result = alike or current
        if result is model:
            return ir.passes.PassResult(model.clone(), modified=False)
        return ir.passes.PassResult(result, modified=True)

    def _merged_on_samples(self, model: ir.Model) -> ir.Model | None:
        """A model without the twins there are on the samples; None for none."""
        method, context = Method.of(_OPTIONS), self.context
        analysis = analyse(model, context)
        with matrix_threads(context.runtime.threads):
            calibration = calibrate(analysis, method, context)
            assert calibration is not None
            groups = [group for group in analysis.groups if not len(group.constraints)]
            first = analysis.coupling.facts.first
            room = BatchBudget(model.graph, first, calibration.feeds, 1)
            held = calibration.feeds[: room.at_start]
            found = likeness(model, groups, held, context.runtime, context.seed, context.progress)
            full = EditableModel(model.clone(), analysis.coupling)
            classes: dict[str, tuple[int, ...]] = {}
            for group in groups:
                merged = found[group.name].twins(self.similarity) if group.name in found else {}
                if merged:
                    classes[group.name] = tuple(int(group.units[unit]) for unit in merged)
                    _move(full, found[group.name], merged)
            self.details["alike"] = {name: len(gone) for name, gone in classes.items()}
            if not classes:
                return None
            moved = replace(analysis, model=full.model, coupling=full.coupling, reference=model)
            cut = build(Workspace(moved, moved, calibration), Removal(classes), method, context)
        self.details["certificate"] = vars(cut.certificate)
        return cut.model


def _move(full: EditableModel, found: Likeness, merged: Mapping[int, int]) -> None:
    """Add the weights behind merged units to those behind their twins, as well as one factor can.

    The layers are re-fitted afterwards, regularised towards these weights.
    """
    for reading, covariance in found.covariances:
        if is_mergeable(full, reading):
            factors = [
                (unit, kept, float(covariance[unit, kept] / covariance[kept, kept]))
                for unit, kept in merged.items()
            ]
            move_weights(full, reading, factors)
