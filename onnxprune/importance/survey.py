"""Covariances at the readers of every group, from one walk through the original.

A group is handed out as soon as the last of its readers is passed, and covariances that no other
group waits for are let go: memory is bounded by the groups that are open at one place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.batches import BatchBudget
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.sensitivity import OutputSensitivity
from onnxprune.calibration.walk import DeepWalk, Walk
from onnxprune.compensation.regression.elimination import Reader
from onnxprune.compensation.regression.gram import MomentSums
from onnxprune.compensation.regression.linear_layers import (
    LinearLayer,
    drawn_layer_rows,
    linear_layer,
    reading_unknowns,
)
from onnxprune.compensation.regression.targets import sum_behind
from onnxprune.coupling.analysis import Analysis
from onnxprune.coupling.groups import Group, Reading
from onnxprune.model.observe import ConstantValues


@dataclass(frozen=True)
class SurveySettings:
    """How covariances are taken.

    Attributes:
        rows: rows of each over all samples.
        rows_per_unknown: more rows, where there are more unknowns.
        largest: unknowns above which a reader gets none.
    """

    rows: int = 8192
    rows_per_unknown: int = 3
    largest: int = 6000


@dataclass(frozen=True)
class _Seen:
    """What was measured at a node.

    Attributes:
        layer: the node.
        covariance: of its unknowns, [g, D, D].
        variance: of its output, summed over outputs.
        stream: the same of the sum the output enters.
        columns: what each output counts, [g, O]; 1 on average.
        loss: increase of the divergence for each unit of error; None where it is not known.
    """

    layer: LinearLayer
    covariance: NDArray[np.float64]
    variance: float
    stream: float
    columns: NDArray[np.float64]
    loss: float | None


class Survey:
    """One walk.

    Args:
        analysis: the model and its coupling.
        feeds: calibration batches.
        context: runtime, seed of the rows that are drawn, progress callback.
        settings: how to measure.
        sensitivity: how much rows and outputs count; None for all alike.
    """

    def __init__(
        self,
        analysis: Analysis,
        feeds: Sequence[Mapping[str, NDArray[Any]]],
        context: RunContext,
        settings: SurveySettings | None = None,
        sensitivity: OutputSensitivity | None = None,
    ) -> None:
        self._sensitivity = sensitivity or OutputSensitivity()
        model, coupling = analysis.model, analysis.coupling
        self._coupling = coupling
        self._constants = ConstantValues(model, coupling.facts.constants)
        self._settings = settings or SurveySettings()
        self._context = context
        self._feeds = feeds
        self._budget = BatchBudget(model.graph, coupling.facts.first, feeds, 1)
        held = feeds[: self._budget.at_start]
        self._walks = DeepWalk(model, held, context.runtime, closed=coupling.closed)
        nodes = list(coupling.nodes(model.graph))
        self._nodes = {v.name: n for n in nodes for v in n.outputs if v.name}
        self._place = {id(node): place for place, node in enumerate(nodes)}
        self._opset = model.opset_imports.get("", 1)

    def groups(self, groups: Sequence[Group]) -> Iterator[tuple[int, dict[Reading, list[Reader]]]]:
        """Walk through the model.

        Yields:
            the number of a group, and the regressions of each of its readings: one for each group
            of a convolution, none where the reading is no plain regression.
        """
        nodes_of = [{r.consumer.node for r in group.readings} for group in groups]
        waiting = [set(names) for names in nodes_of]
        names = sorted(set().union(*nodes_of), key=lambda n: self._place[id(self._nodes[n])])
        seen: dict[str, _Seen | None] = {}
        for number, group in enumerate(groups):
            if not group.readings:
                yield number, {}
        for position, name in enumerate(self._context.progress(names, "ranking units", len(names))):
            seen[name] = self._measure(self._nodes[name], position)
            for number, left in enumerate(waiting):
                if name in left:
                    left.discard(name)
                    if not left:
                        yield number, self._regressions(groups[number], seen)
            needed = set().union(
                *(nodes for nodes, left in zip(nodes_of, waiting, strict=True) if left)
            )
            for done in seen.keys() - needed:
                del seen[done]

    def _regressions(
        self, group: Group, seen: Mapping[str, _Seen | None]
    ) -> dict[Reading, list[Reader]]:
        regressions: dict[Reading, list[Reader]] = {}
        for reading in group.readings:
            measured = seen[reading.consumer.node]
            units = reading_unknowns(measured.layer, reading) if measured is not None else None
            regressions[reading] = []
            if measured is None or units is None:
                continue
            matrix = measured.layer.matrix(np.asarray(self._constants[measured.layer.weight]))
            matrix = matrix * np.sqrt(measured.columns)[:, :, None]
            parts = zip(matrix, measured.covariance, units, strict=True)
            regressions[reading] = [
                Reader(m, c, u, measured.variance, measured.stream, measured.loss)
                for m, c, u in parts
            ]
        return regressions

    def _measure(self, node: ir.Node, position: int) -> _Seen | None:
        layer = linear_layer(node, self._coupling, self._opset)
        if layer is None:
            return None
        unknowns = layer.shape[2]
        if unknowns > self._settings.largest:
            return None
        walk = self._walks.at(node)
        if not len(walk):
            return None
        walk.advance(node)
        covariance = self._covariance(layer, unknowns, position, walk)
        columns, loss = self._column_weights(layer)
        matrix = layer.matrix(np.asarray(self._constants[layer.weight]))
        matrix = matrix * np.sqrt(columns)[:, :, None]
        spread = np.einsum("god,gde,goe->", matrix, covariance, matrix, optimize=True)
        shapes, rank = self._coupling.facts.first.shapes, len(layer.output_shape)
        total = sum_behind(node, walk, rank, shapes, layer.output_axes)
        sums = walk.preview(total.last, [total.name])[total.name].astype(np.float64)
        others = tuple(axis for axis in range(sums.ndim) if axis not in layer.output_axes)
        stream = sums.var(axis=others, keepdims=True)
        first = layer.outputs(stream, np.zeros(1, np.int64))[0]
        return _Seen(
            layer, covariance, float(spread), float((first * columns).sum()), columns, loss
        )

    def _column_weights(self, layer: LinearLayer) -> tuple[NDArray[np.float64], float | None]:
        """What each output of a layer counts, 1 on average; and their common factor."""
        known = self._sensitivity.columns.get(layer.node.outputs[0].name or "")
        columns = np.ones(layer.shape[:2])
        if known is None:
            return columns, None
        columns = layer.outputs(known, np.zeros(1, np.int64))[0].astype(np.float64)
        loss = float(columns.mean())
        return columns / loss, loss

    def _covariance(
        self, layer: LinearLayer, unknowns: int, position: int, walk: Walk
    ) -> NDArray[np.float64]:
        """Covariance of the unknowns over rows drawn from all batches."""
        wanted = max(self._settings.rows, self._settings.rows_per_unknown * unknowns)
        if walk is self._walks.outermost:
            held, rows = len(walk), sum(layer.rows_of(x.shape) for x in walk[layer.data])
            count = self._budget.at(layer.node, held, rows, unknowns, wanted)
            walk.admit(self._feeds[held:count])
        data = walk[layer.data]
        counts = [layer.rows_of(batch.shape) for batch in data]
        seed = [self._context.seed, position]
        drawn = drawn_layer_rows(self._sensitivity, layer, counts, wanted, seed)
        total = MomentSums()
        for batch, (ids, counting) in zip(data, drawn, strict=True):
            total.add(layer.rows(batch, ids), counting)
        return total.covariance()
