"""Block removal: residual branches whose absence costs least go as a whole.

Formula, for a block y = x + f(x) and mean m = E[f(x)] over samples and positions::

    y' = x + m                         and then, layer by layer in graph order,
    W' = argmin over W of  | W x' + s' - (y + s) |^2        (passes/least_squares.py)

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
outputs of held-out samples closer than the means alone.

Conditions: both operands of the Add have the shape of the sum; everything in the branch serves this
addition alone; the other operand is what the branch reads, or a shortcut from there with one linear
layer at most (`reduction/residual.py`).

Source: Men et al. 2024 (ShortGPT); METHODS.md 2.2 for the target of the repair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

from onnxprune.calibration.parts import divide
from onnxprune.calibration.statistics import BATCH
from onnxprune.cost.latency import measure_pair
from onnxprune.cost.macs import node_macs
from onnxprune.coupling.trace import trace
from onnxprune.errors import InputError, NothingPrunable, TargetUnreachable
from onnxprune.model.execution import Execution
from onnxprune.model.runtime import Runtime
from onnxprune.passes.least_squares import LeastSquares
from onnxprune.progress import silent
from onnxprune.reduction.block_choice import Candidates, Judged, by_divergence, by_influence
from onnxprune.reduction.branch_statistics import branch_statistics
from onnxprune.reduction.observing import observed
from onnxprune.reduction.residual import residual_blocks
from onnxprune.surgery.bias import FullSize
from onnxprune.verification.certificate import tolerance_for
from onnxprune.verification.gates import check_result

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnxprune.calibration.samples import Samples
    from onnxprune.model.observe import Facts
    from onnxprune.progress import Progress
    from onnxprune.reduction.residual import ResidualBlock

__all__ = ["RemoveBlocks"]

_KINDS = ("macs", "params", "latency")
_JUDGED_BATCHES = 8


@dataclass(frozen=True)
class _Trial:
    """A model without some blocks.

    Attributes:
        blocks: those that went.
        model: the result.
        divergence: of its outputs on held-out samples.
        mean_only: the same with nothing but means in place of the branches.
        repaired: whether layers were solved anew.
    """

    blocks: tuple[ResidualBlock, ...]
    model: ir.Model
    divergence: float
    mean_only: float
    repaired: bool


class RemoveBlocks(ir.passes.InPlacePass):
    """Remove whole residual branches, and let the layers around them make up for it.

    Args:
        count: how many blocks to remove.
        target: kind -> fraction of the original that is to remain: macs, params, latency.
        max_divergence: remove as many as keep the divergence of outputs on held-out samples
            (0 for equal ones) below this.
        rank_by: what blocks are ranked by: divergence (measured), influence (of ShortGPT), or both:
            then the result is kept that is closer to the original on held-out samples.
        repair: least-squares, or mean for the means of the branches alone.
        samples: calibration samples; needed.
        runtime: how to run the model.
        seed: of the rows that are drawn.
        progress: told about long loops.

    Attributes:
        details: the blocks that went, their influence, and the divergence with and without
            repair; filled by the call.
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
    ) -> None:
        super().__init__()
        self.count = count
        self.target = target
        self.max_divergence = max_divergence
        self.rank_by = rank_by
        self.repair = repair
        self.samples = samples
        self.runtime = runtime or Runtime()
        self.seed = seed
        self.progress = progress
        self.details: dict[str, Any] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Choose, remove, repair and check.

        Raises:
            InputError: without samples, or when nothing says how many blocks are to go.
            NothingPrunable: when there are no blocks, or (TargetUnreachable) too few.
            VerificationError: when the result is not valid.
        """
        samples = self._checked()
        facts = observed(model, self.runtime, self.seed, samples)
        blocks = residual_blocks(model.graph, facts)
        if not blocks or (self.count or 0) > len(blocks):
            raise NothingPrunable(
                f"the model has {len(blocks)} residual blocks that can be removed"
            )
        fitted, held = divide(samples)
        feeds = list(fitted.batches(BATCH))
        judging = list(islice(held.batches(BATCH), _JUDGED_BATCHES))
        judged = Judged(judging, Execution(model, self.runtime).run_all(judging), self.runtime)
        statistics = branch_statistics(model, blocks, feeds, self.runtime)
        kind = next(iter(self.target or {}), "")
        saved = {
            one.name: float({"macs": one.macs, "params": one.parameters}.get(kind, 1)) or 1.0
            for one in blocks
        }
        candidates = Candidates(model, blocks, statistics, saved)
        orders: dict[str, Iterable[ResidualBlock]] = {
            "influence": by_influence(candidates),
            "divergence": by_divergence(candidates, judged, self.progress),
        }
        trials = [
            self._until_met(candidates, judged, facts, feeds, order)
            for name, order in orders.items()
            if self.rank_by in (name, "both")
        ]
        trial = min(filter(None, trials), key=self._preference, default=None)
        if trial is None:
            self.details = {"removed": [], "blocks": len(blocks)}
            return ir.passes.PassResult(model, modified=False)
        self._check(model, trial.model, facts)
        self.details = {
            "removed": [one.name for one in trial.blocks],
            "blocks": len(blocks),
            "influence": {one.name: statistics[one.name].influence for one in blocks},
            "divergence": trial.divergence,
            "divergence_of_means": trial.mean_only,
            "repaired": trial.repaired,
        }
        model.graph = trial.model.graph
        return ir.passes.PassResult(model, modified=True)

    def _checked(self) -> Samples:
        """The samples, when the options say what is to be done with them.

        Raises:
            InputError: otherwise.
        """
        if self.samples is None:
            raise InputError("remove-blocks looks at what branches give; give calibration samples")
        given = [one for one in (self.count, self.target, self.max_divergence) if one is not None]
        if len(given) != 1:
            raise InputError("remove-blocks takes one of count, target and max_divergence")
        for kind, share in (self.target or {}).items():
            if kind not in _KINDS or not 0 < share <= 1:
                raise InputError(
                    f"target {kind}={share}: blocks can be removed until macs, params or latency "
                    "are at a fraction of the original, above 0 and at most 1"
                )
        return self.samples

    def _preference(self, trial: _Trial) -> tuple[int, float]:
        """Smaller for better: more blocks where a limit decides, then less divergence."""
        gone = len(trial.blocks) if self.max_divergence is not None else 0
        return -gone, trial.divergence

    def _until_met(
        self,
        candidates: Candidates,
        judged: Judged,
        facts: Facts,
        feeds: Sequence[Mapping[str, NDArray[Any]]],
        order: Iterable[ResidualBlock],
    ) -> _Trial | None:
        """Remove blocks until what was asked for is reached; None when none may go."""
        gone: list[ResidualBlock] = []
        best: _Trial | None = None
        for block in order:
            gone.append(block)
            if self.max_divergence is not None:
                trial = self._trial(candidates, gone, judged, feeds)
                if trial.divergence > self.max_divergence:
                    return best
                best = trial
            elif len(gone) == self.count or self._is_met(candidates, gone, facts):
                return self._trial(candidates, gone, judged, feeds)
        if best is None:
            raise TargetUnreachable(
                f"without all {len(gone)} residual blocks the model still misses "
                f"{', '.join(f'{kind}={share}' for kind, share in (self.target or {}).items())}"
            )
        return best

    def _is_met(self, candidates: Candidates, gone: Sequence[ResidualBlock], facts: Facts) -> bool:
        """Whether the model without some blocks is as small, or as fast, as was asked for."""
        if self.target is None:
            return False
        graph = candidates.model.graph
        macs = sum(node_macs(node, facts.first.shapes.__getitem__) for node in graph)
        tensors = [value.const_value for value in graph.initializers.values()]
        parameters = sum(one.size for one in tensors if one is not None)
        left = {
            "macs": 1 - sum(one.macs for one in gone) / max(macs, 1),
            "params": 1 - sum(one.parameters for one in gone) / max(parameters, 1),
        }
        if any(left.get(kind, 0) > share for kind, share in self.target.items()):
            return False
        asked = self.target.get("latency")
        if asked is None:
            return True
        smaller = candidates.without(gone)
        pair = measure_pair(candidates.model, smaller, facts.first.feed, self.runtime)
        return pair.ratio <= asked

    def _trial(
        self,
        candidates: Candidates,
        gone: Sequence[ResidualBlock],
        judged: Judged,
        feeds: Sequence[Mapping[str, NDArray[Any]]],
    ) -> _Trial:
        """Remove blocks, and repair where that helps."""
        original = candidates.model
        smaller = candidates.folded(gone, self.runtime, self.seed, self.samples)
        mean_only = judged.divergence(original, smaller)
        if self.repair == "least-squares":
            facts = observed(smaller, self.runtime, self.seed, self.samples)
            target = FullSize(smaller.clone(), trace(smaller, facts))
            LeastSquares(
                target,
                original,
                [],
                feeds,
                self.runtime,
                seed=self.seed,
                progress=self.progress,
                altered=[one.name for one in gone],
            )(target.model)
            repaired = judged.divergence(original, target.model)
            if repaired < mean_only:
                return _Trial(tuple(gone), target.model, repaired, mean_only, True)
        return _Trial(tuple(gone), smaller, mean_only, mean_only, False)

    def _check(self, original: ir.Model, result: ir.Model, facts: Facts) -> None:
        feeds = [facts.first.feed, facts.second.feed]
        outputs = Execution(result, self.runtime, optimise=False).run_all(feeds)
        tolerance = tolerance_for(original)
        check_result(original, result, feeds, outputs, self.runtime, tolerance)
