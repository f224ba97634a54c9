"""Residual blocks as one more level of the allocation: which may be removed, and what is left.

The model without some blocks is analysed, ranked and cut like any other; its layers are fitted to
the original's outputs, and its targets are fractions of the original's costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from onnxprune.allocation.blocks import block_candidates, block_savings
from onnxprune.calibration.batches import fitted_part, held_out_part
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.moments import BATCH
from onnxprune.cost.kinds import CostModel
from onnxprune.coupling.analysis import Analysis, analyse
from onnxprune.options import PruneOptions
from onnxprune.pruning.search import trial_batches
from onnxprune.pruning.workspace import Workspace
from onnxprune.surgery.blocks.residual import ResidualBlock
from onnxprune.verification.divergence import DivergenceEvaluator


def without_blocks(
    analysis: Analysis, names: Sequence[str], context: RunContext, *, normalised_axes: bool | str
) -> Analysis:
    """Take residual branches out of a model, and analyse what is left.

    Args:
        analysis: of the original.
        names: sums that lose their branch.
        context: samples, whose means take the place of the branches (zero without), and runtime.
        normalised_axes: as for `analyse`.

    Raises:
        InputError: when the model has no such residual block.
    """
    candidates = block_candidates(analysis.model, context, analysis.coupling.facts).named(names)
    if context.samples is not None:
        candidates = candidates.measured(context.samples.batches(BATCH))
    smaller = candidates.folded(candidates.blocks)
    left = analyse(smaller, context, normalised_axes=normalised_axes)
    return replace(
        left, reference=candidates.model, altered=tuple(names), file_bytes=analysis.file_bytes
    )


def greedy_order(
    workspace: Workspace,
    cost: CostModel,
    target: Mapping[str, float],
    options: PruneOptions,
    context: RunContext,
) -> Iterator[tuple[ResidualBlock, ...]]:
    """Sets of blocks to remove, each one block larger: least divergence for what is saved.

    Args:
        workspace: the whole model.
        cost: its cost model.
        target: kind -> fraction to remain.
        options: name patterns.
        context: runtime and progress callback.
    """
    analysis = workspace.reference
    candidates = block_candidates(analysis.model, context, analysis.coupling.facts)
    candidates = candidates.selected(options.include, options.exclude)
    if not candidates.blocks or workspace.calibration is None:
        return
    feeds = [workspace.calibration.feeds[number] for number in trial_batches(workspace, cost)]
    evaluator = DivergenceEvaluator(candidates.model, held_out_part(feeds), context.runtime)
    savings = block_savings(candidates.blocks, target, cost.whole)
    yield from candidates.measured(fitted_part(feeds)).by_divergence(savings, evaluator)
