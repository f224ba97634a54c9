"""How many residual blocks go before widths are cut: one more level of the allocation.

    n* = argmin over n of  D(n)

D(n) is how far the outputs diverge, on samples that were not fitted, when n blocks are replaced by
their mean, what is left of the budget is met by widths, and layers are solved anew. Blocks go in
greedy order, the one that costs least for what it saves first (`allocation/blocks.py`); two
levels in a row that are no better end the search.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnxprune.allocation.blocks import block_candidates, block_savings
from onnxprune.calibration.batches import fitted_part, held_out_part
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.moments import BATCH
from onnxprune.calibration.streams import Samples
from onnxprune.coupling.analysis import Analysis, analyse
from onnxprune.errors import NothingPrunable
from onnxprune.options import PruneOptions
from onnxprune.progress import Progress, silent
from onnxprune.pruning.prepare import Ready, prepare_run
from onnxprune.pruning.search import Chooser
from onnxprune.surgery.blocks.residual import ResidualBlock
from onnxprune.verification.divergence import DivergenceEvaluator

_PATIENCE = 2


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
    worse = 0
    for removed in _greedy_order(ready, progress):
        fewer = _without(ready, [block.name for block in removed], progress)
        if fewer is None:
            continue
        name, found = _diverging(fewer, scaling, progress)
        divergences[len(removed)] = found
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
    context = RunContext(samples=samples, runtime=options.runtime, seed=options.seed)
    facts = analysis.coupling.facts
    candidates = block_candidates(analysis.model, context, facts).named(names)
    if samples is not None:
        candidates = candidates.measured(samples.batches(BATCH))
    smaller = candidates.folded(candidates.blocks)
    left = analyse(smaller, context, normalised_axes=options.normalised_axes)
    return replace(
        left, reference=candidates.model, altered=tuple(names), file_bytes=analysis.file_bytes
    )


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


def _greedy_order(ready: Ready, progress: Progress[Any]) -> Iterator[tuple[ResidualBlock, ...]]:
    """Sets of blocks to remove, each one block larger, of those that include and exclude leave."""
    analysis, options, calibration = ready.analysis, ready.options, ready.prepared.calibration
    context = RunContext(
        samples=ready.samples, runtime=options.runtime, seed=options.seed, progress=progress
    )
    candidates = block_candidates(analysis.model, context, analysis.coupling.facts)
    candidates = candidates.selected(options.include, options.exclude)
    if not candidates.blocks or calibration is None:
        return
    feeds = Chooser(ready, silent).search(options.target).trial_feeds(calibration)
    evaluator = DivergenceEvaluator(candidates.model, held_out_part(feeds), options.runtime)
    savings = block_savings(candidates.blocks, options.target, ready.cost.whole)
    yield from candidates.measured(fitted_part(feeds)).by_divergence(savings, evaluator)


def _is_met(ready: Ready) -> bool:
    """Whether a model meets its target before anything is cut."""
    now, whole = ready.cost.after(()), ready.cost.whole
    target = ready.options.target
    return all(kind in whole and now[kind] <= share * whole[kind] for kind, share in target.items())
