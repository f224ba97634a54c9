"""How many residual blocks go before widths are cut: one more level of the allocation.

    n* = argmin over n of  D(n)

D(n) is how far the outputs diverge, on samples that were not fitted, when n blocks are replaced by
their mean, what is left of the budget is met by widths, and layers are solved anew. Blocks go in
greedy order, the one that costs least for what it saves first (`allocation/blocks/choice.py`); two
levels in a row that are no better end the search.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.allocation.blocks.branch_statistics import BranchStatistics, branch_statistics
from onnxprune.allocation.blocks.choice import Candidates, by_divergence
from onnxprune.allocation.blocks.target import saved_shares
from onnxprune.calibration.batches import fitted_part, held_out_part
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.moments import BATCH
from onnxprune.calibration.streams import Samples
from onnxprune.coupling.analysis import Analysis, analyse, observe_model
from onnxprune.coupling.step import node_id
from onnxprune.errors import InputError, NothingPrunable
from onnxprune.model.observe import Facts
from onnxprune.options import PruneOptions
from onnxprune.progress import Progress, silent
from onnxprune.pruning.prepare import Ready, prepare_run
from onnxprune.pruning.search import Chooser
from onnxprune.surgery.blocks.fused_sums import separated_sums
from onnxprune.surgery.blocks.residual import ResidualBlock, residual_blocks
from onnxprune.verification.divergence import DivergenceEvaluator

_PATIENCE = 2
_TRIED = 6


@dataclass(frozen=True)
class Depth:
    """The level that was chosen.

    Attributes:
        ready: the model without some blocks, for the same target; the whole one when none is to go.
        divergences: number of blocks that are gone -> divergence of the outputs on samples that
            were not fitted, infinite where the target was out of reach.
    """

    ready: Ready
    divergences: Mapping[int, float]


def best_depth(ready: Ready, progress: Progress[Any] = silent) -> Depth:
    """Take out the blocks whose absence leaves more to the rest than it costs.

    Args:
        ready: the whole model, its target and least squares as compensation.
        progress: told about long loops.
    """
    best, scaling, least = ready, *_diverging(ready, None, progress)
    divergences = {0: least}
    gone: list[str] = []
    worse = 0
    for block in _cheapest_first(ready, progress):
        gone.append(block.name)
        fewer = _without(ready, gone, progress)
        if fewer is None:
            continue
        name, found = _diverging(fewer, scaling, progress)
        divergences[len(gone)] = found
        scaling = scaling or name
        if found < least:
            best, least, worse = fewer, found, 0
        else:
            worse += math.isfinite(least)
        if worse == _PATIENCE or _is_met(fewer):
            break
    return Depth(best, divergences)


def without_blocks(
    analysis: Analysis, names: Sequence[str], samples: Samples | None, options: PruneOptions
) -> Analysis:
    """Take residual branches out of a model, and look at what is left.

    Args:
        analysis: of the original.
        names: sums that lose their branch.
        samples: what the means of the branches are taken over; zero without.
        options: runtime and seed.

    Raises:
        InputError: when the model has no such residual block.
    """
    model, facts = _with_sums(analysis, samples, options)
    blocks = {one.name: one for one in residual_blocks(model.graph, facts)}
    for name in names:
        if name not in blocks:
            raise InputError(f"the model has no residual block {name!r} that can be removed")
    chosen = [blocks[name] for name in names]
    if samples is not None:
        feeds = samples.batches(BATCH)
        statistics = branch_statistics(model, chosen, feeds, options.runtime)
    else:
        channels = {one.name: facts.first.shapes[one.name][one.axis] for one in chosen}
        statistics = {
            name: BranchStatistics(np.zeros(count), 0.0) for name, count in channels.items()
        }
    candidates = Candidates(model, chosen, statistics, {})
    smaller = candidates.folded(chosen, RunContext(samples, None, options.runtime, options.seed))
    left = analyse(
        smaller,
        RunContext(samples, None, options.runtime, options.seed),
        normalised_axes=options.normalised_axes,
    )
    return replace(left, reference=model, altered=tuple(names), file_bytes=analysis.file_bytes)


def _with_sums(
    analysis: Analysis, samples: Samples | None, options: PruneOptions
) -> tuple[ir.Model, Facts]:
    """A model whose residual additions are nodes of their own, and its shapes."""
    model = separated_sums(analysis.model)
    if model is analysis.model:
        return model, analysis.coupling.facts
    return model, observe_model(model, RunContext(samples, None, options.runtime, options.seed))


def _without(ready: Ready, names: Sequence[str], progress: Progress[Any]) -> Ready | None:
    """The model without some blocks, for the same target; None where nothing can be cut then."""
    options, samples = ready.options, ready.samples
    analysis = without_blocks(ready.analysis, names, samples, options)
    labels = ready.measured.labels if ready.measured is not None else None
    try:
        return prepare_run(analysis, options, samples, progress, labels, ready.cost.whole)
    except NothingPrunable:
        return None


def _diverging(
    ready: Ready, scaling: str | None, progress: Progress[Any]
) -> tuple[str | None, float]:
    """The best allocation, or one of a name, and what it diverges; infinitely if none will do."""
    calibration, chooser = ready.prepared.calibration, Chooser(ready, silent)
    assert calibration is not None
    try:
        chooser.at(ready.options.target, scaling)
        search = chooser.search(ready.options.target)
        if scaling is not None:
            return scaling, search.divergence(search.way(scaling), calibration)
        best, trials = search.best(search.first_ways(), calibration, progress)
    except NothingPrunable:
        return None, float("inf")
    return best.name, trials.get(best.name) or search.divergence(best, calibration)


def _cheapest_first(ready: Ready, progress: Progress[Any]) -> Iterator[ResidualBlock]:
    """Blocks that may go, in greedy order."""
    analysis, options, calibration = ready.analysis, ready.options, ready.prepared.calibration
    model, facts = _with_sums(analysis, ready.samples, options)
    blocks = [one for one in residual_blocks(model.graph, facts) if _may_go(one, model, options)]
    if not blocks or calibration is None:
        return
    feeds = Chooser(ready, silent).search(options.target).trial_feeds(calibration)
    evaluator = DivergenceEvaluator(model, held_out_part(feeds), options.runtime)
    candidates = Candidates(
        model,
        blocks,
        branch_statistics(model, blocks, fitted_part(feeds), options.runtime),
        saved_shares(blocks, options.target, ready.cost.whole),
    )
    yield from by_divergence(candidates, evaluator, progress, most=_TRIED)


def _may_go(block: ResidualBlock, model: ir.Model, options: PruneOptions) -> bool:
    """Whether include and exclude leave a block: all of it for exclude, any part for include."""
    names = {block.name}
    for node in (one for one in model.graph if node_id(one) in block.nodes):
        weights = [value for value in node.inputs if value is not None and value.is_initializer()]
        names |= {node.name or "", *(value.name or "" for value in (*weights, *node.outputs))}

    def matches(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return (not options.include or matches(options.include)) and not matches(options.exclude)


def _is_met(ready: Ready) -> bool:
    """Whether a model meets its target before anything is cut."""
    now, whole = ready.cost.after(()), ready.cost.whole
    target = ready.options.target
    return all(kind in whole and now[kind] <= share * whole[kind] for kind, share in target.items())
