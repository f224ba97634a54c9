"""Order of removal and error curve of every group, from one walk through the original.

At each reader the covariance of its unknowns is taken; as soon as all readers of a group are
passed, its units are eliminated on paper (`elimination.py`) and the covariances are let go.
Where a reader is no plain regression (a recurrent or quantised node, a weight too wide) its error
is that of replacing the unit by its mean, var(x_j) ||W_j||^2; where two activations are multiplied
(queries and keys) it is the part of the product that the unit makes, E[q_j^2] E[k_j^2].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.allocate.order import RemovalStep, removal_order
from onnxprune.progress import silent
from onnxprune.reconstruction.elimination import Elimination, Reader, eliminate
from onnxprune.reconstruction.find import linear_layer, reading_unknowns
from onnxprune.reconstruction.targets import sum_behind
from onnxprune.reconstruction.walk import Walk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from onnxprune.coupling.groups import Reading
    from onnxprune.coupling.trace import Coupling
    from onnxprune.importance.base import GroupView
    from onnxprune.model.constants import ConstantValues
    from onnxprune.model.runtime import Runtime
    from onnxprune.progress import Progress
    from onnxprune.reconstruction.layers import LinearLayer

__all__ = ["Curve", "CurveSettings", "error_curves"]


@dataclass(frozen=True)
class CurveSettings:
    """How curves are measured.

    Attributes:
        rows: rows of each covariance over all samples.
        ridge: share of the mean diagonal added to it.
        largest: unknowns above which a reader is judged without its covariance.
    """

    rows: int = 8192
    ridge: float = 1e-3
    largest: int = 6000


@dataclass(frozen=True)
class Curve:
    """What a group costs, step by step.

    Attributes:
        steps: the order of removal; the score of a step is its error relative to the outputs.
        errors: error of each reader after each step, float [steps, readers].
        variance: variance of each reader's output.
        stream: variance of the sum that output enters.
    """

    steps: tuple[RemovalStep, ...]
    errors: NDArray[np.float64]
    variance: NDArray[np.float64]
    stream: NDArray[np.float64]

    def scalings(self) -> dict[str, NDArray[np.float64]]:
        """Error after each step, looked at in several ways; see `allocate.candidates`."""
        raw = self.errors.sum(axis=1)
        stream = (self.errors / np.maximum(self.stream, 1e-30)).sum(axis=1)
        return {
            "balanced": np.sqrt(raw * stream),
            "raw": raw,
            "root": np.sqrt(raw),
            "towards raw": raw**0.75 * stream**0.25,
            "towards stream": raw**0.25 * stream**0.75,
            "stream": stream,
        }


def error_curves(
    model: ir.Model,
    coupling: Coupling,
    views: Sequence[GroupView],
    constants: ConstantValues,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    runtime: Runtime,
    goal: float | None = None,
    settings: CurveSettings | None = None,
    seed: int = 0,
    progress: Progress[Any] = silent,
) -> list[Curve]:
    """Measure the curves of groups.

    Args:
        model: the original.
        coupling: its labels.
        views: the groups, with the moments of their readings.
        constants: values of its weights.
        feeds: calibration batches.
        runtime: how to run it.
        goal: fraction of every axis at which the order of constrained groups ends.
        settings: how to measure.
        seed: of the rows that are drawn.
        progress: told about every reader.
    """
    survey = _Survey(model, coupling, constants, feeds, runtime, settings or CurveSettings(), seed)
    return survey.curves(views, goal, progress)


class _Survey:
    def __init__(
        self,
        model: ir.Model,
        coupling: Coupling,
        constants: ConstantValues,
        feeds: Sequence[Mapping[str, NDArray[Any]]],
        runtime: Runtime,
        settings: CurveSettings,
        seed: int,
    ) -> None:
        self.coupling = coupling
        self.constants = constants
        self.settings = settings
        self.seed = seed
        self._walk = Walk(model, feeds, runtime)
        self._nodes = {v.name: n for n in model.graph for v in n.outputs if v.name}
        self._place = {id(node): place for place, node in enumerate(model.graph)}
        self._opset = model.opset_imports.get("", 1)
        self._taken: dict[str, tuple[LinearLayer, NDArray[np.float64], float, float] | None] = {}

    def curves(
        self, views: Sequence[GroupView], goal: float | None, progress: Progress[Any]
    ) -> list[Curve]:
        """Walk from reader to reader; finish a group behind its last one."""
        waiting = {
            number: {r.consumer.node for r in v.group.readings} for number, v in enumerate(views)
        }
        wanted = {name for names in waiting.values() for name in names}
        ordered = sorted(wanted, key=lambda name: self._place[id(self._nodes[name])])
        result: dict[int, Curve] = {}
        for position, name in enumerate(progress(ordered, "error curves", len(ordered))):
            self._taken[name] = self._take(self._nodes[name], position)
            for number in [n for n, names in waiting.items() if name in names]:
                waiting[number].discard(name)
                if not waiting[number]:
                    result[number] = self._curve(views[number], goal)
            left = {one for names in waiting.values() for one in names}
            readers = {
                one
                for n, v in enumerate(views)
                if n not in result
                for one in (r.consumer.node for r in v.group.readings)
            }
            for done in self._taken.keys() - left - readers:
                del self._taken[done]
        for number, view in enumerate(views):
            if number not in result:
                result[number] = self._curve(view, goal)
        return [result[number] for number in range(len(views))]

    def _take(
        self, node: ir.Node, position: int
    ) -> tuple[LinearLayer, NDArray[np.float64], float, float] | None:
        """Covariance of a reader's unknowns, variance of its output and of the sum behind."""
        layer = linear_layer(node, self.coupling, self._opset)
        if layer is None:
            return None
        self._walk.advance(node)
        data = self._walk[layer.data]
        matrix = layer.matrix(np.zeros(layer.weight_shape, np.bool_))
        if matrix.shape[2] > self.settings.largest:
            return None
        total = sum_behind(node, self._walk, len(layer.output_shape))
        first = self._walk.preview(total.last, [total.name])[total.name].astype(np.float64)
        axes = tuple(a for a in range(first.ndim) if a not in layer.output_axes)
        stream = float(first.var(axis=axes).sum())
        per_sample = layer.row_count(layer.output_shape) / max(layer.output_shape[0], 1)
        counts = [max(int(per_sample * len(x)), 1) for x in data]
        share = min(1.0, max(self.settings.rows, 3 * matrix.shape[2]) / sum(counts))
        square, total_x, count = 0.0, 0.0, 0
        for batch, (x, most) in enumerate(zip(data, counts, strict=True)):
            rng = np.random.default_rng([self.seed, position, batch])
            ids = np.sort(rng.choice(most, max(int(most * share), 1), replace=False))
            rows = layer.rows(x, ids).transpose(1, 2, 0)
            square = square + (rows @ rows.swapaxes(1, 2)).astype(np.float64)
            total_x = total_x + rows.sum(axis=2, dtype=np.float64)
            count += len(ids)
        mean = np.asarray(total_x) / count
        covariance = np.asarray(square) / count - mean[:, :, None] * mean[:, None]
        matrix = layer.matrix(np.asarray(self.constants[layer.weight]))
        variance = float(np.einsum("god,gde,goe->", matrix, covariance, matrix, optimize=True))
        return layer, covariance, variance, stream

    def _curve(self, view: GroupView, goal: float | None) -> Curve:
        group = view.group
        readers = [one for reading in group.readings for one in self._readers(reading)]
        plain = self._plain_errors(view)
        size, free = group.size, not len(group.constraints) and len(group.axes) == 1
        ridge = self.settings.ridge
        if free and readers and not plain:
            least = 1 if group.closed[0] else 0
            order, rises = eliminate(readers, size, least, ridge)
            gone = np.cumsum([len(units) for units in order])
            classes = [tuple(int(group.units[u]) for u in units) for units in order]
            fractions = (gone / size).tolist()
        else:
            running = [Elimination(reader, ridge) for reader in readers]
            scores = np.zeros(size)
            for reader, one in zip(readers, running, strict=True):
                scores += one.scores(size) / max(reader.variance, 1e-30)
            for errors, variance, _ in plain:
                scores += errors / max(variance, 1e-30)
            steps = removal_order(group, scores, goal)
            classes = [step.classes for step in steps]
            fractions = [step.fraction for step in steps]
            number = {int(one): unit for unit, one in enumerate(group.units)}
            units_of = [[number[c] for c in one if c in number] for one in classes]
            rises = np.array(
                [
                    [one.remove(units) for one in running]
                    + [float(errors[units].sum()) for errors, _, _ in plain]
                    for units in units_of
                ]
            ).reshape(len(steps), len(readers) + len(plain))
        variance = np.array([r.variance for r in readers] + [v for _, v, _ in plain])
        stream = np.array([r.stream for r in readers] + [s for _, _, s in plain])
        relative = (rises / np.maximum(variance, 1e-30)).sum(axis=1)
        ends = zip(classes, fractions, relative.tolist(), strict=True)
        return Curve(
            tuple(RemovalStep(tuple(c), f, s) for c, f, s in ends),
            np.cumsum(rises, axis=0),
            variance,
            stream,
        )

    def _readers(self, reading: Reading) -> list[Reader]:
        """Regressions of a reading: one for each group of a convolution."""
        taken = self._taken.get(reading.consumer.node)
        if taken is None:
            return []
        layer, covariance, variance, stream = taken
        units = reading_unknowns(layer, reading)
        if units is None:
            return []
        matrix = layer.matrix(np.asarray(self.constants[layer.weight]))
        parts = zip(matrix, covariance, units, strict=True)
        share = 1 / len(matrix)
        return [Reader(m, c, u, variance * share, stream * share) for m, c, u in parts]

    def _plain_errors(self, view: GroupView) -> list[tuple[NDArray[np.float64], float, float]]:
        """Errors of readings without a regression: per unit, and their sum as the variance."""
        result = []
        products: dict[str, list[Reading]] = {}
        for reading in view.group.readings:
            if self._readers(reading):
                continue
            if reading.consumer.weight is None:
                products.setdefault(reading.consumer.node, []).append(reading)
                continue
            moments = view.moments.get(reading)
            if moments is not None:
                errors = view.per_unit(reading.units, moments.variance * view.reader_power(reading))
                result.append((errors, float(errors.sum()), float(errors.sum())))
        for readings in products.values():
            errors = np.ones(view.group.size)
            for reading in readings:
                moments = view.moments.get(reading)
                if moments is not None:
                    errors = errors * view.per_unit(reading.units, moments.mean_square)
                else:
                    errors = errors * view.per_unit(reading.units, np.ones(reading.units.shape))
            result.append((errors, float(errors.sum()), float(errors.sum())))
        return result
