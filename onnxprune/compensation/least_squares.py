"""Least squares: layers whose input or output was cut are re-fitted, from the front to the back.

Formula, for a layer y = W x + b, its input x~ in the pruned model, kept unknowns S, ridge lam::

    W', b' = argmin  E || t - W' x~_S - b' ||^2 + lam || W' - W_S ||^2

with t the output of the layer in the *original* model, corrected for what the other terms of a sum
behind it (a residual stream) have lost. `regression/gram.py` has the solution.

Before (channels 3 and 17 of x are to go)::

    x~ [N,64,H,W] -> Conv(W [32,64,3,3], b [32]) -> y~        y~ differs from y

After::

    x~ [N,64,H,W] -> Conv(W' with zeros for 3, 17, b') -> y'   the closest to y there is

* Readers of removed units make up for them; a layer that makes units of which some go, or that
  merely reads what has changed before, is fitted to the original too (`regression/problem.py`).
* Which units of a group go can be left open until its only reader is reached: it is then decided
  on what the pruned model really computes there, starting from the weights fitted to that.
* Original and pruned model walk in lockstep, so everything costs about two forward passes.
* Layers in the body of an If, Loop or Scan are fitted on the runs of that body. Which branch runs,
  and what states an iteration starts from, is taken from the original.
* Half of the batches fit, half judge: they choose the ridge, and weights that do not do better than
  the old ones are thrown away. Then both halves fit.
* Of a layer with one group only kept unknowns and outputs take part; rows are in proportion to the
  unknowns.

Conditions: float weights that one node alone reads, of Conv, ConvTranspose, Gemm, MatMul, Einsum
(a stack of matrices excepted); unknowns up to `Settings.largest`. A layer that gives what the model
returns (a classifier) is only touched when its own input was cut, and then with a strong ridge:
calibration samples are often training samples, on which outputs are over-confident.

Source: Kwon et al. 2022; Frantar et al. 2022 (OBC).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.batches import BatchBudget
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.sensitivity import OutputSensitivity
from onnxprune.calibration.walk import DeepWalk
from onnxprune.compensation.regression.elimination import Elimination, cheapest_first
from onnxprune.compensation.regression.gram import Gram, Regression, Solution
from onnxprune.compensation.regression.linear_layers import (
    Kept,
    LinearLayer,
    drawn_layer_rows,
    reading_unknowns,
    replaceable_layers,
)
from onnxprune.compensation.regression.problem import Half, HalfRows, Outcome, Problem
from onnxprune.compensation.regression.targets import Sum, flat_parts, sum_behind
from onnxprune.coupling.cut import Cut
from onnxprune.coupling.groups import Group
from onnxprune.model.bodies import nodes_within, places
from onnxprune.model.observe import ConstantValues
from onnxprune.surgery.editable_model import EditableModel

NO_RUN = "no sample runs the body it is in"
"""Reason of a layer of which nothing is seen."""

ROWS_DIFFER = "its rows differ in what is left of them"
"""Reason of a layer that reads a cut axis along its rows."""

NOTHING_LOST = "nothing is lost there"
"""Reason of a layer whose output is the original's without new weights."""

_ROUNDING = 1e-6
"""Error, as a share of the variance, that is left to rounding."""

_STEADY = 1e-12  # variance of an unknown that never varies, as a share of the largest
_BEHIND_SCORES = frozenset({"Add", "Softmax", "LogSoftmax", "Sigmoid", "Identity", "Flatten"})


