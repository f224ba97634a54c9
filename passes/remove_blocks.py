"""Block removal: residual branches whose absence costs least are removed as a whole.

Formula, for a block y = x + f(x) and mean m = E[f(x)] over samples and positions::

    y' = x + m                         and then, layer by layer in graph order,
    W' = argmin over W of  | W x' + s' - (y + s) |^2        (compensation/least_squares.py)

where x' and the other terms s' of the sum that a layer enters are those of the smaller model, y + s
those of the original. So the layers that make the stream take over what is linear in the branch,
and those that read the stream are fitted to what remains of it.

Before (post-norm attention; a residual convolution is the same with Conv and Relu)::

    x -> MatMul, Softmax, MatMul, ... -> f ; Add(x, f) -> y -> LayerNorm -> ...

After::

    x (with m in the bias of the layer that makes it) -> LayerNorm -> ...
    x -> Add(x, m) -> ...              where x has other consumers, or something lies between

Removed nodes and weights disappear; inputs and outputs stay. Blocks are removed one at a time, the
cheapest first: by how far the outputs diverge on held-out samples (each tried with its mean, on top
of those removed before), or by block influence 1 - cos(x, y) (`allocation/blocks.py`). The repair
is kept where it brings the outputs on held-out samples closer than the means alone. For each place
in the order the six blocks of least influence are tried, so that the work grows linearly with the
number of removed blocks.

Sums that onnxruntime has fused with the normalisation after them become nodes of their own first
(`surgery/blocks/fused_sums.py`).

Conditions: both operands of the Add have the shape of the sum; everything in the branch serves this
addition alone; the other operand is what the branch reads, or a shortcut from there with one linear
layer at most (`surgery/blocks/residual.py`).

Source: Men et al. 2024 (ShortGPT); Kwon et al. 2022 for the target of the repair.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.allocation.blocks import (
    TARGET_KINDS,
    BlockCandidates,
    BlockTarget,
    block_candidates,
    block_target,
)
from onnxprune.calibration.batches import first_batches
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.moments import BATCH
from onnxprune.calibration.streams import Samples, divide
from onnxprune.compensation.least_squares import LeastSquares
from onnxprune.coupling.analysis import observe_model
from onnxprune.coupling.trace import trace
from onnxprune.errors import InputError, NothingPrunable, TargetUnreachable
from onnxprune.model.execution import Execution
from onnxprune.model.inputs import list_initializers
from onnxprune.model.runtime import Runtime
from onnxprune.passes.pipeline.protocol import Pass
from onnxprune.progress import Progress, silent
from onnxprune.surgery.blocks.residual import ResidualBlock
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.verification.certificate import check_result, tolerance_for
from onnxprune.verification.divergence import DivergenceEvaluator

_HELD_OUT_BATCHES = 8


class RemoveBlocks(Pass, ir.passes.InPlacePass):
    """Remove whole residual branches, and let the layers around them make up for it.

    Args:
        count: how many blocks to remove.
        target: kind -> fraction of the model that is to remain: macs, params, latency; several are
            all met.
        max_divergence: remove as many as keep the divergence of outputs on held-out samples
            (0 for equal ones) below this.
        rank_by: what blocks are ranked by: divergence (measured), influence (of ShortGPT), or both:
            then the result is kept that is closer to the original on held-out samples.
        repair: least-squares, or mean for the means of the branches alone.
        samples: calibration samples; required.
        runtime: onnxruntime providers and threads.
        seed: of the rows that are drawn.
        progress: progress callback of long loops.
        plan: of the run that is to be repeated: the removed blocks; None to choose.

    Attributes:
        details: the removed blocks, their influence, what remains of each kind of the target, and
            the divergence with and without repair; filled by the call.
        plan: the removed blocks; filled by the call.

    Raises:
        InputError: without samples, or unless exactly one of `count`, `target` and
            `max_divergence` says how many blocks to remove.
    """

    def __init__(
        self,
        count: int | None = None,
        target: Mapping[str, float] | None = None,
        max_divergence: float | None = None,
        rank_by: Literal["both", "divergence", "influence"] = "both",
        repair: Literal["least-squares", "mean"] = "least-squares",
        *,
        samples: Samples | None = None,
        runtime: Runtime | None = None,
        seed: int = 0,
        progress: Progress[Any] = silent,
        plan: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_amount(count, target, max_divergence)
        if samples is None:
            raise InputError("remove-blocks measures branches; give calibration samples")
        self.count = count
        self.target = target
        self.max_divergence = max_divergence
        self.rank_by = rank_by
        self.repair = repair
        self.samples = samples
        self.context = RunContext(samples, None, runtime or Runtime(), seed, progress)
        self.planned = None if plan is None else _planned(plan)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Choose, remove, repair and check.

        Raises:
            InputError: when the model does not run, or lacks a block of the plan.
            NothingPrunable: when there are no blocks, or (TargetUnreachable) too few.
            VerificationError: when the result is not valid.
        """
        candidates = block_candidates(model, self.context)
        blocks = candidates.blocks
        if not blocks or (self.count or 0) > len(blocks):
            raise NothingPrunable(
                f"the model has {len(blocks)} residual blocks that can be removed"
            )
        search = self._search(candidates)
        trial = search.best() if self.planned is None else search.repeat(self.planned)
        removed = [] if trial is None else [block.name for block in trial.blocks]
        self.plan = {"removed": removed}
        self.details = {"removed": removed, "blocks": len(blocks)}
        if trial is None:
            return ir.passes.PassResult(model, modified=False)
        list_initializers(trial.model)
        self._check(model, trial.model, candidates)
        statistics = search.candidates.statistics
        self.details |= {
            "influence": {block.name: statistics[block.name].influence for block in blocks},
            "remaining": dict(trial.remaining),
            "divergence": trial.divergence,
            "divergence_of_means": trial.mean_only,
            "repaired": trial.repaired,
        }
        model.graph = trial.model.graph
        return ir.passes.PassResult(model, modified=True)

    def _search(self, candidates: BlockCandidates) -> _Search:
        """Run the model on the samples, and count the costs of its blocks."""
        fitted, held = divide(self.samples)
        feeds, held_out = list(fitted.batches(BATCH)), first_batches(held, _HELD_OUT_BATCHES)
        evaluator = DivergenceEvaluator(candidates.model, held_out, self.context.runtime)
        shares = self.target if self.planned is None else None
        candidates = candidates.measured(feeds)
        return _Search(self, candidates, evaluator, block_target(candidates, shares or {}), feeds)

    def _check(self, original: ir.Model, result: ir.Model, candidates: BlockCandidates) -> None:
        feeds = [candidates.facts.first.feed, candidates.facts.second.feed]
        runtime = self.context.runtime
        outputs = Execution(result, runtime, optimise=False).run_all(feeds)
        check_result(original, result, feeds, outputs, runtime, tolerance_for(original))


