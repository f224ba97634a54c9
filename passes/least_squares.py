"""Least squares: layers whose input or output was cut are solved anew, from the front to the back.

Formula, for a layer y = W x + b, its input x~ in the pruned model, kept unknowns S, ridge lam::

    W', b' = argmin  E || t - W' x~_S - b' ||^2 + lam || W' - W_S ||^2

with t the output of the layer in the *original* model, corrected for what the other terms of a sum
behind it (a residual stream) have lost. `reconstruction/gram.py` has the solution.

Before (channels 3 and 17 of x are to go)::

    x~ [N,64,H,W] -> Conv(W [32,64,3,3], b [32]) -> y~        y~ differs from y

After::

    x~ [N,64,H,W] -> Conv(W' with zeros for 3, 17, b') -> y'   the closest to y there is

* Readers of removed units make up for them; a layer that makes units of which some go, or that
  merely reads what has changed before, is fitted to the original too.
* Behind a Relu or Clip only what gets through it counts: where the original lies on a flat part,
  the target is moved to what the layer gives anyway, as long as that lies on the flat part too
  (a majorisation; every iteration changes the right-hand side only).
* Original and pruned model walk in lockstep, so everything costs about two forward passes.
* Half of the batches fit, half judge: they choose the ridge, and weights that do not do better than
  those there were are thrown away. Then both halves fit.

Conditions: float weights that one node alone reads, of Conv, ConvTranspose, Gemm, MatMul, Einsum
(a stack of matrices excepted); unknowns up to `Settings.largest`. A layer without further linear
layers behind it (a classifier) is only touched when its own input was cut, and then with a strong
ridge: calibration samples are often training samples, on which outputs are over-confident.

Source: METHODS.md 2.1 to 2.4; QUALITY.md 2 and 4; Kwon et al. 2022; Frantar et al. 2022 (OBC).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxprune.model.constants import ConstantValues
from onnxprune.progress import silent
from onnxprune.reconstruction.gram import Gram, Regression, Solution, gram_of
from onnxprune.reconstruction.layers import LinearLayer, linear_layer
from onnxprune.reconstruction.targets import FlatParts, flat_parts, sum_behind
from onnxprune.reconstruction.walk import Walk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from onnxprune.coupling.cut import Cut
    from onnxprune.model.runtime import Runtime
    from onnxprune.progress import Progress
    from onnxprune.surgery.bias import FullSize

__all__ = ["LeastSquares", "Repair", "Settings"]


@dataclass(frozen=True)
class Settings:
    """How layers are solved.

    Attributes:
        rows: rows of each regression over all samples.
        iterations: rounds of moving targets on flat parts of an activation; 0 for none.
        ridges: strengths to choose from.
        classifier_ridges: the same for layers without linear layers behind them.
        largest: unknowns of a regression above which a layer keeps its weights.
        row_bytes: memory for the rows of one layer.
        refit: fit layers too whose own weights are not cut.
        both_halves: after judging, fit on all batches instead of on the first half only.
    """

    rows: int = 65_536
    iterations: int = 4
    ridges: tuple[float, ...] = (1e-3, 1e-1)
    classifier_ridges: tuple[float, ...] = (0.3,)
    largest: int = 6000
    row_bytes: int = 400_000_000
    refit: bool = True
    both_halves: bool = True


@dataclass(frozen=True)
class Repair:
    """What became of one layer.

    Attributes:
        node: name of the layer's output.
        before: error on the judging half with the weights there were, as a share of the target's
            variance.
        after: the same with the weights it has now.
        solved: whether the weights were replaced.
        reason: why not.
    """

    node: str
    before: float
    after: float
    solved: bool
    reason: str = ""


class LeastSquares(ir.passes.InPlacePass):
    """Solve the layers of a model under a cut anew.

    Args:
        target: the model at full size and its coupling; both are updated, what is removed is
            set to zero.
        original: the model as it was.
        cut: what is going to be removed.
        feeds: calibration batches, at least two.
        runtime: how to run both models.
        settings: how to solve.
        seed: of the rows that are drawn.
        progress: told about every layer.
    """

    def __init__(
        self,
        target: FullSize,
        original: ir.Model,
        cut: Cut,
        feeds: Sequence[Mapping[str, NDArray[Any]]],
        runtime: Runtime,
        settings: Settings | None = None,
        seed: int = 0,
        progress: Progress[Any] = silent,
    ) -> None:
        super().__init__()
        self.target = target
        self.original = original
        self.cut = cut
        self.feeds = feeds
        self.runtime = runtime
        self.settings = settings or Settings()
        self.seed = seed
        self.progress = progress
        self.repairs: list[Repair] = []
        self.outputs: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Solve the layers of the model that `target` holds.

        Raises:
            ValueError: when called with another model.
        """
        if model is not self.target.model:
            raise ValueError("LeastSquares changes the model its target was made with")
        self.target.mask(self.cut)
        self._reference = Walk(self.original, self.feeds, self.runtime)
        self._pruned = Walk(model, self.feeds, self.runtime)
        self._makers = {v.name: n for n in self.original.graph for v in n.outputs}
        layers = self._layers(model)
        last = _without_layers_behind(model.graph, [layer.node for layer in layers])
        self.repairs = []
        for number, layer in enumerate(self.progress(layers, "least squares", len(layers))):
            repair = self._repair(layer, number, layer.node in last)
            self.repairs += [repair] if repair is not None else []
        names = [value.name or "" for value in model.graph.outputs]
        for walk in (self._reference, self._pruned):
            walk.advance(None)
        self.outputs = tuple(  # type: ignore[assignment]
            [dict(zip(names, one, strict=True)) for one in zip(*(w[n] for n in names), strict=True)]
            for w in (self._reference, self._pruned)
        )
        return ir.passes.PassResult(model, any(one.solved for one in self.repairs))

    def _layers(self, model: ir.Model) -> list[LinearLayer]:
        labels = self.cut.coupling.tensors
        constants = {name for name, one in labels.items() if one.constant}
        shapes = dict(self.cut.coupling.facts.first.shapes)
        opset = model.opset_imports.get("", 1)
        found = (linear_layer(node, constants, opset, shapes) for node in model.graph)
        return [layer for layer in found if layer is not None and _own_float_weight(layer)]

    def _repair(self, layer: LinearLayer, number: int, is_last: bool) -> Repair | None:
        """Solve one layer; None when it has nothing to make up for."""
        self._pruned.advance(layer.node)
        if layer.data in self._makers:
            self._reference.advance(self._makers[layer.data], keep=[layer.data], past=True)
        kept = self._kept(layer)
        if kept is None:
            return None
        columns, rows = kept
        cut_here = not (columns.all() and rows.all())
        if not cut_here and (is_last or not self.settings.refit or self._unchanged(layer)):
            return None
        name = layer.node.outputs[0].name or ""
        if columns.shape[1] > self.settings.largest:
            reason = f"{columns.shape[1]} unknowns are more than {self.settings.largest}"
            return Repair(name, np.nan, np.nan, False, reason)
        problem = self._problem(layer, number, rows)
        if problem is None:
            return None
        ridges = self.settings.classifier_ridges if is_last else self.settings.ridges
        before, after, solution = problem.solve(columns, ridges, self.settings)
        if solution is not None:
            self._install(layer, solution, problem.start)
        return Repair(name, before, after, solution is not None)

    def _unchanged(self, layer: LinearLayer) -> bool:
        """Whether the layer reads exactly what it reads in the original."""
        pairs = zip(self._reference[layer.data], self._pruned[layer.data], strict=True)
        return all(np.array_equal(a, b) for a, b in pairs)

    def _kept(self, layer: LinearLayer) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
        """Unknowns [g, D] and outputs [g, O] that stay; None when a label does not say so."""
        output = layer.node.outputs[0].name or ""
        shapes = self.cut.coupling.facts.first.shapes
        weight = layer.node.inputs[layer.slot]
        assert weight is not None
        unknowns = np.ones(layer.matrix(np.zeros(shapes[weight.name or ""])).shape, bool)[:, 0]
        for one in self.cut.coupling.tensors[layer.data].layers:
            alive = self.cut.alive(one)
            if alive.all():
                continue
            spread = layer.unknowns(one, alive, shapes[layer.data])
            if spread is None:
                return None
            unknowns = unknowns & spread
        outputs = np.ones(shapes[output], bool)
        for one in self.cut.coupling.tensors[output].layers:
            alive = self.cut.alive(one)
            if alive.all():
                continue
            if not set(one.axes) <= set(layer.output_axes):
                return None
            order = np.argsort(one.axes)
            shape = [outputs.shape[a] if a in one.axes else 1 for a in range(outputs.ndim)]
            outputs = outputs & alive.transpose(order).reshape(shape)
        return unknowns, layer.outputs(outputs, np.zeros(1, np.int64))[0].astype(bool)

    def _problem(
        self, layer: LinearLayer, number: int, outputs: NDArray[np.bool_]
    ) -> _Problem | None:
        """Draw rows and targets, half of the batches to fit and half to judge."""
        node = layer.node
        data = self._pruned[layer.data]
        rank = len(self.cut.coupling.facts.first.shapes[node.outputs[0].name or ""])
        total = sum_behind(node, self._pruned, rank)
        if total.name not in self._makers:
            return None
        self._reference.advance(self._makers[total.name], keep=[total.name], past=True)
        wanted = self._reference[total.name]
        weight = node.inputs[layer.slot]
        assert weight is not None
        values = ConstantValues(self.target.model, self.target.coupling.facts.constants)
        matrix = layer.matrix(np.asarray(values[weight.name or ""]))
        counts = [layer.row_count(one.shape) for one in wanted]
        limit = self.settings.row_bytes // (
            4 * (matrix.shape[2] + 2 * matrix.shape[1]) * len(matrix)
        )
        share = min(1.0, min(self.settings.rows, limit) / sum(counts))
        halves: tuple[list[Any], list[Any]] = ([], [])
        for batch, (x, t, count) in enumerate(zip(data, wanted, counts, strict=True)):
            rng = np.random.default_rng([self.seed, number, batch])
            ids = np.sort(rng.choice(count, max(int(count * share), 1), replace=False))
            target = layer.outputs(t, ids)
            for other in total.others:
                target = target - layer.outputs(
                    np.broadcast_to(self._pruned[other][batch], t.shape), ids
                )
            halves[batch % 2].append((layer.rows(x, ids), target * outputs))
        if batch == 0:
            halves[1].extend(halves[0])
        fit, judge = (
            (np.concatenate([x for x, _ in half]), np.concatenate([t for _, t in half]))
            for half in halves
        )
        flat = None if total.others else flat_parts(total.last.outputs[0])
        start = Solution(matrix, self._present_bias(layer, total, matrix))
        return _Problem(start, fit, judge, flat)

    def _present_bias(
        self, layer: LinearLayer, total: Any, matrix: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """What the sum holds now besides W x and the other activations, on average: [g, O]."""
        now = self._pruned.preview(total.last, [total.name])[total.name]
        ids = np.unique(np.linspace(0, layer.row_count(now.shape) - 1, 512).astype(np.int64))
        rest = layer.outputs(now, ids).astype(np.float64)
        for other in total.others:
            rest -= layer.outputs(np.broadcast_to(self._pruned[other][0], now.shape), ids)
        x = layer.rows(self._pruned[layer.data][0], ids)
        return (rest - Solution(matrix, np.zeros(matrix.shape[:2])).predict(x)).mean(axis=0)

    def _install(self, layer: LinearLayer, solution: Solution, start: Solution) -> None:
        node = layer.node
        old = node.inputs[layer.slot]
        assert old is not None
        dtype = self.target.coupling.facts.constants.get(old.name or "")
        kind = old.dtype.numpy() if old.dtype is not None else np.dtype(np.float32)
        kind = dtype.dtype.numpy() if dtype is not None else kind
        self.target.set_weight(node, layer.slot, layer.tensor(solution.weight).astype(kind))
        delta = layer.bias_along_output(solution.bias - start.bias)
        if np.any(delta):
            self.target.add_to_output(node, delta, kind)


@dataclass
class _Problem:
    """One regression.

    Attributes:
        start: the weights and bias there are.
        fit: rows and targets to fit.
        judge: rows and targets to judge by.
        flat: flat parts of the activation behind.
    """

    start: Solution
    fit: tuple[NDArray[np.float32], NDArray[np.float32]]
    judge: tuple[NDArray[np.float32], NDArray[np.float32]]
    flat: FlatParts | None

    def solve(
        self, columns: NDArray[np.bool_], ridges: Sequence[float], settings: Settings
    ) -> tuple[float, float, Solution | None]:
        """Return the errors before and after, and the solution when it is better."""
        gram, check = gram_of(*self.fit), gram_of(*self.judge)
        scale = max(check.target_variance(), np.finfo(float).tiny)
        before = self._error(self.start, check) / scale
        found: list[tuple[float, float]] = []
        for ridge in ridges:
            solution = self._fitted(gram, self.fit, columns, ridge, settings.iterations)
            if solution is not None:
                found.append((self._error(solution, check) / scale, ridge))
        if not found or min(found)[0] >= before:
            return before, before, None
        after, ridge = min(found)
        whole, rows = gram, self.fit
        if settings.both_halves:
            whole = gram + check
            joined = (np.concatenate(pair) for pair in zip(self.fit, self.judge, strict=True))
            rows = tuple(joined)  # type: ignore[assignment]
        best = self._fitted(whole, rows, columns, ridge, settings.iterations)
        return (before, after, best) if best is not None else (before, before, None)

    def _error(self, solution: Solution, check: Gram) -> float:
        if self.flat is None:
            return check.error(solution)
        low, high = self.flat.low, self.flat.high
        rows, targets = self.judge
        lost = np.clip(solution.predict(rows), low, high) - np.clip(targets, low, high)
        return float(np.einsum("rgo,rgo->", lost, lost, dtype=np.float64) / len(rows))

    def _fitted(
        self,
        gram: Gram,
        data: tuple[NDArray[np.float32], NDArray[np.float32]],
        columns: NDArray[np.bool_],
        ridge: float,
        iterations: int,
    ) -> Solution | None:
        regression = Regression(gram, self.start.weight, columns, ridge)
        solution = regression.solve(gram)
        if self.flat is not None:
            rows, targets = data
            for _ in range(iterations):
                if solution is None:
                    break
                moved = _moved(targets, solution.predict(rows), self.flat)
                solution = regression.solve(gram.with_targets(rows, moved))
        return solution


def _moved(
    wanted: NDArray[np.float32], predicted: NDArray[np.float32], flat: FlatParts
) -> NDArray[np.float32]:
    """Targets on a flat part move to the prediction, as far as that lies on the flat part."""
    moved = np.where(wanted <= flat.low, np.minimum(predicted, flat.low), wanted)
    return np.where(wanted >= flat.high, np.maximum(predicted, flat.high), moved)


def _own_float_weight(layer: LinearLayer) -> bool:
    """Whether a layer alone reads its weight, and the weight is made of floats by movement."""
    value = layer.node.inputs[layer.slot]
    while value is not None:
        if len(value.uses()) != 1 or value.is_graph_output():
            return False
        producer = value.producer()
        if producer is None or producer.op_type == "Constant":
            return True
        if producer.op_type not in ("Transpose", "Identity", "Reshape", "Cast", "Unsqueeze"):
            return False
        value = producer.inputs[0]
    return False


def _without_layers_behind(graph: ir.Graph, layers: Sequence[ir.Node]) -> set[ir.Node]:
    """Layers whose output reaches no further layer."""
    mine = set(layers)
    feeds_layer: set[ir.Value] = set()
    last = set()
    for node in reversed(list(graph)):
        behind = any(value in feeds_layer for value in node.outputs)
        if node in mine and not behind:
            last.add(node)
        if behind or node in mine:
            feeds_layer.update(value for value in node.inputs if value is not None)
    return last
