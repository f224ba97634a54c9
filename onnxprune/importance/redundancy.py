"""How much a unit does that no stronger unit does: nearly equal units go first, all but one.

    score_j = |out_j| * (1 - max_i cos(in_j, in_i))      over i with |out_i| > |out_j|

in_j are the weights that make unit j, over all tensors that do (the filters; biases and parameters
of normalisations, one number for each unit, are left out), and |out_j| is the norm of all weights
that read it. Of several units of one direction the one that is read the most keeps its score, so
that they are not removed together. The sign counts: behind a Relu, opposite units have nothing in
common. A unit made by zeros scores 0.

It only says which units others can stand in for; adding what they gave to those is the work of the
compensation (`--compensate least-squares`). Units that are equal exactly, or up to a factor, need
no criterion: `passes/remove_lossless.py`.

Source: Srinivas & Babu 2015, "Data-free parameter pruning for deep neural networks": the neuron to
remove is the one whose nearest neighbour is nearest, weighed by its outgoing weights; here with
directions for differences, as in Kim et al. 2020 (Neuron Merging).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.coupling.group_view import GroupView
from onnxprune.coupling.groups import unit_positions
from onnxprune.importance.criterion import ScoreCriterion

_CHUNK = 512


class Redundancy(ScoreCriterion):
    """Distance to the nearest stronger unit, times the norm of the weights that read the unit."""

    name = "redundancy"

    def score(self, group: GroupView, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return float [size]."""
        power = np.zeros(group.group.size)
        for reading in group.group.readings:
            power += group.per_unit(reading.units, np.array(group.reader_power(reading)))
        order = np.argsort(-power, kind="stable")
        tables = [rows[order] for rows in _made_by(group)]
        lengths = np.sqrt(sum((_norms(rows) for rows in tables), np.zeros(len(order))))
        likeness = np.zeros(len(order))
        for start in range(0, len(order), _CHUNK):
            stop = min(start + _CHUNK, len(order))
            products = np.zeros((stop - start, stop))
            for rows in tables:
                products += rows[start:stop] @ rows[:stop].T
            cosines = products / np.maximum(
                lengths[start:stop, np.newaxis] * lengths[:stop], 1e-300
            )
            stronger = np.arange(stop) < np.arange(start, stop)[:, np.newaxis]
            likeness[start:stop] = np.max(np.where(stronger, cosines, 0.0), axis=1)
        likeness[lengths == 0] = 1
        score = np.zeros(len(order))
        score[order] = np.sqrt(power[order]) * (1 - np.minimum(likeness, 1))
        return score


def _made_by(group: GroupView) -> Iterator[NDArray[Any]]:
    """Of every tensor that makes units, and reads none, the weights of each: [size, entries]."""
    read = {
        (reading.consumer.weight, reading.consumer.weight_axis)
        for reading in group.group.readings
        if reading.consumer.weight is not None
    }
    for owned in group.group.owned:
        array = group.constants[owned.tensor]
        if array.dtype.kind in "iub" or any((owned.tensor, axis) in read for axis in owned.axes):
            continue
        flat = np.moveaxis(array, owned.axes, range(len(owned.axes)))
        flat = flat.reshape(owned.units.size, -1)
        by_count = unit_positions(owned.units)
        most = max((where.shape[1] for _, where in by_count), default=0)
        if most * flat.shape[1] <= 1:
            continue
        rows = np.zeros((group.group.size, most * flat.shape[1]), np.float32)
        for units, where in by_count:
            mine = flat[where].reshape(len(units), -1)
            rows[units, : mine.shape[1]] = mine
        yield rows


def _norms(rows: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