@dataclass(frozen=True)
class Settings:
    """How layers are re-fitted.

    Attributes:
        rows: most rows of a regression over all samples.
        rows_per_unknown: most rows for each of its unknowns: with so many, more would change the
            solution by less than noise.
        least_rows: that are taken however few its unknowns are.
        iterations: rounds of moving targets on flat parts of an activation; 0 for none.
        ridges: strengths to choose from.
        last_ridges: the same for layers whose output the model returns.
        largest: unknowns of a regression above which a layer keeps its weights.
        row_bytes: memory for the rows of one layer.
        refit: fit layers too whose own weights are not cut.
        judged: hold half of the batches back to judge weights; otherwise all are fitted, and what
            comes out is taken as long as it fits better than what was there.
        both_halves: after judging, fit on all batches instead of on the first half only.
    """

    rows: int = 65_536
    iterations: int = 3
    ridges: tuple[float, ...] = (1e-3, 1e-1)
    last_ridges: tuple[float, ...] = (0.3,)
    largest: int = 6000
    row_bytes: int = 400_000_000
    refit: bool = True
    judged: bool = True
    both_halves: bool = True
    rows_per_unknown: int = 128
    least_rows: int = 32_768

    def rows_for(self, unknowns: int) -> int:
        """Rows of a regression over so many unknowns."""
        return min(self.rows, max(self.least_rows, self.rows_per_unknown * unknowns))


@dataclass(frozen=True)
class OpenChoice:
    """A group without constraints and with one reader, of which `count` units are removed.

    Attributes:
        group: the group.
        count: how many.
        first: units that go before all others.
    """

    group: Group
    count: int
    first: tuple[int, ...] = ()


@dataclass(frozen=True)
class LayerFit:
    """Least-squares fit of one layer.

    Attributes:
        node: name of the layer's output.
        before: error on the held-out half of the samples with bias folding alone, as a share of
            the variance of the layer's output.
        after: the same with the weights it has now.
        solved: whether the weights were re-fitted.
        reason: why not; empty where new weights did no better on held-out samples.
        cut: whether units go that it reads or makes; others merely read what has changed.
        macs: multiply-accumulates of the layer in the original, at the traced size.
    """

    node: str
    before: float
    after: float
    solved: bool
    reason: str = ""
    cut: bool = False
    macs: int = 0


class WeightHook(Protocol):
    """A last step on the weights of some layers; later layers are fitted to what it leaves."""

    def applies(self, layer: LinearLayer) -> bool:
        """Whether weights of this layer are changed; it is then re-fitted whatever it reads."""
        ...

    def adjusted(
        self, layer: LinearLayer, weight: NDArray[np.float64], gram: Gram
    ) -> NDArray[np.float64]:
        """Weights to use instead.

        Args:
            layer: where they are.
            weight: as fitted, [g, O, D].
            gram: sums over all rows.
        """
        ...


@dataclass(frozen=True)
class Refit:
    """Layers after least squares.

    Attributes:
        layers: the fit of every layer that was looked at.
        chosen: units removed of the groups that were left open, by group name.
        outputs: of the reference and of the pruned model, batch by batch.
    """

    layers: tuple[LayerFit, ...]
    chosen: Mapping[str, tuple[int, ...]]
    outputs: Sequence[tuple[dict[str, Any], dict[str, Any]]]

    @property
    def solved(self) -> set[str]:
        """Outputs of the layers whose weights were re-fitted."""
        return {layer.node for layer in self.layers if layer.solved}


@dataclass(frozen=True)
class _LayerTask:
    """The regression of a layer, of which only what is kept takes part where it has one group.

    Attributes:
        problem: the regression; its unknowns are apart from `middle`.
        unknowns: the unknowns it is over, bool [g, D].
        outputs: the outputs it gives, bool [g, O].
        middle: about the mean of the unknowns, [g, D].
        grams: sums over the rows of both halves where they are known.
    """

    problem: Problem
    unknowns: NDArray[np.bool_]
    outputs: NDArray[np.bool_]
    middle: NDArray[np.float64]
    grams: tuple[Gram, Gram] | None

    def of(self, kept: NDArray[np.bool_]) -> _LayerTask:
        """The same over some of the unknowns of a layer with one group, bool [1, D]."""
        if kept.all() or not kept.any():
            return self
        grams = self.grams and (self.grams[0].of(kept[0]), self.grams[1].of(kept[0]))
        problem = self.problem.of(kept[0])
        return replace(self, problem=problem, unknowns=kept, grams=grams)


