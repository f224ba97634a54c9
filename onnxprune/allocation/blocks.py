"""Residual blocks as units of allocation: which may be removed, in which order, what each saves.

A removed branch is replaced by its mean. Blocks go one after another, always the one that costs
least for what it saves; its cost is either

    influence = 1 - mean over positions of cos(x, x + f(x))

or the measured divergence of the outputs on held-out samples. With w the cost of the whole model,
r the fraction of it that is to remain and b the cost of the block, what a block saves is

    sum over the kinds of the target of  b / ((1 - r) w)

which is 1 for blocks that meet the target together. Latency is estimated from one profile of the
whole model, and measured where the estimate is near the target, or below.

Source: Men et al. 2024 (ShortGPT) for the influence of a block.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, compress
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.cost.latency.measure import measure_pair
from onnxprune.cost.latency.probe import profile_model
from onnxprune.cost.macs import node_macs
from onnxprune.cost.memory import stored_parameters
from onnxprune.coupling.analysis import is_selected, observe_model
from onnxprune.coupling.trace import trace
from onnxprune.errors import InputError
from onnxprune.model.bodies import node_id
from onnxprune.model.execution import Execution
from onnxprune.model.inputs import input_specs, resized_batch
from onnxprune.model.observe import Facts
from onnxprune.surgery.blocks.fused_sums import separated_sums
from onnxprune.surgery.blocks.residual import (
    ResidualBlock,
    fold_added_constants,
    remove_block,
    residual_blocks,
)
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.verification.divergence import DivergenceEvaluator

TARGET_KINDS = ("macs", "params", "latency")
"""Costs that removing blocks can be asked to lower."""

_TRIED = 6
"""Blocks tried for each place of the order by divergence: those of least influence."""

_NEAR = 1.15
"""Latency is measured where its estimate exceeds the target by no more than this factor."""

_LEAST_SAVING = 1e-6
_LEAST_COST = 1e-9
_TINY = 1e-30


@dataclass(frozen=True)
class BranchStatistics:
    """What one branch computes on samples.

    Attributes:
        mean: of each channel over samples and positions, float64 [channels].
        influence: 1 - cosine between the stream before and after the addition, over channels.
    """

    mean: NDArray[np.float64]
    influence: float


@dataclass(frozen=True)
class BlockCandidates:
    """Residual blocks of a model that may be removed.

    Attributes:
        model: the original, its residual additions nodes of their own.
        facts: its shapes.
        context: of the run.
        blocks: in graph order.
        statistics: of the branches, by name of the block; empty until they are measured.
    """

    model: ir.Model
    facts: Facts
    context: RunContext
    blocks: Sequence[ResidualBlock]
    statistics: Mapping[str, BranchStatistics] = field(default_factory=dict)

    def named(self, names: Iterable[str]) -> BlockCandidates:
        """Only the blocks of these names, in this order.

        Raises:
            InputError: when the model has no such block.
        """
        known = {block.name: block for block in self.blocks}
        blocks = []
        for name in names:
            if name not in known:
                raise InputError(f"the model has no residual block {name!r} that can be removed")
            blocks.append(known[name])
        return replace(self, blocks=blocks)

    def selected(self, include: Sequence[str], exclude: Sequence[str]) -> BlockCandidates:
        """Only the blocks of which any name is included, and none is excluded."""
        names = {block.name: {block.name} for block in self.blocks}
        for node in self.model.graph:
            weights = (value for value in node.inputs if value and value.is_initializer())
            parts = {node.name or "", *(value.name or "" for value in (*weights, *node.outputs))}
            for block in self.blocks:
                if node_id(node) in block.nodes:
                    names[block.name] |= parts
        selected = (is_selected(names[block.name], include, exclude) for block in self.blocks)
        return replace(self, blocks=list(compress(self.blocks, selected)))

    def measured(self, feeds: Iterable[Mapping[str, NDArray[Any]]]) -> BlockCandidates:
        """The same with the statistics of their branches on some batches, at least one."""
        return replace(self, statistics=_branch_statistics(self, feeds))

    def without(self, removed: Sequence[ResidualBlock]) -> ir.Model:
        """A copy of the model in which the mean of some branches, 0 if unknown, replaces them."""
        result = self.model.clone()
        for block in removed:
            channels = self.facts.first.shapes[block.name][block.axis]
            known = self.statistics.get(block.name)
            remove_block(result.graph, block, np.zeros(channels) if known is None else known.mean)
        return result

    def folded(self, removed: Sequence[ResidualBlock]) -> ir.Model:
        """The same with the means in the bias of the layer before, wherever that is possible."""
        smaller = self.without(removed)
        target = EditableModel(smaller, trace(smaller, observe_model(smaller, self.context)))
        fold_added_constants(target, [block.name for block in removed])
        return target.model

    def by_influence(self, savings: Mapping[str, float]) -> Iterator[tuple[ResidualBlock, ...]]:
        """Sets of blocks to remove, each one block larger: in the order of influence per saving.

        Args:
            savings: of each block, by name.
        """
        return accumulate((block,) for block in self._ranked(savings))

    def by_divergence(
        self, savings: Mapping[str, float], evaluator: DivergenceEvaluator
    ) -> Iterator[tuple[ResidualBlock, ...]]:
        """Sets of blocks to remove, each one block larger: the one that adds least divergence.

        Args:
            savings: of each block, by name.
            evaluator: of the original; each block is tried on its samples.
        """
        ranked = self._ranked(savings)
        removed: tuple[ResidualBlock, ...] = ()
        divergence = 0.0
        while len(removed) < len(ranked):
            tried = [block for block in ranked if block not in removed][:_TRIED]
            divergences = [
                evaluator.divergence(self.without([*removed, block]))
                for block in self.context.progress(tried, "trying blocks", len(tried))
            ]
            added = np.maximum(np.array(divergences) - divergence, 0) + _LEAST_COST
            best = int(np.argmin(added / [savings[block.name] for block in tried]))
            divergence = divergences[best]
            removed = (*removed, tried[best])
            yield removed

    def _ranked(self, savings: Mapping[str, float]) -> list[ResidualBlock]:
        def cost(block: ResidualBlock) -> float:
            return self.statistics[block.name].influence / savings[block.name]

        return sorted(self.blocks, key=cost)


def block_candidates(
    model: ir.Model, context: RunContext, facts: Facts | None = None
) -> BlockCandidates:
    """Find the residual blocks of a model.

    Args:
        model: unchanged.
        context: runtime, seed, and samples for the shapes.
        facts: shapes of the model, where they are known.
    """
    separated = separated_sums(model)
    if facts is None or separated is not model:
        facts = observe_model(separated, context)
    return BlockCandidates(separated, facts, context, residual_blocks(separated.graph, facts))


@dataclass(frozen=True)
class BlockTarget:
    """What is to remain of a model, and what its nodes cost.

    Attributes:
        candidates: the model and its blocks.
        shares: kind -> fraction of the model that is to remain: macs, params, latency.
        parameters: of the model.
        macs: by node id.
        seconds: by node id, from a profile; empty unless latency is a target.
    """

    candidates: BlockCandidates
    shares: Mapping[str, float]
    parameters: int
    macs: Mapping[str, float]
    seconds: Mapping[str, float]

    def savings(self) -> dict[str, float]:
        """The part that each block has in what must be saved, by name."""
        whole = {
            "macs": sum(self.macs.values()),
            "params": float(self.parameters),
            "latency": sum(self.seconds.values()),
        }
        blocks = self.candidates.blocks
        seconds = {
            block.name: sum(self.seconds.get(node, 0.0) for node in block.nodes) for block in blocks
        }
        return block_savings(blocks, self.shares, whole, seconds)

    def remaining(self, removed: Sequence[ResidualBlock]) -> dict[str, float]:
        """Fractions that remain, by kind; latency is measured where all may be met, else estimated.

        Args:
            removed: the blocks that are removed.
        """
        candidates = self.candidates
        smaller = candidates.without(removed)
        nodes = {node for block in removed for node in block.nodes}
        costs = {
            "macs": _remaining_share(self.macs, nodes),
            "params": stored_parameters(smaller.graph) / max(self.parameters, 1),
            "latency": _remaining_share(self.seconds, nodes),
        }
        shares = {kind: costs[kind] for kind in self.shares}
        if "latency" in shares and self.is_met({**shares, "latency": shares["latency"] / _NEAR}):
            runtime, specs = candidates.context.runtime, input_specs(candidates.model)
            feed = resized_batch(specs, candidates.facts.first.feed, runtime.batch)
            shares["latency"] = measure_pair(candidates.model, smaller, feed, runtime).ratio
        return shares

    def is_met(self, shares: Mapping[str, float]) -> bool:
        """Whether the fractions that remain are small enough."""
        return all(shares[kind] <= limit for kind, limit in self.shares.items())

    def counts_hold(self, result: ir.Model) -> bool:
        """Whether a result is within the target of parameters: a repair may have added biases."""
        limit = self.shares.get("params")
        return limit is None or stored_parameters(result.graph) <= limit * self.parameters


def block_target(candidates: BlockCandidates, shares: Mapping[str, float]) -> BlockTarget:
    """Count, and for a latency target time, the nodes of a model.

    Args:
        candidates: the model and its blocks.
        shares: kind -> fraction that is to remain.
    """
    graph, first = candidates.model.graph, candidates.facts.first
    names = [node_id(node) for node in graph]
    macs = (float(node_macs(node, first.shapes.__getitem__)) for node in graph)
    seconds: dict[str, float] = {}
    if "latency" in shares:
        runtime = candidates.context.runtime
        profile = profile_model(candidates.model, first.feed, first.shapes, runtime)
        times = (kernel + profile.call if kernel else 0.0 for kernel in profile.kernels)
        seconds = dict(zip(names, times, strict=True))
    macs_by_node = dict(zip(names, macs, strict=True))
    return BlockTarget(candidates, shares, stored_parameters(graph), macs_by_node, seconds)


def block_savings(
    blocks: Sequence[ResidualBlock],
    shares: Mapping[str, float],
    whole: Mapping[str, float],
    seconds: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The part that each block has in what must be saved, by name; 1 for all if nothing must be.

    Args:
        blocks: the blocks.
        shares: kind -> fraction that is to remain; kinds that are not counted by node, and latency
            without `seconds`, count as MACs.
        whole: kind -> cost of the whole model.
        seconds: by name of the block.
    """
    savings = dict.fromkeys((block.name for block in blocks), 0.0)
    for kind, share in shares.items():
        counted = "params" if kind in ("params", "size") else "macs"
        costs = {
            block.name: float(block.parameters if counted == "params" else block.macs)
            for block in blocks
        }
        if kind == "latency" and seconds:
            counted, costs = kind, dict(seconds)
        excess = (1 - share) * whole.get(counted, 0.0)
        if excess > 0:
            savings = {name: saving + costs[name] / excess for name, saving in savings.items()}
    if not any(savings.values()):
        return dict.fromkeys(savings, 1.0)
    return {name: max(saving, _LEAST_SAVING) for name, saving in savings.items()}


