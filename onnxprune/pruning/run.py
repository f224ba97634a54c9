"""A run: one model, prepared once, cut to any target.

    calibrate -> rewrite -> rank -> search -> compensate -> mask, slice, certify

`PruneRun` owns what is the same for every target; `at` does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from onnxprune.allocation.secant import TOLERANCE, Excess, Secant, solve_for_target
from onnxprune.calibration.batches import first_batches, held_out_part
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.moments import Calibration
from onnxprune.cost.cut_cost import CutCost
from onnxprune.cost.latency.measure import Latency
from onnxprune.cost.memory import stored_parameters
from onnxprune.coupling.analysis import Analysis, why_nothing
from onnxprune.coupling.cut import Removal
from onnxprune.coupling.group_view import MaskGradients
from onnxprune.distillation.distil import Distilled
from onnxprune.errors import InputError, NothingPrunable, TargetUnreachable
from onnxprune.importance.removal_order import RankedGroup
from onnxprune.model.runtime import matrix_threads
from onnxprune.model.save import model_bytes
from onnxprune.options import LATENCY, PARAMS, SIZE, target_text
from onnxprune.pruning.blocks import greedy_order, without_blocks
from onnxprune.pruning.build import FAILURES, CutModel, build
from onnxprune.pruning.method import Method
from onnxprune.pruning.prepare import (
    Costs,
    by_information,
    costs_of,
    information,
    loss_gradients,
    rank_by_fisher,
    rank_groups,
    removal_goal,
)
from onnxprune.pruning.search import Choice, Informed, Search, measured_latency, too_slow
from onnxprune.pruning.workspace import Workspace, calibrate, needs_samples, rewrite
from onnxprune.verification.divergence import DivergenceEvaluator

_ROUNDS = 3
"""Times a result is built with full effort where the first misses a measured target."""

_NEGLIGIBLE = 1e-3
"""Excess over a counted target, as a fraction of the original, that does not matter."""

_COMPARED_BATCHES = 8
"""Batches that models are compared on where none are held in memory."""

_PATIENCE = 2
"""Numbers of removed blocks in a row that are no better, after which the search for more ends."""


@dataclass(frozen=True)
class PrunedModel:
    """A smaller model, and how it was chosen.

    Attributes:
        cut: the model, its removal and certificate.
        original: analysis of the original.
        analysis: of the model that the removal refers to: the original, or what is left of it
            without the residual blocks that were removed.
        method: how it was pruned; its options say what has to be repeated to get the same model.
        target: kind -> fraction of the original that was to remain.
        allocation: name of the allocation that was chosen; empty for a replayed plan.
        trials: divergence of each allocation that was tried, by name.
        dropped: groups that were not cut because that failed, with the reason.
        stages: what was removed after each step but the last.
        latency: measured against the original's, where latency was a target.
        ranked: the groups with the removal orders it was chosen from; empty for a replayed plan.
        depths: number of removed blocks -> divergence, for each number that was tried.
        note: what was done differently from what was asked; empty for nothing.
        warnings: what may make the result worthless, each with the next step.
        tuned: how it was fine-tuned; None where it was not.
    """

    cut: CutModel
    original: Analysis
    analysis: Analysis
    method: Method
    target: Mapping[str, float]
    allocation: str = ""
    trials: Mapping[str, float] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    stages: tuple[Removal, ...] = ()
    latency: Latency | None = None
    ranked: tuple[RankedGroup, ...] = ()
    depths: Mapping[int, float] = field(default_factory=dict)
    note: str = ""
    warnings: tuple[str, ...] = ()
    tuned: Distilled | None = None


class PruneRun:
    """One model with everything that does not depend on the target.

    Args:
        analysis: the model.
        method: how to prune it.
        context: samples to fit on, their labels, runtime, seed and progress callback.
        base: the run of the original, where residual blocks were removed from it: targets are
            fractions of its costs; None where `analysis` is that of the original.

    Attributes:
        groups: those that name patterns and gradients leave.
        workspace: the rewritten model.
        cost: what any cut leaves of the counted kinds.

    Raises:
        InputError: for a criterion or compensation that needs samples when there are none.
        NothingPrunable: when there is no group.
    """

    def __init__(
        self, analysis: Analysis, method: Method, context: RunContext, base: PruneRun | None = None
    ) -> None:
        options = method.options
        if context.samples is None and method.criterion.needs_calibration:
            raise needs_samples(f"criterion {method.criterion.name}")
        self.analysis = analysis
        self.method = method
        self.context = context
        with matrix_threads(context.runtime.threads):
            self._calibration = calibrate(analysis, method, context)
            groups = analysis.selected(options.include, options.exclude)
            if not (groups or options.blocks):
                raise NothingPrunable(why_nothing(analysis, options))
            self.workspace = rewrite(analysis, groups, method, self._calibration, context)
            gradients = loss_gradients(self.workspace, groups, method, context)
        self.groups = [group for group in groups if group.name not in gradients.blocked]
        self._base = base
        self._whole: Mapping[str, float] | None = base.cost.whole if base is not None else None
        self.cost: CutCost = CutCost(analysis.model.graph, analysis.coupling, whole=self._whole)
        self._gradients = gradients.gradients
        self._notes = [
            _not_reached(gradients.blocked),
            *self.workspace.notes,
            self._held(),
            _unweighted(self._calibration),
        ]
        self._costs: dict[bool, Costs] = {}
        self._ranked: dict[tuple[float | None, bool], list[RankedGroup]] = {}
        self._information: Mapping[str, MaskGradients] | None = None
        self._informed: dict[bool, Informed] = {}
        self._names: tuple[str, ...] = ()

    def _held(self) -> str:
        """How many samples layers are fitted on, where not all fit into memory; else empty."""
        calibration = self._calibration
        if calibration is None or not calibration.feeds or calibration.samples.count is None:
            return ""
        rows = [calibration.samples.axes.rows(feed) or 1 for feed in calibration.feeds]
        held, count = sum(rows) // (1 + len(self.method.options.augment)), calibration.samples.count
        if held >= count:
            return ""
        return f"layers are fitted on {held} of the {count} samples: more do not fit into memory"

    def at(self, target: Mapping[str, float]) -> PrunedModel:
        """Choose what to remove for a target, compensate, cut and verify.

        Args:
            target: kind -> fraction of the original that is to remain.

        Raises:
            NothingPrunable: when no group is left, or (TargetUnreachable) the target is out of
                reach.
            VerificationError: when no valid result could be built.
        """
        with matrix_threads(self.context.runtime.threads):
            if not self.method.options.blocks or "channels" in target:
                return self._pruned(target, {})
            run, depths = self._best_depth(target)
            return run._pruned(target, depths)

    def among(self, names: Sequence[str]) -> PruneRun:
        """The same run, with all it knows, trying only some allocations.

        Args:
            names: as in `PrunedModel.trials`.
        """
        run = copy(self)
        run._names = tuple(names)
        return run

    def trials(self, target: Mapping[str, float]) -> Mapping[str, float]:
        """Divergence of each allocation that is tried for a target; nothing is built of it.

        Raises:
            NothingPrunable: as `at`.
        """
        with matrix_threads(self.context.runtime.threads):
            return self._search(target).choose().trials

    def evaluator(self) -> DivergenceEvaluator:
        """Compares models with the original on batches that were not fitted."""
        feeds = self._calibration.feeds if self._calibration is not None else ()
        if not feeds and self.context.samples is not None:
            feeds = first_batches(self.context.samples, _COMPARED_BATCHES)
        return DivergenceEvaluator(self.analysis.model, held_out_part(feeds), self.context.runtime)

    def ranked(self, target: Mapping[str, float]) -> list[RankedGroup]:
        """The groups with their removal orders for a target; ranked once for targets alike."""
        key = removal_goal(target), LATENCY in target
        if key not in self._ranked:
            with matrix_threads(self.context.runtime.threads):
                self._ranked[key] = self._rank(self.workspace, self._gradients, target)
        return self._ranked[key]

    def _rank(
        self, workspace: Workspace, gradients: Mapping[str, Any], target: Mapping[str, float]
    ) -> list[RankedGroup]:
        ranked = rank_groups(workspace, self.groups, gradients, target, self.method, self.context)
        return self._bundled(ranked, target)

    def _bundled(
        self, ranked: Sequence[RankedGroup], target: Mapping[str, float]
    ) -> list[RankedGroup]:
        """The same in steps of as many units as kernels compute together."""
        multiples = self._costs_for(target).multiples
        finer = self.method.options.round_to == "auto"
        return [entry.bundled(multiples.get(entry.group.name, 1), finer=finer) for entry in ranked]

    def _costs_for(self, target: Mapping[str, float]) -> Costs:
        """The cost model for a target; kernels are timed once, and only where latency counts."""
        timed = LATENCY in target
        if timed not in self._costs:
            round_to = self.method.options.round_to
            self._costs[timed] = costs_of(
                self.analysis, self.groups, round_to, self.context, self._whole, timed=timed
            )
        return self._costs[timed]

    def _search(
        self,
        target: Mapping[str, float],
        workspace: Workspace | None = None,
        ranked: Sequence[RankedGroup] | None = None,
    ) -> Search:
        """The search for a target, in the whole model or after some steps."""
        whole = workspace is None or workspace is self.workspace
        informed = self._by_gradients(target) if whole else Informed()
        return Search(
            workspace or self.workspace,
            self.ranked(target) if ranked is None else ranked,
            self._costs_for(target).model,
            self.method,
            self.context,
            target,
            informed,
            self._names,
        )

    def _by_gradients(self, target: Mapping[str, float]) -> Informed:
        """Rankings by Fisher information, where allocations are tried; none without gradients."""
        if "channels" in target:
            return Informed()
        known = self._known_information()
        if not known:
            return Informed()
        timed = LATENCY in target
        if timed not in self._informed:
            fisher = rank_by_fisher(self.workspace, self.groups, known, self.method, self.context)
            curves = by_information(self.ranked(target), known)
            self._informed[timed] = Informed(self._bundled(fisher, target), curves)
        return self._informed[timed]

    def _known_information(self) -> Mapping[str, MaskGradients]:
        if self._information is None:
            self._information = {}
            try:
                known = information(self.workspace, self.groups, self.method, self.context)
                self._information = known.gradients
                self._notes.append(_not_informed(known.blocked))
            except InputError as error:
                self._notes.append(f"no allocation by Fisher information was tried: {error}")
        return self._information

    def _pruned(self, target: Mapping[str, float], depths: Mapping[int, float]) -> PrunedModel:
        search, stages = self._after_steps(target)
        choice = search.choose()
        latency = None
        if self.method.compensation.changes_weights:
            try:
                cut, latency = self._compensated(search, choice)
            except FAILURES as error:
                return self._with_weaker_compensation(target, depths, error)
        else:
            cut = choice.plain
        return PrunedModel(
            cut,
            self._base.analysis if self._base is not None else self.analysis,
            self.analysis,
            self.method,
            target,
            choice.candidate.name,
            choice.trials,
            search.dropped,
            stages,
            latency,
            tuple(search.ranked),
            depths,
            "; ".join(dict.fromkeys(filter(None, self._notes))),
        )

    def _with_weaker_compensation(
        self, target: Mapping[str, float], depths: Mapping[int, float], error: Exception
    ) -> PrunedModel:
        """Choose again, so that the plan says what is in the model and can be replayed."""
        run = PruneRun(self.analysis, self.method.weaker(), self.context, self._base)
        pruned = run._pruned(target, depths)
        failed = f"{self.method.compensation.name} compensation was not possible: {error}"
        note = "; ".join(filter(None, (failed, pruned.note)))
        weaker = (
            f"compensation {self.method.compensation.name} was asked for and was not possible, so "
            f"{run.method.compensation.name} was used: compare the result with --labels or "
            "`onnxprune verify`, or leave out the group that the note names with --exclude"
        )
        return replace(pruned, note=note, warnings=(weaker, *pruned.warnings))

    def _after_steps(self, target: Mapping[str, float]) -> tuple[Search, tuple[Removal, ...]]:
        """Take all steps but the last: prune a little, compensate, rank what is left again.

        Steps are even in proportion: of n steps towards a fraction s, the k-th keeps s^(k / n).
        """
        steps = self.method.options.steps
        workspace, ranked, gradients = self.workspace, None, self._gradients
        stages = []
        for number in range(1, steps):
            partial = {kind: share ** (number / steps) for kind, share in target.items()}
            if number > 1:
                ranked = self._rank(workspace, gradients, partial)
            choice = self._search(partial, workspace, ranked).choose()
            task = workspace.task(choice.candidate.removal, self.context, self.method.effort)
            compensated = self.method.compensation.apply(task)
            stages.append(compensated.removal)
            workspace = workspace.after_step(compensated, self.context)
            gradients = loss_gradients(workspace, self.groups, self.method, self.context).gradients
        if stages:
            ranked = self._rank(workspace, gradients, target)
        return self._search(target, workspace, ranked), tuple(stages)

    def _compensated(self, search: Search, choice: Choice) -> tuple[CutModel, Latency | None]:
        """Build with full effort; again with another aim where a measured target is missed.

        Raises:
            TargetUnreachable: when it is missed still.
        """
        if LATENCY in search.target:
            return self._in_time(search, choice)
        target = {kind: share for kind, share in search.target.items() if kind in (PARAMS, SIZE)}

        def build(aim: Mapping[str, float]) -> tuple[CutModel, Mapping[str, float]]:
            cut = self._built(search, self._choice_at(search, choice, aim))
            return cut, self._stored_shares(cut, target)

        rule = Excess(target, _NEGLIGIBLE)
        attempts = solve_for_target(choice.aim, build, rule, _ROUNDS)
        last = attempts[-1]
        if rule.is_met(last.ratios):
            return last.result, None
        best = {kind: last.ratios[kind] for kind in rule.excess(last.ratios)}
        asked = {kind: target[kind] for kind in best}
        raise TargetUnreachable(
            f"the target {target_text(asked)} cannot be reached with the biases that compensation "
            f"adds; the best that was built has {target_text(best)}"
        )

    def _in_time(self, search: Search, choice: Choice) -> tuple[CutModel, Latency]:
        """Build with full effort at the latency asked for."""

        def build(aim: Mapping[str, float]) -> tuple[tuple[CutModel, Latency], Mapping[str, float]]:
            cut = self._built(search, self._choice_at(search, choice, aim))
            latency = measured_latency(self.analysis, cut.model, self.context)
            return (cut, latency), {LATENCY: latency.ratio}

        rule = Secant(LATENCY, search.target[LATENCY], close=TOLERANCE)
        start = {**search.target, LATENCY: choice.aim[LATENCY]}
        attempts = solve_for_target(start, build, rule, _ROUNDS)
        best = rule.best(attempts)
        if best is None:
            measured = [attempt.result[1] for attempt in attempts]
            raise too_slow(rule, attempts, measured, self.context.runtime)
        return best.result

    @staticmethod
    def _choice_at(search: Search, choice: Choice, aim: Mapping[str, float]) -> Choice:
        """The same allocation for another aim."""
        return choice if aim == choice.aim else search.at(aim, choice.candidate.name)

    def _stored_shares(self, cut: CutModel, kinds: Collection[str]) -> dict[str, float]:
        """Fractions of the original that are stored in a model, biases that were added included."""
        analysis = self.analysis
        shares = {}
        if PARAMS in kinds:
            shares[PARAMS] = stored_parameters(cut.model.graph) / max(self.cost.whole[PARAMS], 1)
        if SIZE in kinds:
            whole = analysis.file_bytes or model_bytes(analysis.original)
            shares[SIZE] = model_bytes(cut.model) / whole
        return shares

    def _built(self, search: Search, choice: Choice) -> CutModel:
        """Build with full effort; what is not cut stays as it was, bit for bit."""
        workspace, removal = search.workspace, choice.candidate.removal
        options, context = self.method.options, self.context
        if options.steps == 1 and not set(workspace.aligned) <= removal.units.keys():
            groups = [group for group in self.groups if group.name in removal.units]
            workspace = rewrite(self.analysis, groups, self.method, self._calibration, context)
        return build(workspace, removal, self.method, context)

    def _best_depth(self, target: Mapping[str, float]) -> tuple[PruneRun, dict[int, float]]:
        """Remove the residual blocks whose absence leaves more to the rest than it costs.

            n* = argmin over n of  D(n)

        D(n) is how far the outputs diverge, on samples that were not fitted, when n blocks are
        replaced by their mean, what is left of the budget is met by widths, and layers are
        re-fitted. Blocks are removed in greedy order.

        Returns:
            the run without some blocks, this one when none is removed; and number of removed
            blocks -> divergence, infinite where the target was out of reach.
        """
        options = self.method.options
        best, (scaling, least) = self, self._divergence(target, None)
        divergences = {0: least}
        worse = 0
        for removed in greedy_order(self.workspace, self.cost, target, options, self.context):
            fewer = self._without([block.name for block in removed])
            if fewer is None:
                continue
            name, divergence = fewer._divergence(target, scaling)
            divergences[len(removed)] = divergence
            scaling = scaling or name
            if divergence < least:
                best, least, worse = fewer, divergence, 0
            else:
                worse += math.isfinite(least)
            if worse == _PATIENCE or fewer._is_met(target):
                break
        return best, divergences

    def _without(self, blocks: Sequence[str]) -> PruneRun | None:
        """The same run without some blocks; None where nothing can be cut then."""
        normalised = self.method.options.normalised_axes
        analysis = without_blocks(self.analysis, blocks, self.context, normalised_axes=normalised)
        try:
            return PruneRun(analysis, self.method, self.context, self)
        except NothingPrunable:
            return None

    def _divergence(
        self, target: Mapping[str, float], scaling: str | None
    ) -> tuple[str | None, float]:
        """The best allocation, or the one of a name, and its divergence; infinite for none."""
        search = self._search(target)
        try:
            search.at(target, scaling)
            if scaling is not None:
                return scaling, search.divergence(search.candidate(target, scaling))
            best, _ = search.best(target)
        except NothingPrunable:
            return None, float("inf")
        return best.name, search.divergence(best)

    def _is_met(self, target: Mapping[str, float]) -> bool:
        """Whether the model meets a target before anything is cut."""
        now, whole = self.cost.after(()), self.cost.whole
        return all(
            kind in whole and now[kind] <= share * whole[kind] for kind, share in target.items()
        )


def replay(
    original: Analysis,
    analysis: Analysis,
    removal: Removal,
    method: Method,
    context: RunContext,
    stages: Sequence[Removal] = (),
) -> PrunedModel:
    """Carry out a removal that was chosen before.

    Args:
        original: analysis of the original.
        analysis: of the model it was chosen for: the original, or that without some blocks.
        removal: what to remove.
        method: of the run that chose it.
        context: samples of that run, runtime, seed and progress callback.
        stages: what was removed after each step but the last.

    Raises:
        CutError: when the graph cannot express it.
        VerificationError: when a check fails.
        RuntimeFailure: when onnxruntime refuses one of the models.
    """
    options = method.options
    with matrix_threads(context.runtime.threads):
        calibration = calibrate(analysis, method, context)
        if options.steps > 1:
            groups = analysis.selected(options.include, options.exclude)
        else:
            groups = [group for group in analysis.groups if group.name in removal.units]
        workspace = rewrite(analysis, groups, method, calibration, context)
        for stage in stages:
            task = workspace.task(stage, context, method.effort)
            compensated = method.compensation.apply(task)
            workspace = workspace.after_step(compensated, context)
        cut = build(workspace, removal, method, context, replay=True)
    return PrunedModel(cut, original, analysis, method, options.target, stages=tuple(stages))


def _not_informed(blocked: Mapping[str, str]) -> str:
    """What a run says about groups whose Fisher information is not known."""
    if not blocked:
        return ""
    names, reasons = ", ".join(sorted(blocked)), "; ".join(sorted(set(blocked.values())))
    return f"no allocation by Fisher information cuts {names}: {reasons}"


def _unweighted(calibration: Calibration | None) -> str:
    """What a run says about layers whose errors count alike for lack of gradients."""
    sensitivity = calibration.sensitivity if calibration is not None else None
    if sensitivity is None or not sensitivity.blocked:
        return ""
    known, reasons = len(sensitivity.rows), sorted(set(sensitivity.blocked.values()))
    count = f"{len(sensitivity.blocked)} of {known + len(sensitivity.blocked)}" if known else "all"
    return (
        f"in {count} layers errors count alike at every place, whatever the answers make of them: "
        f"{'; '.join(reasons)}"
    )


def _not_reached(blocked: Mapping[str, str]) -> str:
    """What a run says about groups without gradients."""
    if not blocked:
        return ""
    names, reasons = sorted(blocked), sorted(set(blocked.values()))
    return (
        f"not pruned: {', '.join(names)} (no gradient reaches these units: {'; '.join(reasons)}); "
        "another criterion can cut them"
    )