class LeastSquares:
    """Re-fits the layers of a model under a cut.

    Args:
        target: the model at full size and its coupling; both are updated.
        reference: the model whose layers are aimed at.
        feeds: calibration batches.
        context: how to run both models, seed of the rows that are drawn, progress callback.
        settings: how to solve.
        weight_hook: what is done to fitted weights; None for nothing.
        sensitivity: how much each row counts; None for all alike.
    """

    def __init__(
        self,
        target: EditableModel,
        reference: ir.Model,
        feeds: Sequence[Mapping[str, NDArray[Any]]],
        context: RunContext,
        settings: Settings | None = None,
        weight_hook: WeightHook | None = None,
        sensitivity: OutputSensitivity | None = None,
    ) -> None:
        self.sensitivity = sensitivity or OutputSensitivity()
        self.target = target
        self.feeds = feeds
        self.context = context
        self.settings = settings or Settings()
        self.weight_hook = weight_hook
        self._budget = BatchBudget(reference.graph, target.coupling.facts.first, feeds, 2)
        held, closed = feeds[: self._budget.at_start], target.coupling.closed
        reference_walks = DeepWalk(reference, held, context.runtime, closed=closed)
        self._walks = DeepWalk(target.model, held, context.runtime, reference_walks, closed)
        self._pruned, self._reference = self._walks.leave(), reference_walks.outermost
        bodies = places(target.model.graph, closed)
        self._idle = {id(bodies[key].graph) for key in target.coupling.idle if key in bodies}
        self._makers = {v.name: n for n in nodes_within(reference.graph, closed) for v in n.outputs}

    def fit(
        self,
        removed: Sequence[int] = (),
        open_choices: Sequence[OpenChoice] = (),
        altered: Collection[str] = (),
    ) -> Refit:
        """Re-fit the layers of the target, once.

        Args:
            removed: units to remove; they are set to zero.
            open_choices: groups of which only the number of units is known.
            altered: sums that a term was taken out of: the layers that are left in them are
                re-fitted although they read what they did, and so is a classifier that is not cut.
        """
        self._removed, self._altered = list(removed), altered
        self._open = {choice.group.readings[0].consumer.node: choice for choice in open_choices}
        self._chosen: dict[str, tuple[int, ...]] = {}
        self._cut = Cut(self.target.coupling, self._removed)
        self.target.mask(self._cut)
        graph = self.target.model.graph
        layers = replaceable_layers(self.target.model, self.target.coupling)
        last = _give_scores(graph, [layer.node for layer in layers])
        fits = [
            self._fit(layer, number, layer.node in last)
            for number, layer in enumerate(
                self.context.progress(layers, "solving layers", len(layers))
            )
        ]
        self._enter(None)
        for walk in (self._reference, self._pruned):
            walk.advance(None)
        names = [value.name or "" for value in graph.outputs]
        pairs = zip(self._reference.values(names), self._pruned.values(names), strict=True)
        return Refit(tuple(fit for fit in fits if fit is not None), self._chosen, list(pairs))

    def _fit(self, layer: LinearLayer, number: int, is_last: bool) -> LayerFit | None:
        """Fit one layer; None when it has nothing to make up for."""
        name = layer.node.outputs[0].name or ""
        if id(layer.node.graph) in self._idle:
            return None
        self._enter(layer.node)
        if not len(self._pruned):
            return None if self._is_whole(layer) else LayerFit(name, np.nan, np.nan, False, NO_RUN)
        self._pruned.advance(layer.node)
        self._admit(layer)
        task: _LayerTask | None = None
        if name in self._open:
            task = self._task(layer, number)
            assert task is not None
            self._choose(layer, task, self._open[name])
        kept = layer.kept_unknowns(self._cut)
        if kept is None:
            return LayerFit(name, np.nan, np.nan, False, ROWS_DIFFER)
        whole = self._is_whole(layer)
        if whole and not self._hooked(layer):
            left_alone = is_last and not self._altered
            if left_alone or not self.settings.refit or self._unchanged(layer):
                return None
        if kept.shape[1] > self.settings.largest:
            reason = f"{kept.shape[1]} unknowns are more than {self.settings.largest}"
            return LayerFit(name, np.nan, np.nan, False, reason)
        if task is None:
            task = self._task(layer, number, kept)
        elif not self._hooked(layer):
            task = task.of(kept)
        if task is None:
            return LayerFit(name, np.nan, np.nan, False, "the original has no such tensor")
        outcome = self._outcome(layer, task, kept, is_last)
        if outcome.solved or not whole:
            self._install(layer, outcome)
        reason = NOTHING_LOST if outcome.before < _ROUNDING and not outcome.solved else ""
        return LayerFit(name, outcome.before, outcome.after, outcome.solved, reason)

    def _enter(self, node: ir.Node | None) -> None:
        """Go to the graph of a node with both walks; None for the main graph."""
        self._pruned = self._walks.leave() if node is None else self._walks.at(node)
        assert self._walks.guide is not None
        self._reference = self._walks.guide.innermost

    def _is_whole(self, layer: LinearLayer) -> bool:
        """Whether nothing of a layer is cut."""
        kept = layer.kept_unknowns(self._cut)
        return bool(kept is not None and kept.all() and layer.kept_outputs(self._cut).all())

    def _hooked(self, layer: LinearLayer) -> bool:
        return self.weight_hook is not None and self.weight_hook.applies(layer)

    def _outcome(
        self, layer: LinearLayer, task: _LayerTask, kept: NDArray[np.bool_], is_last: bool
    ) -> Outcome:
        """Weights and bias of the layer, adjusted by the hook where it applies."""
        ridges = self.settings.last_ridges if is_last else self.settings.ridges
        problem, grams = task.problem, task.grams
        both_halves = self.settings.both_halves
        if self.weight_hook is None or not self.weight_hook.applies(layer):
            left = kept[task.unknowns].reshape(len(kept), -1)
            outcome = problem.solve(left, ridges, both_halves=both_halves, grams=grams)
        else:
            grams = grams or (problem.fit.gram(), problem.judge.gram())
            outcome = problem.solve(kept, ridges, both_halves=both_halves, grams=grams)
            gram = grams[0] + grams[1]
            weight = self.weight_hook.adjusted(layer, outcome.solution.weight, gram)
            outcome = replace(outcome, solution=gram.with_bias(weight), solved=True)
        whole = outcome.solution.whole(task.unknowns, task.outputs, task.middle)
        return replace(outcome, solution=whole)

    def _admit(self, layer: LinearLayer) -> None:
        """Take along more batches where there is room, and few rows in those there are."""
        if self._pruned is not self._walks.outermost:
            return
        held = len(self._pruned)
        rows = sum(layer.rows_of(x.shape) for x in self._pruned[layer.data])
        unknowns = layer.shape[2]
        wanted = self.settings.rows_for(unknowns)
        count = self._budget.at(layer.node, held, rows, unknowns, wanted)
        for walk in (self._reference, self._pruned):
            walk.admit(self.feeds[held:count])

    def _choose(self, layer: LinearLayer, task: _LayerTask, choice: OpenChoice) -> None:
        """Decide which units of an open group go: those its reader misses least, here and now."""
        group, reading = choice.group, choice.group.readings[0]
        weight, grams = task.problem.weight, task.grams
        assert grams is not None
        gram = grams[0] + grams[1]
        every = np.ones((1, gram.xx.shape[1]), bool)
        regression = Regression(gram, weight, every, 1e-3)
        fitted = regression.solve(gram)
        weight = weight if fitted is None else fitted.weight
        # what never varies goes into the bias and costs nothing, whatever the ridge leaves of it
        spread = np.diagonal(gram.covariance(), axis1=1, axis2=2)
        weight = weight * (spread > _STEADY * spread.max(initial=0.0))[:, None]
        units = reading_unknowns(layer, reading)
        assert units is not None
        running = Elimination(weight[0], regression.inverses[0], units[0])
        order, _ = cheapest_first([running], [1.0], group.size, group.size - choice.count)
        first = [number for number, unit in enumerate(group.units) if unit in choice.first]
        others = [unit for step in order for unit in step if unit not in first]
        units_removed = sorted([*first, *others][: choice.count])
        self._chosen[group.name] = tuple(int(group.units[unit]) for unit in units_removed)
        self._removed += self._chosen[group.name]
        self._cut = Cut(self.target.coupling, self._removed)

    def _unchanged(self, layer: LinearLayer) -> bool:
        """Whether the layer reads, and is added to, exactly what it is in the original."""
        total = self._sum(layer)
        if total.name in self._altered:
            return False
        names = [layer.data, *total.others]
        for name in names:
            maker = self._makers.get(name)
            if maker is not None and maker.graph is self._reference.graph:
                self._reference.advance(maker, keep=names, past=True)
        known = all(name in self._reference for name in names)
        return known and all(
            np.array_equal(a, b)
            for name in names
            for a, b in zip(self._reference[name], self._pruned[name], strict=True)
        )

    def _sum(self, layer: LinearLayer) -> Sum:
        shapes = self.target.coupling.facts.first.shapes
        rank = len(layer.output_shape)
        return sum_behind(layer.node, self._pruned, rank, shapes, layer.output_axes)

    def _task(
        self, layer: LinearLayer, number: int, kept: NDArray[np.bool_] | None = None
    ) -> _LayerTask | None:
        """Draw rows and targets, half of the batches to fit and, where it is, half to judge.

        Args:
            layer: the layer.
            number: its number.
            kept: unknowns that stay; None where that is about to be decided from sums over all.
        """
        data = self._pruned[layer.data]
        total = self._sum(layer)
        if total.name not in self._makers:
            return None
        self._reference.advance(self._makers[total.name], keep=[total.name], past=True)
        wanted = self._reference[total.name]
        weight, outputs = self._weight(layer), layer.kept_outputs(self._cut)
        unknowns = np.ones((len(weight), weight.shape[2]), bool)
        reads = gives = None
        if len(weight) == 1 and not self._hooked(layer) and outputs.any():
            unknowns = unknowns if kept is None or not kept.any() else kept
            reads, gives = unknowns[0], outputs[0]
            weight = weight[:, gives][:, :, reads]
        counts = [layer.row_count(target.shape) for target in wanted]
        flat = flat_parts(total.last.outputs[0])
        copies = 3 if flat is None else 5  # targets, others, both ends of where targets are free
        size = weight[:, 0].size + copies * weight[:, :, 0].size
        limit = self.settings.row_bytes // (4 * size)
        seed, most = [self.context.seed, number], self.settings.rows_for(layer.shape[2])
        drawn = drawn_layer_rows(self.sensitivity, layer, counts, min(most, limit), seed)
        sizes = [len(ids) for ids, _ in drawn]
        # a single feed is judged on its own second half
        fitted = -(-sizes[0] // 2) if len(data) == 1 else sum(sizes[::2])
        fitted = fitted if self.settings.judged else sum(sizes)
        halves = HalfRows(fitted), HalfRows(sum(sizes) - fitted)
        middle: NDArray[np.float32] | None = None
        for batch, (x, t, (ids, counting)) in enumerate(zip(data, wanted, drawn, strict=True)):
            others = self._others(layer, total, batch, t.shape, ids, gives)
            target = layer.outputs(t, ids, gives)
            if gives is None:
                others, target = others * outputs, target * outputs
            target -= others
            rows = layer.rows(x, ids, reads)
            middle = rows.mean(axis=0) if middle is None else middle
            rows -= middle
            end = fitted if len(data) == 1 else len(ids)
            first = batch if self.settings.judged else 0
            for side, part in enumerate((slice(end), slice(end, None)), first):
                share = None if counting is None else counting[part]
                halves[side % 2].add(Half(rows[part], target[part], others[part], share))
        fit = halves[0].whole()
        judge = halves[1].whole() if halves[1].count else fit
        problem = Problem(weight, fit, judge, flat, self.settings.iterations)
        grams = (problem.fit.gram(), problem.judge.gram()) if kept is None else None
        shift = np.zeros(unknowns.shape)
        shift[unknowns] = 0.0 if middle is None else middle.ravel()
        outputs = np.ones_like(outputs) if gives is None else outputs
        return _LayerTask(problem, unknowns, outputs, shift, grams)

    def _others(
        self,
        layer: LinearLayer,
        total: Sum,
        batch: int,
        shape: tuple[int, ...],
        ids: NDArray[np.int64],
        kept: Kept = None,
    ) -> NDArray[np.float32]:
        """What the other terms of a sum give in some rows and kept outputs of the pruned model."""
        result = np.zeros((len(ids), 1, 1), np.float32)
        for other in total.others:
            value = np.broadcast_to(self._pruned[other][batch], shape)
            result = result + layer.outputs(value, ids, kept)
        return result

    def _weight(self, layer: LinearLayer) -> NDArray[np.float64]:
        values = ConstantValues(self.target.model, self.target.coupling.facts.constants)
        return layer.matrix(np.asarray(values[layer.weight]))

    def _install(self, layer: LinearLayer, outcome: Outcome) -> None:
        """Put the weights into the graph, and what is new of the bias into its bias."""
        node, solution = layer.node, outcome.solution
        present = self._present_bias(layer)
        outputs = layer.kept_outputs(self._cut)
        kind = self._pruned[layer.data][0].dtype
        self.target.set_weight(node, layer.slot, layer.tensor(solution.weight).astype(kind))
        delta = layer.bias_along_output((solution.bias - present) * outputs)
        if np.any(delta):
            self.target.add_to_output(node, delta, kind)

    def _present_bias(self, layer: LinearLayer) -> NDArray[np.float64]:
        """What is added to the product in every row of the pruned model, [groups, outputs]."""
        total = self._sum(layer)
        value, factor, along = layer.bias()
        added = [(factor, value, along)] if value is not None else []
        every = range(len(layer.output_shape))
        found = self._constant_bias(
            layer, [*added, *((1.0, constant, tuple(every)) for constant in total.constants)]
        )
        if found is not None:
            return found
        now = self._pruned.preview(total.last, [total.name])[total.name]
        ids = np.unique(np.linspace(0, layer.row_count(now.shape) - 1, 512).astype(np.int64))
        rest = layer.outputs(now, ids) - self._others(layer, total, 0, now.shape, ids)
        x = layer.rows(self._pruned[layer.data][0], ids)
        weight = self._weight(layer)
        linear = Solution(weight, np.zeros(weight.shape[:2])).predict(x)
        mean: NDArray[np.float64] = (rest.astype(np.float64) - linear).mean(axis=0)
        return mean

    def _constant_bias(
        self, layer: LinearLayer, terms: Sequence[tuple[float, ir.Value, tuple[int, ...]]]
    ) -> NDArray[np.float64] | None:
        """Sum of constants that are the same in every row; None where one of them is not.

        Args:
            layer: the layer.
            terms: factor, constant and the axes of the output that it lies along, of each.
        """
        values = ConstantValues(self.target.model, self.target.coupling.facts.constants)
        rank = len(layer.output_shape)
        whole = np.zeros(
            [n if a in layer.output_axes else 1 for a, n in enumerate(layer.output_shape)]
        )
        for factor, value, along in terms:
            if not value.name or value.name not in values:
                return None
            array = np.asarray(values[value.name], np.float64)
            if array.ndim > len(along):
                return None
            axes = along[len(along) - array.ndim :]
            extents = dict(zip(axes, array.shape, strict=True))
            if any(extent != 1 and a not in layer.output_axes for a, extent in extents.items()):
                return None
            whole = whole + factor * array.reshape([extents.get(axis, 1) for axis in range(rank)])
        return np.asarray(layer.outputs(whole, np.zeros(1, np.int64))[0], np.float64)


def _give_scores(graph: ir.Graph, layers: Sequence[ir.Node]) -> set[ir.Node]:
    """Layers whose output the model returns, at most as probabilities."""
    found = set()
    returned = set(graph.outputs)
    handed_out = {
        value: place.node.outputs[slot]
        for place in places(graph).values()
        for slot, value in enumerate(place.graph.outputs if place.node.op_type == "If" else ())
    }
    for node in layers:
        value = node.outputs[0]
        while value not in returned:
            if value in handed_out and not value.uses():
                value = handed_out[value]
                continue
            uses = list(value.uses())
            if len(uses) != 1 or uses[0].node.op_type not in _BEHIND_SCORES:
                break
            value = uses[0].node.outputs[0]
        else:
            found.add(node)
    return found