def _remaining_share(costs: Mapping[str, float], removed: Collection[str]) -> float:
    """The share of a cost that is not that of some nodes."""
    total = sum(costs.values())
    rest = sum(cost for name, cost in costs.items() if name not in removed)
    return rest / total if total else 0.0


def _branch_statistics(
    candidates: BlockCandidates, feeds: Iterable[Mapping[str, NDArray[Any]]]
) -> dict[str, BranchStatistics]:
    """Run a model on batches, and collect statistics of its branches by name of the block."""
    blocks = candidates.blocks
    names = {name for block in blocks for name in (block.stream, block.branch, block.name)}
    watched = candidates.model.clone()
    returned = {value.name for value in watched.graph.outputs}
    for node in watched.graph:
        added = [v for v in node.outputs if v.name in names and v.name not in returned]
        watched.graph.outputs.extend(added)
    execution = Execution(watched, candidates.context.runtime, arena=False)
    sums = {block.name: np.zeros(0) for block in blocks}
    turned = dict.fromkeys(sums, 0.0)
    rows = dict.fromkeys(sums, 0)
    for feed in feeds:
        outputs = execution.run(feed) | dict(feed)
        for block in blocks:
            name, axis = block.name, block.axis
            before, branch, after = (
                np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
                for array in (outputs[key] for key in (block.stream, block.branch, name))
            )
            total = branch.sum(axis=0, dtype=np.float64)
            sums[name] = total if not rows[name] else sums[name] + total
            turned[name] += float((1 - _cosines(before, after)).sum())
            rows[name] += len(branch)
    return {
        name: BranchStatistics(total / rows[name], turned[name] / rows[name])
        for name, total in sums.items()
    }


def _cosines(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine of each row of two arrays [rows, channels]; 1 for two rows of zeros."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    dot = np.einsum("rc,rc->r", a, b)
    scale = np.sqrt(np.einsum("rc,rc->r", a, a) * np.einsum("rc,rc->r", b, b))
    return np.where(scale > _TINY, dot / np.maximum(scale, _TINY), 1.0)