@dataclass(frozen=True)
class _Trial:
    """A model without some blocks.

    Attributes:
        blocks: the removed ones.
        model: the result.
        divergence: of its outputs on held-out samples.
        mean_only: the same with nothing but means in place of the branches.
        repaired: whether layers were re-fitted.
        remaining: of the original, by kind of the target.
    """

    blocks: tuple[ResidualBlock, ...]
    model: ir.Model
    divergence: float
    mean_only: float
    repaired: bool
    remaining: Mapping[str, float]


@dataclass(frozen=True)
class _Search:
    """Looks for the blocks to remove.

    Attributes:
        options: the pass.
        candidates: the blocks, measured.
        evaluator: divergence from the original on held-out samples.
        target: what blocks save.
        feeds: batches to fit on.
    """

    options: RemoveBlocks
    candidates: BlockCandidates
    evaluator: DivergenceEvaluator
    target: BlockTarget
    feeds: Sequence[Mapping[str, NDArray[Any]]]

    def best(self) -> _Trial | None:
        """The better of the orders in which blocks may be removed; None when none may be."""
        savings = self.target.savings()
        orders = {
            "influence": self.candidates.by_influence(savings),
            "divergence": self.candidates.by_divergence(savings, self.evaluator),
        }
        limit, trials = self.options.max_divergence, list[_Trial]()
        for name, order in orders.items():
            if self.options.rank_by in (name, "both"):
                trial = (
                    self._until_met(order, trials) if limit is None else self._within(order, limit)
                )
                trials += [trial] if trial is not None else []
        return min(trials, key=self._preference, default=None)

    def repeat(self, names: Sequence[str]) -> _Trial | None:
        """Remove the blocks of a plan; None when it has none.

        Raises:
            InputError: when the model has no such block.
        """
        return self._trial(tuple(self.candidates.named(names).blocks)) if names else None

    def _preference(self, trial: _Trial) -> tuple[int, float]:
        """Smaller for better: more blocks where a limit decides, then less divergence."""
        removed = len(trial.blocks) if self.options.max_divergence is not None else 0
        return -removed, trial.divergence

    def _until_met(
        self, order: Iterator[tuple[ResidualBlock, ...]], known: Sequence[_Trial]
    ) -> _Trial:
        """Remove blocks until the count or the target is reached.

        Args:
            order: sets of blocks, each one block larger.
            known: trials that need not be made again.

        Raises:
            TargetUnreachable: when all blocks are too few.
        """
        count, target = self.options.count, self.options.target or {}
        remaining: dict[str, float] = {}
        for removed in order:
            for trial in known:
                if set(removed) == set(trial.blocks):
                    return trial
            if target:
                remaining = self.target.remaining(removed)
            if len(removed) == count or (remaining and self.target.is_met(remaining)):
                trial = self._trial(removed, remaining)
                if not target or self.target.counts_hold(trial.model):
                    return trial
        asked = ", ".join(f"{kind}={share}" for kind, share in target.items())
        left = ", ".join(f"{share:.4f} of the {kind}" for kind, share in remaining.items())
        raise TargetUnreachable(
            f"without all {len(self.candidates.blocks)} residual blocks the model still misses "
            f"{asked}: {left} remain",
            remaining,
        )

    def _within(self, order: Iterator[tuple[ResidualBlock, ...]], limit: float) -> _Trial | None:
        """Remove blocks as long as the outputs stay close enough; None when none may go."""
        best: _Trial | None = None
        for removed in order:
            trial = self._trial(removed)
            if trial.divergence > limit:
                break
            best = trial
        return best

    def _trial(
        self, removed: tuple[ResidualBlock, ...], remaining: Mapping[str, float] | None = None
    ) -> _Trial:
        """Remove blocks, and repair where that helps."""
        context = self.candidates.context
        smaller = self.candidates.folded(removed)
        mean_only = self.evaluator.divergence(smaller)
        plain = _Trial(removed, smaller, mean_only, mean_only, False, remaining or {})
        if self.options.repair == "mean":
            return plain
        target = EditableModel(smaller.clone(), trace(smaller, observe_model(smaller, context)))
        LeastSquares(target, self.candidates.model, self.feeds, context).fit(
            altered=[block.name for block in removed]
        )
        repaired = self.evaluator.divergence(target.model)
        if repaired >= mean_only:
            return plain
        return replace(plain, model=target.model, divergence=repaired, repaired=True)


