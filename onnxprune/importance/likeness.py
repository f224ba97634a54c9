"""How alike the units of a group are on samples: correlations at every place that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.batches import drawn_rows
from onnxprune.calibration.walk import Walk
from onnxprune.compensation.regression.elimination import SMALLEST
from onnxprune.coupling.groups import Group, Reading
from onnxprune.model.runtime import Runtime
from onnxprune.progress import Progress, silent

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
