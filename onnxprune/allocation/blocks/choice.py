"""Which residual blocks go: one after another, always the one whose absence costs least now.

Cost is the block's influence, or the measured divergence of the outputs on held-out samples with
the branch replaced by its mean; where a target counts multiplications or parameters, per unit of
them that it saves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.allocation.blocks.branch_statistics import BranchStatistics
from onnxprune.calibration.context import RunContext
from onnxprune.coupling.analysis import observe_model
from onnxprune.coupling.trace import trace
from onnxprune.progress import Progress
from onnxprune.surgery.blocks.constant_sums import fold_added_constants
from onnxprune.surgery.blocks.residual import ResidualBlock, remove_block
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.verification.divergence import DivergenceEvaluator

_LEAST = 1e-9


@dataclass(frozen=True)
class Candidates:
    """Blocks to choose among.

    Attributes:
        model: the original.
        blocks: its residual blocks.
        statistics: what they give, by name.
        weights: what each saves, in units of what the target counts; 1 where blocks are counted.
    """

    model: ir.Model
    blocks: Sequence[ResidualBlock]
    statistics: Mapping[str, BranchStatistics]
    weights: Mapping[str, float]

    def without(self, chosen: Sequence[ResidualBlock]) -> ir.Model:
        """A copy of the model with the mean of some branches in place of them."""
        result = self.model.clone()
        for block in chosen:
            mean = self.statistics[block.name].mean
            remove_block(result.graph, block, mean)
        return result

    def folded(self, chosen: Sequence[ResidualBlock], context: RunContext) -> ir.Model:
        """The same with the means in the bias of what makes the stream, wherever that can be.

        Args:
            chosen: the blocks.
            context: how to run the model, to see its shapes.
        """
        smaller = self.without(chosen)
        full = EditableModel(smaller, trace(smaller, observe_model(smaller, context)))
        fold_added_constants(full, [one.name for one in chosen])
        return full.model


def by_influence(candidates: Candidates) -> Iterator[ResidualBlock]:
    """Blocks in the order of their influence for what they save."""
    cost = {
        one.name: candidates.statistics[one.name].influence / candidates.weights[one.name]
        for one in candidates.blocks
    }
    yield from sorted(candidates.blocks, key=lambda one: cost[one.name])


def by_divergence(
    candidates: Candidates,
    evaluator: DivergenceEvaluator,
    progress: Progress[Any],
    most: int | None = None,
) -> Iterator[ResidualBlock]:
    """Blocks in greedy order: each is tried on top of those that have gone.

    Args:
        candidates: the blocks.
        evaluator: of the original, on the samples they are tried on.
        progress: told about every trial.
        most: how many are tried for a place, those of least influence; None for all.
    """
    chosen: list[ResidualBlock] = []
    likely = list(by_influence(candidates))
    now = 0.0
    while len(chosen) < len(likely):
        left = [one for one in likely if one not in chosen][:most]
        costs = []
        for one in progress(left, "trying blocks", len(left)):
            trial = candidates.without([*chosen, one])
            costs.append(evaluator.divergence(trial))
        added = np.maximum(np.array(costs) - now, 0) + _LEAST
        best = int(np.argmin(added / [candidates.weights[one.name] for one in left]))
        now = costs[best]
        chosen.append(left[best])
        yield left[best]