def _check_amount(
    count: int | None, target: Mapping[str, float] | None, max_divergence: float | None
) -> None:
    """Check what says how many blocks to remove.

    Raises:
        InputError: for none or several of them, or a value out of range.
    """
    if sum(option is not None for option in (count, target, max_divergence)) != 1:
        raise InputError("remove-blocks takes one of count, target and max_divergence")
    if count is not None and count < 1:
        raise InputError(f"count={count}: expected 1 or more blocks")
    if max_divergence is not None and not 0 <= max_divergence < float("inf"):
        raise InputError(f"max_divergence={max_divergence}: expected a number of at least 0")
    if target is not None and not target:
        raise InputError("remove-blocks: the target is empty; give macs, params or latency")
    for kind, share in (target or {}).items():
        if kind not in TARGET_KINDS or not 0 < share <= 1:
            raise InputError(
                f"target {kind}={share}: blocks can be removed until macs, params or latency "
                "are at a fraction of the model, above 0 and at most 1"
            )


def _planned(plan: Mapping[str, Any]) -> tuple[str, ...]:
    """The blocks of a plan.

    Raises:
        InputError: when it names none.
    """
    names = plan.get("removed")
    if not isinstance(names, Sequence) or isinstance(names, str):
        raise InputError("the plan of remove-blocks does not say which blocks are removed")
    return tuple(map(str, names))
