"""What to remove for one target: allocations are tried, and what was built is measured.

The cost model says what an allocation leaves; where a target is measured (latency) or a file is
larger than predicted (size), the cost model is asked for something else (`allocation/secant.py`).
Where several allocations meet the target, each is compensated with little effort, and the outputs
on samples that were not fitted decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import onnx_ir as ir

from onnxprune.allocation.candidates import (
    Candidate,
    knapsack_candidates,
    scalings,
    simple_candidates,
    without_shared,
)
from onnxprune.allocation.halving import difference, distinct, going_on, on_one_scale
from onnxprune.allocation.secant import TOLERANCE, Attempt, Excess, Secant, solve_for_target
from onnxprune.calibration.batches import feed_bytes, fitted_part, held_out_part, spread_batches
from onnxprune.calibration.context import RunContext
from onnxprune.compensation.compensate import Effort
from onnxprune.compensation.least_squares import Settings
from onnxprune.compensation.regression.linear_layers import replaceable_layers
from onnxprune.cost.kinds import CostModel
from onnxprune.cost.latency.measure import Latency, measure_pair, steadier
from onnxprune.coupling.analysis import Analysis, why_nothing
from onnxprune.coupling.cut import CutError
from onnxprune.errors import NothingPrunable, RuntimeFailure, TargetUnreachable
from onnxprune.importance.removal_order import RankedGroup
from onnxprune.model.inputs import input_specs, resized_batch
from onnxprune.model.runtime import Runtime
from onnxprune.model.save import model_bytes
from onnxprune.options import LATENCY, SIZE, target_text
from onnxprune.progress import during, silent
from onnxprune.pruning.build import CutModel, build_or_blame
from onnxprune.pruning.method import Method
from onnxprune.pruning.workspace import Workspace
from onnxprune.verification.divergence import DivergenceEvaluator

_LATENCY_SECONDS = 2.5
"""Time that one measurement of latency takes."""

_ROUGH_SECONDS = 1.0
"""Time of one that only says what to ask the cost model for while allocations are compared."""

_LATENCY_ROUNDS = 8
_ROUGH_ROUNDS = 2
_SIZE_ROUNDS = 4
_SIZE_FACTOR = 1.1
"""Surgery adds constants and names to the smaller file too, so that more has to be removed."""

_TRIAL_WORK = 2e12
"""Multiplications that all trials of a target may take together."""

_SOLVE_WORK = 4
"""Multiplications of one solve, in rows of the Gram product."""

# more batches where a model takes one sample at a time, fewer where a sample takes long
_TRIAL_BATCHES = 4
_TRIAL_SAMPLES = 64
_TRIAL_MACS = 2.5e11


@dataclass(frozen=True)
class TrialRound:
    """How allocations are compared in one round of successive halving.

    Attributes:
        settings: of least squares.
        factor: how many times as many batches as in the first round.
        places: most candidates that take part; 0 for all.
    """

    settings: Settings
    factor: int = 1
    places: int = 0


# models are compared on batches that no trial sees, so that each fits all that it does
_QUICK = Settings(rows=16_384, least_rows=0, judged=False, both_halves=False)

# few rows fit noise, which a stronger ridge keeps down
_ROUNDS = (
    TrialRound(replace(_QUICK, iterations=0, ridges=(5e-2,), rows_per_unknown=6)),
    TrialRound(replace(_QUICK, iterations=1, ridges=(1e-2,), rows_per_unknown=12), 2, 3),
)

_SHARED = ", shared groups too"

FISHER = "fisher"
"""Name of the allocation by the criterion of that name."""


@dataclass(frozen=True)
class Informed:
    """Groups ranked by Fisher information; nothing where gradients do not get.

    Attributes:
        fisher: with removal orders by it.
        curves: with the removal orders of the run, and curves by it.
    """

    fisher: Sequence[RankedGroup] = ()
    curves: Sequence[RankedGroup] = ()

    def names(self) -> Sequence[str]:
        """Names of the allocations by it."""
        return FISHER, *(self.curves[0].curves if self.curves else ())


@dataclass(frozen=True)
class Choice:
    """A removal that can be built.

    Attributes:
        candidate: the allocation and its removal.
        plain: the model without what is removed, uncompensated.
        aim: what the cost model was asked for, kind -> fraction: the target, except for a latency
            or file size that it predicts wrongly.
        trials: divergence of each allocation that was tried, by name.
    """

    candidate: Candidate
    plain: CutModel
    aim: Mapping[str, float]
    trials: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Search:
    """The search for what to remove for one target.

    A group whose cut the graph cannot express, or for which the certificate fails, is not cut,
    and the allocation is made again without it.

    Attributes:
        workspace: the model.
        ranked: its groups with removal orders and error curves.
        cost: the cost model.
        method: criterion, compensation and options.
        context: how to run models.
        target: kind -> fraction of the original that is to remain.
        informed: the groups ranked by Fisher information, for a few allocations more.
        names: of the allocations that are tried; empty for all there are.
        dropped: groups that are not cut, with the reason; filled by the search.
    """

    workspace: Workspace
    ranked: Sequence[RankedGroup]
    cost: CostModel
    method: Method
    context: RunContext
    target: Mapping[str, float]
    informed: Informed = field(default_factory=Informed)
    names: Sequence[str] = ()
    dropped: dict[str, str] = field(default_factory=dict)

    def choose(self) -> Choice:
        """Choose the allocation that diverges least, at the measured latency and file size.

        Raises:
            NothingPrunable: when no group is left, or (TargetUnreachable) the target is out of
                reach.
        """
        if not self.method.compensation.changes_weights:
            return self._measured(self.target)
        if LATENCY in self.target:
            compared, start = self._rough_aims()
            best, trials = self.best(compared)
            return replace(self._measured(start, best.name), trials=trials)
        first = self._measured(self.target)
        best, trials = self.best(first.aim)
        if best.name == first.candidate.name:
            return replace(first, trials=trials)
        if SIZE not in self.target:
            return replace(first, candidate=best, trials=trials)
        return replace(self._measured(first.aim, best.name), trials=trials)

    def at(self, aim: Mapping[str, float], name: str | None = None) -> Choice:
        """Choose what the cost model says meets an aim.

        Args:
            aim: kind -> fraction to remain.
            name: of the allocation; None for the first.

        Raises:
            NothingPrunable: as for `choose`.
        """
        analysis = self.workspace.reference
        while True:
            candidate = self._first(aim) if name is None else self.candidate(aim, name)
            is_cut = candidate.removal.units or analysis.altered
            if not is_cut and any(share < 1 for share in aim.values()):
                raise NothingPrunable(why_nothing(analysis, self.method.options, self.dropped))
            result = build_or_blame(self.workspace.current, candidate.removal, self.context)
            if isinstance(result, CutModel):
                return Choice(candidate, result, dict(aim))
            self.dropped.update(result)

    def candidates(self, aim: Mapping[str, float]) -> list[Candidate]:
        """Allocations by the options: one, unless several can be tried.

        Groups that several layers read are not cut where the aim can be met without.

        Raises:
            TargetUnreachable: when removing everything that may be removed is not enough.
        """
        return [self._with_lossless(candidate) for candidate in self._allocations(aim)]

    def _first(self, aim: Mapping[str, float]) -> Candidate:
        """The first of the candidates."""
        names = scalings(self._left())
        return self._with_lossless(self._allocations(aim, names[0] if names else None)[0])

    def candidate(self, aim: Mapping[str, float], name: str) -> Candidate:
        """The allocation with a name that `best` has returned for another aim.

        Raises:
            TargetUnreachable: when removing everything that may be removed is not enough.
        """
        scaling = name.removesuffix(_SHARED)
        if scaling != name:
            wider = knapsack_candidates(self._left(), aim, self.cost, scaling)
            return self._with_lossless(Candidate(name, wider[0].removal))
        informed = self._by_information(aim, name)
        if informed:
            return self._with_lossless(informed[0])
        allocations = self._allocations(aim, scaling)
        named = (candidate for candidate in allocations if candidate.name == name)
        return self._with_lossless(next(named, allocations[0]))

    def best(self, aim: Mapping[str, float]) -> tuple[Candidate, dict[str, float]]:
        """Try the allocations, the best also with the groups that several layers read.

        Args:
            aim: kind -> fraction to remain.

        Returns:
            the best and, by name, the divergence of each that was tried.

        Raises:
            TargetUnreachable: when removing everything that may be removed is not enough.
        """
        named = [self.candidate(aim, name) for name in self.names]
        candidates = named or self.candidates(aim)
        if self.workspace.calibration is None or (len(candidates) < 2 and not named):
            return candidates[0], {}
        field = distinct(candidates)[: self._affordable_trials()]
        rounds = list(_ROUNDS if len(field) > _ROUNDS[-1].places else _ROUNDS[-1:])
        results = [self._tried(field, rounds[0])]
        wider = None if named else self._wider(aim, field, results[0])
        if wider is not None:
            field.append(wider)
            results[0] |= self._tried([wider], rounds[0])
        for round_ in rounds[1:]:
            field = going_on(field, results[-1], round_.places)
            if len(field) > 1:
                results.append(self._tried(field, round_))
        best = min(field, key=lambda candidate: results[-1][candidate.name])
        return best, on_one_scale(best.name, results)

    def divergence(self, candidate: Candidate, round_: TrialRound = _ROUNDS[-1]) -> float:
        """Divergence on held-out samples with little effort; infinite where it cannot be built.

        Args:
            candidate: the allocation.
            round_: with how much effort.
        """
        workspace, calibration = self.workspace, self.workspace.calibration
        assert calibration is not None
        batches = trial_batches(workspace, self.cost, round_.factor)
        few = calibration.some(fitted_part(batches))
        quiet, effort = replace(self.context, progress=silent), Effort(round_.settings)
        task = replace(workspace.task(candidate.removal, quiet, effort), calibration=few)
        try:
            trial = self.method.compensation.apply(task)
            found = self._judge.divergence(trial.full.model)
        except (CutError, RuntimeFailure):
            return math.inf
        return math.inf if math.isnan(found) else found  # NaN has no place in an order

    @cached_property
    def _judge(self) -> DivergenceEvaluator:
        """Compares models on the batches that no trial is fitted on, the same in all rounds."""
        calibration = self.workspace.calibration
        assert calibration is not None
        batches = trial_batches(self.workspace, self.cost, _ROUNDS[-1].factor)
        feeds = held_out_part(calibration.some(batches).feeds)
        return DivergenceEvaluator(self.workspace.current.original, feeds, self.context.runtime)

    def _tried(self, field: Sequence[Candidate], round_: TrialRound) -> dict[str, float]:
        """Divergence of each candidate in a round, by name."""
        # tasks that share nothing they change, so that they may run side by side
        tasks = [partial(self.divergence, candidate, round_) for candidate in field]
        running = self.context.progress(tasks, "trying allocations", len(tasks))
        return dict(zip([each.name for each in field], [task() for task in running], strict=True))

    def _wider(
        self, aim: Mapping[str, float], field: Sequence[Candidate], found: Mapping[str, float]
    ) -> Candidate | None:
        """The best allocation by error curves, also with groups that several layers read."""
        local = [entry for entry in field if entry.name not in self.informed.names()]
        if not local or len(self._unshared(aim)) == len(self._left()):
            return None
        best = min(local, key=lambda candidate: found[candidate.name])
        wider = self.candidate(aim, best.name + _SHARED)
        alike = any(not difference(wider.removal, each.removal) for each in field)
        return None if alike else wider

    def _measured(self, aim: Mapping[str, float], name: str | None = None) -> Choice:
        """Adjust the aim until the measured latency, or else the file size, is as asked.

        Without either the aim is taken as it is.
        """
        if LATENCY in self.target:
            return self._in_time(aim, name)
        if SIZE in self.target:
            return self._in_size(aim, name)
        return self.at(aim, name)

    def _rough_aims(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """What to ask the cost model for: one build with the first allocation, one correction.

        Returns:
            an aim at which allocations can be compared, as that one meets it about, and where to
            start with the one that is chosen.
        """
        rule = Secant(LATENCY, self.target[LATENCY], close=TOLERANCE)
        build = partial(self._timed, None, [], _ROUGH_SECONDS)
        attempts = solve_for_target(self.target, build, rule, _ROUGH_ROUNDS)
        nearest = min(attempts, key=lambda each: abs(each.ratios[LATENCY] - rule.asked))
        return nearest.aim, rule.next_aim(attempts, nearest.aim, {}) or nearest.aim

    def _timed(
        self, name: str | None, measured: list[Latency], seconds: float, aim: Mapping[str, float]
    ) -> tuple[Choice, Mapping[str, float]]:
        """Build an allocation for an aim and measure its latency; adds that to a list."""
        choice = self.at({**self.target, LATENCY: aim[LATENCY]}, name)
        original, context = self.workspace.reference, self.context
        latency = measured_latency(original, choice.plain.model, context, seconds)
        measured.append(latency)
        return choice, {LATENCY: latency.ratio}

    def _in_time(self, start: Mapping[str, float], name: str | None) -> Choice:
        measured: list[Latency] = []
        rule = Secant(LATENCY, self.target[LATENCY])
        build = partial(self._timed, name, measured, _LATENCY_SECONDS)
        attempts = solve_for_target(start, build, rule, _LATENCY_ROUNDS)
        best = rule.best(attempts)
        if best is None:
            raise too_slow(rule, attempts, measured, self.context.runtime)
        return best.result

    def _in_size(self, start: Mapping[str, float], name: str | None) -> Choice:
        """Ask for less until the file is as small as asked: surgery may add constants and names."""
        analysis = self.workspace.reference
        whole = analysis.file_bytes or model_bytes(analysis.original)

        def build(aim: Mapping[str, float]) -> tuple[Choice, Mapping[str, float]]:
            choice = self.at(aim, name)
            return choice, {SIZE: model_bytes(choice.plain.model) / whole}

        limit = {SIZE: self.target[SIZE]}
        rule = Excess(limit, factor=_SIZE_FACTOR)
        attempts = solve_for_target(start, build, rule, _SIZE_ROUNDS)
        if rule.is_met(attempts[-1].ratios):
            return attempts[-1].result
        best = min(attempt.ratios[SIZE] for attempt in attempts)
        raise TargetUnreachable(
            f"the target {target_text(limit)} cannot be reached; the best file that was "
            f"built has {target_text({SIZE: best})}"
        )

    def _left(self) -> list[RankedGroup]:
        """The groups that may still be cut."""
        return [ranked for ranked in self.ranked if ranked.group.name not in self.dropped]

    def _unshared(self, aim: Mapping[str, float]) -> list[RankedGroup]:
        """Groups that one layer reads; all where every group has to give up its share."""
        return self._left() if "channels" in aim else without_shared(self._left())

    def _with_lossless(self, candidate: Candidate) -> Candidate:
        multiple = self.method.options.multiple
        return Candidate(candidate.name, self.workspace.with_lossless(candidate.removal, multiple))

    def _allocations(self, aim: Mapping[str, float], scaling: str | None = None) -> list[Candidate]:
        ranked, allocation = self._left(), self.method.options.allocation
        comparable = self.method.criterion.comparable
        simple = simple_candidates(ranked, aim, self.cost, comparable=comparable)
        if allocation != "auto":
            return [candidate for candidate in simple if candidate.name == allocation] or simple[:1]
        try:
            curved = knapsack_candidates(self._unshared(aim), aim, self.cost, scaling)
        except TargetUnreachable:
            curved = []
        curved = curved or knapsack_candidates(ranked, aim, self.cost, scaling)
        if not curved:
            return simple[-1:] if "channels" not in aim else simple[:1]
        if not self.method.compensation.refits_layers:
            return curved[:1]
        return [*curved[:1], *(self._by_information(aim) if scaling is None else []), *curved[1:]]

    def _by_information(self, aim: Mapping[str, float], name: str | None = None) -> list[Candidate]:
        """Allocations by Fisher information, or that of a name; none where that is not enough.

        It knows what a group matters to the answers, however many layers read it.
        """
        left = [entry for entry in self.informed.fisher if entry.group.name not in self.dropped]
        curves = [entry for entry in self.informed.curves if entry.group.name not in self.dropped]
        found: list[Candidate] = []
        try:
            for scaling in curves[0].curves if curves else ():
                if name in (None, scaling):
                    found += knapsack_candidates(curves, aim, self.cost, scaling)
            if left and name in (None, FISHER):
                simple = simple_candidates(left, aim, self.cost, comparable=True)
                found += [Candidate(FISHER, candidate.removal) for candidate in simple[1:]]
        except TargetUnreachable:
            pass
        return found

    def _affordable_trials(self) -> int:
        """How many trials are worth their time: at least two, fewer for large layers."""
        analysis, calibration = self.workspace.current, self.workspace.calibration
        assert calibration is not None
        settings, work = _ROUNDS[0].settings, 1.0
        for layer in replaceable_layers(analysis.model, analysis.coupling):
            groups, _, unknowns = layer.shape
            if unknowns <= settings.largest:
                rows = layer.row_count(layer.output_shape) * len(calibration.feeds)
                rows = min(settings.rows_for(unknowns), rows)
                work += groups * unknowns**2 * (rows + _SOLVE_WORK * unknowns)
        return max(2, int(_TRIAL_WORK / work))


def trial_batches(workspace: Workspace, cost: CostModel, factor: int = 1) -> list[int]:
    """Numbers of the batches that a trial takes: at least two, in turn fitted and held out.

    Args:
        workspace: the model and its batches.
        cost: what one sample takes.
        factor: how many times as many.
    """
    assert workspace.calibration is not None
    feeds = workspace.calibration.feeds
    rows = max(len(next(iter(feeds[0].values()))), 1)
    traced = workspace.current.coupling.facts.first.feed
    macs = feed_bytes(feeds[0]) / max(feed_bytes(traced), 1) * cost.whole["macs"]
    most = max(_TRIAL_BATCHES, _TRIAL_SAMPLES // rows)
    count = max(2, min(most, -int(-_TRIAL_MACS // max(2 * macs, 1))))
    return spread_batches(range(len(feeds)), factor * count)


def measured_latency(
    analysis: Analysis, model: ir.Model, context: RunContext, seconds: float = _LATENCY_SECONDS
) -> Latency:
    """Time a model against the reference model, on the feed it was traced with or its batch.

    Args:
        analysis: of the reference model.
        model: with the same interface.
        context: runtime and progress callback.
        seconds: time to spend.
    """
    specs, traced = input_specs(analysis.original), analysis.coupling.facts.first.feed
    feed = resized_batch(specs, traced, context.runtime.batch)
    work = partial(measure_pair, analysis.original, model, feed, context.runtime, seconds)
    latency: Latency = during(context.progress, "measuring latency", work)
    return latency


def too_slow(
    rule: Secant, attempts: Sequence[Attempt[Any]], measured: Sequence[Latency], runtime: Runtime
) -> TargetUnreachable:
    """The error of a latency that no attempt met; names the lowest that was measured.

    Args:
        rule: with the latency that was asked for.
        attempts: what was built.
        measured: the latency of each.
        runtime: that it was measured with.
    """
    least = min(attempt.ratios[rule.kind] for attempt in attempts)
    busy = ""
    if not all(latency.reliable for latency in measured):
        busy = f"; the machine is too busy to tell: {steadier(runtime.threads)}"
    return TargetUnreachable(
        f"the target {target_text({rule.kind: rule.asked})} cannot be reached; the best that was "
        f"measured is {target_text({rule.kind: least})}{busy}"
    )
