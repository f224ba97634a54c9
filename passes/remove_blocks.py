"""Block removal: residual branches whose absence costs least go as a whole.

Formula, for a block y = x + f(x) and mean m = E[f(x)] over samples and positions::

    y' = x + m                         and then, layer by layer in graph order,
    W' = argmin over W of  | W x' + s' - (y + s) |^2  (compensation/least_squares.py)

where x' and the other terms s' of the sum a layer enters are those of the smaller model, y + s
those of the original. So the layers that make the stream take over what they can of the branch
linearly, and those that read it get used to what is left.

Before (post-norm attention; a residual convolution is the same with Conv and Relu)::

    x -> MatMul, Softmax, MatMul, ... -> f ; Add(x, f) -> y -> LayerNorm -> ...

After::

    x (with m in the bias of the layer that makes it) -> LayerNorm -> ...
    x -> Add(x, m) -> ...              where x has other readers, or something lies between

Removed nodes and weights disappear; inputs and outputs stay. Blocks go one at a time, the cheapest
first: by what the outputs diverge on held-out samples (each tried with its mean, on top of those
that went before), or by block influence 1 - cos(x, y). The repair is kept where it brings the
outputs of held-out samples closer than the means alone. For every place the six blocks of least
influence are tried, so the work grows with the blocks that go and not with their square.

Sums that onnxruntime has fused with the normalisation behind them become nodes of their own first
(`surgery/blocks/fused_sums.py`).

Conditions: both operands of the Add have the shape of the sum; everything in the branch serves this
addition alone; the other operand is what the branch reads, or a shortcut from there with one linear
layer at most (`surgery/blocks/residual.py`).

Source: Men et al. 2024 (ShortGPT); Kwon et al. 2022 for the target of the repair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.allocation.blocks.branch_statistics import branch_statistics
from onnxprune.allocation.blocks.choice import Candidates, by_divergence, by_influence
from onnxprune.allocation.blocks.target import TARGET_KINDS, BlockTarget, block_target
from onnxprune.calibration.batches import first_batches
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.moments import BATCH
from onnxprune.calibration.streams import Samples, divide
from onnxprune.compensation.least_squares import LeastSquares
from onnxprune.coupling.analysis import observe_model
from onnxprune.coupling.trace import trace
from onnxprune.errors import InputError, NothingPrunable, TargetUnreachable
from onnxprune.model.execution import Execution
from onnxprune.model.observe import Facts
from onnxprune.model.runtime import Runtime
from onnxprune.progress import Progress, silent
from onnxprune.surgery.blocks.fused_sums import separated_sums
from onnxprune.surgery.blocks.residual import ResidualBlock, residual_blocks
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.verification.certificate import tolerance_for
from onnxprune.verification.divergence import DivergenceEvaluator
from onnxprune.verification.gates import check_result

_JUDGED_BATCHES = 8
_TRIED = 6


@dataclass(frozen=True)
class _Trial:
    """A model without some blocks.

    Attributes:
        blocks: those that went.
        model: the result.
        divergence: of its outputs on held-out samples.
        mean_only: the same with nothing but means in place of the branches.
        repaired: whether layers were solved anew.
        remaining: of the original, by kind of the target.
    """

    blocks: tuple[ResidualBlock, ...]
    model: ir.Model
    divergence: float
    mean_only: float
    repaired: bool
    remaining: Mapping[str, float]


@dataclass(frozen=True)
class _Work:
    """What there is to choose from.

    Attributes:
        candidates: the blocks.
        evaluator: divergence from the original on held-out samples.
        target: what blocks save of what has to go.
        feeds: batches to fit on.
    """

    candidates: Candidates
    evaluator: DivergenceEvaluator
    target: BlockTarget
    feeds: Sequence[Mapping[str, NDArray[Any]]]


class RemoveBlocks(ir.passes.InPlacePass):
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
        samples: calibration samples; needed.
        runtime: how to run the model.
        seed: of the rows that are drawn.
        progress: told about long loops.
        plan: of the run that is to be repeated: the blocks that go; None to choose.

    Attributes:
        details: the blocks that went, their influence, what the target counts, and the divergence
            with and without repair; filled by the call.
        plan: the blocks that went, filled by the call.

    Raises:
        InputError: without samples, or when not exactly one of `count`, `target` and
            `max_divergence` says how many blocks are to go.
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
            raise InputError("remove-blocks looks at what branches give; give calibration samples")
        self.count = count
        self.target = target
        self.max_divergence = max_divergence
        self.rank_by = rank_by
        self.repair = repair
        self.samples = samples
        self.runtime = runtime or Runtime()
        self.seed = seed
        self.progress = progress
        self.repeated = None if plan is None else _planned(plan)
        self.details: dict[str, Any] = {}
        self.plan: dict[str, Any] | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Choose, remove, repair and check.

        Raises:
            InputError: when the model does not run, or lacks a block of the plan.
            NothingPrunable: when there are no blocks, or (TargetUnreachable) too few.
            VerificationError: when the result is not valid.
        """
        original = separated_sums(model)
        facts = observe_model(original, RunContext(self.samples, None, self.runtime, self.seed))
        blocks = residual_blocks(original.graph, facts)
        if not blocks or (self.count or 0) > len(blocks):
            raise NothingPrunable(
                f"the model has {len(blocks)} residual blocks that can be removed"
            )
        work = self._work(original, blocks, facts)
        trial = self._chosen(work) if self.repeated is None else self._repeat(work, self.repeated)
        self.plan = {"removed": [] if trial is None else [one.name for one in trial.blocks]}
        if trial is None:
            self.details = {"removed": [], "blocks": len(blocks)}
            return ir.passes.PassResult(model, modified=False)
        self._check(model, trial.model, facts)
        statistics = work.candidates.statistics
        self.details = {
            "removed": [one.name for one in trial.blocks],
            "blocks": len(blocks),
            "influence": {one.name: statistics[one.name].influence for one in blocks},
            "remaining": dict(trial.remaining),
            "divergence": trial.divergence,
            "divergence_of_means": trial.mean_only,
            "repaired": trial.repaired,
        }
        model.graph = trial.model.graph
        return ir.passes.PassResult(model, modified=True)

    def _work(self, model: ir.Model, blocks: Sequence[ResidualBlock], facts: Facts) -> _Work:
        """Run the model on the samples, and count what its blocks cost."""
        fitted, held = divide(self.samples)
        feeds = list(fitted.batches(BATCH))
        feeds_held_out = first_batches(held, _JUDGED_BATCHES)
        evaluator = DivergenceEvaluator(model, feeds_held_out, self.runtime)
        statistics = branch_statistics(model, blocks, feeds, self.runtime)
        shares = self.target if self.repeated is None else None
        target = block_target(model, facts, shares or {}, self.runtime)
        candidates = Candidates(model, blocks, statistics, target.weights(blocks))
        return _Work(candidates, evaluator, target, feeds)

    def _chosen(self, work: _Work) -> _Trial | None:
        """The better of the orders that blocks may go in; None when none may go."""
        candidates, evaluator = work.candidates, work.evaluator
        orders: dict[str, Iterable[ResidualBlock]] = {
            "influence": by_influence(candidates),
            "divergence": by_divergence(candidates, evaluator, self.progress, most=_TRIED),
        }
        trials: list[_Trial | None] = []
        for name, order in orders.items():
            if self.rank_by in (name, "both"):
                trials.append(self._until_met(work, order, [one for one in trials if one]))
        return min(filter(None, trials), key=self._preference, default=None)

    def _repeat(self, work: _Work, names: Sequence[str]) -> _Trial | None:
        """Remove the blocks of a plan; None when it has none.

        Raises:
            InputError: when the model has no such block.
        """
        known = {one.name: one for one in work.candidates.blocks}
        for name in names:
            if name not in known:
                raise InputError(f"the model has no residual block {name!r} that can be removed")
        return self._trial(work, [known[name] for name in names]) if names else None

    def _preference(self, trial: _Trial) -> tuple[int, float]:
        """Smaller for better: more blocks where a limit decides, then less divergence."""
        gone = len(trial.blocks) if self.max_divergence is not None else 0
        return -gone, trial.divergence

    def _until_met(
        self, work: _Work, order: Iterable[ResidualBlock], known: Sequence[_Trial]
    ) -> _Trial | None:
        """Remove blocks until what was asked for is reached; None when none may go.

        Args:
            work: what there is to choose from.
            order: which block goes when.
            known: results that need not be made again.
        """
        if self.max_divergence is not None:
            return self._within(work, order, self.max_divergence)
        gone: list[ResidualBlock] = []
        left: dict[str, float] = {}
        for block in order:
            gone.append(block)
            for trial in known:
                if set(gone) == set(trial.blocks):
                    return trial
            if self.target is not None:
                left = work.target.remaining(gone, work.candidates.without(gone))
            if len(gone) == self.count or (left and work.target.is_met(left)):
                trial = self._trial(work, gone, left)
                if self.target is None or work.target.counts_hold(trial.model):
                    return trial
        raise TargetUnreachable(
            f"without all {len(gone)} residual blocks the model still misses "
            f"{', '.join(f'{kind}={share}' for kind, share in (self.target or {}).items())}: "
            f"{', '.join(f'{share:.4f} of the {kind}' for kind, share in left.items())} remain",
            left,
        )

    def _within(self, work: _Work, order: Iterable[ResidualBlock], limit: float) -> _Trial | None:
        """Remove blocks as long as the outputs stay close enough."""
        best: _Trial | None = None
        gone: list[ResidualBlock] = []
        for block in order:
            gone.append(block)
            trial = self._trial(work, gone)
            if trial.divergence > limit:
                break
            best = trial
        return best

    def _trial(
        self, work: _Work, gone: Sequence[ResidualBlock], left: Mapping[str, float] | None = None
    ) -> _Trial:
        """Remove blocks, and repair where that helps."""
        original = work.candidates.model
        smaller = work.candidates.folded(
            gone, RunContext(self.samples, None, self.runtime, self.seed)
        )
        mean_only = work.evaluator.divergence(smaller)
        plain = _Trial(tuple(gone), smaller, mean_only, mean_only, False, left or {})
        if self.repair == "mean":
            return plain
        facts = observe_model(smaller, RunContext(self.samples, None, self.runtime, self.seed))
        target = EditableModel(smaller.clone(), trace(smaller, facts))
        LeastSquares(
            target,
            original,
            [],
            work.feeds,
            self.runtime,
            seed=self.seed,
            progress=self.progress,
            altered=[one.name for one in gone],
        )(target.model)
        repaired = work.evaluator.divergence(target.model)
        if repaired >= mean_only:
            return plain
        return replace(plain, model=target.model, divergence=repaired, repaired=True)

    def _check(self, original: ir.Model, result: ir.Model, facts: Facts) -> None:
        feeds = [facts.first.feed, facts.second.feed]
        outputs = Execution(result, self.runtime, optimise=False).run_all(feeds)
        tolerance = tolerance_for(original)
        check_result(original, result, feeds, outputs, self.runtime, tolerance)


def _check_amount(
    count: int | None, target: Mapping[str, float] | None, max_divergence: float | None
) -> None:
    """Check what says how many blocks are to go.

    Raises:
        InputError: when that is not one option, or one that cannot be.
    """
    given = [one for one in (count, target, max_divergence) if one is not None]
    if len(given) != 1:
        raise InputError("remove-blocks takes one of count, target and max_divergence")
    if count is not None and count < 1:
        raise InputError(f"count={count}: a number of residual blocks from 1 on is to go")
    if max_divergence is not None and not 0 <= max_divergence < float("inf"):
        raise InputError(f"max_divergence={max_divergence}: expected a number from 0 on")
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
