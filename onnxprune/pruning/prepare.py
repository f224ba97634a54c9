"""How far models are from the original, on the samples that judge trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.augment import augmented
from onnxprune.calibration.batches import first_batches, held_out_part, load_held_batches
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.moments import Calibration
from onnxprune.calibration.streams import Samples
from onnxprune.compensation.compensate import Compensated
from onnxprune.cost.cut_cost import CutCost
from onnxprune.cost.kinds import CostModel
from onnxprune.cost.latency.table import LatencyTable, group_multiples
from onnxprune.coupling.activation_statistics import statistics_of, tap_of
from onnxprune.coupling.analysis import Analysis, why_nothing
from onnxprune.coupling.group_view import MaskGradients
from onnxprune.coupling.groups import Group
from onnxprune.errors import InputError, NothingPrunable
from onnxprune.gradients.losses import Objective
from onnxprune.gradients.masks import GroupGradients, mask_gradients
from onnxprune.importance.criterion import RankingInputs
from onnxprune.importance.ranked import RankedGroup
from onnxprune.importance.registry import find_criterion
from onnxprune.model.runtime import matrix_threads
from onnxprune.options import LATENCY, PruneOptions
from onnxprune.progress import Progress, during, silent
from onnxprune.pruning.rewrite import Prepared, after, prepare

_BATCHES = 8


def held_out_batches(ready: Ready) -> Sequence[Mapping[str, NDArray[Any]]]:
    """Every second batch that is in memory, else of the first samples; the only one where it is.

    Raises:
        CalibrationError: for unusable samples.
    """
    feeds = ready.measured.feeds if ready.measured is not None else ()
    if not feeds and ready.samples is not None:
        feeds = first_batches(ready.samples, _BATCHES)
    return held_out_part(feeds)


@dataclass(frozen=True)
class Ready:
    """A model from which any target can be cut.

    Attributes:
        analysis: the original.
        options: of the run; their target is the one that orders of removal were made for.
        samples: None without calibration.
        groups: what include and exclude leave.
        measured: what the samples told of the original; None without.
        prepared: the model, rewritten.
        ranked: the groups with their removal orders.
        cost: what any cut would cost.
        multiples: how many units each group keeps a multiple of, by name; 1 where nothing is said.
        gradients: of the loss with respect to masks of the units, by group name; empty unless the
            criterion needs them.
        note: what was left out of `groups`, and why; empty for nothing.
    """

    analysis: Analysis
    options: PruneOptions
    samples: Samples | None
    groups: Sequence[Group]
    measured: Calibration | None
    prepared: Prepared
    ranked: Sequence[RankedGroup]
    cost: CostModel
    multiples: Mapping[str, int]
    gradients: Mapping[str, MaskGradients] = field(default_factory=dict)
    note: str = ""


def calibrate(
    analysis: Analysis,
    options: PruneOptions,
    samples: Samples | None,
    progress: Progress[Any] = silent,
    labels: NDArray[Any] | None = None,
) -> Calibration | None:
    """Collect from the samples what criterion and compensation need; None without samples.

    Raises:
        InputError: for a compensation that needs calibration when there is none.
        CalibrationError: for unusable samples.
    """
    criterion = find_criterion(options.criterion)
    if samples is None:
        if options.compensate != "none":
            raise _needs_samples(f"compensation {options.compensate}")
        return None
    moments = statistics_of(
        analysis, RunContext(samples, None, options.runtime, options.seed, progress)
    )
    walks = options.compensate == "least-squares" or criterion.measures_curves
    first = analysis.coupling.facts.first
    feeds = (
        load_held_batches(samples, analysis.model, first, 1 + len(options.augment)) if walks else []
    )
    if options.augment and walks:
        if isinstance((samples.specs[0].shape or (None,))[0], int):
            raise InputError("augmentation adds to every batch, but the model fixes its size")
        rng = np.random.default_rng(options.seed)
        feeds = [augmented(feed, options.augment, rng) for feed in feeds]
    return Calibration(samples, moments, feeds, labels)


def prepare_run(
    analysis: Analysis,
    options: PruneOptions,
    samples: Samples | None = None,
    progress: Progress[Any] = silent,
    labels: NDArray[Any] | None = None,
    whole: Mapping[str, float] | None = None,
) -> Ready:
    """Calibrate, rewrite and rank.

    Args:
        analysis: the original.
        options: of the run.
        samples: None without calibration.
        progress: told about long loops.
        labels: of what the samples came from, for the loss of a criterion by gradients; None to
            draw them from the outputs.
        whole: costs that the target's fractions refer to; None for those of the model.

    Raises:
        InputError: for a criterion or compensation that needs calibration when there is none.
        NothingPrunable: when there is no group.
    """
    # who carries out a plan ranks nothing, and needs no samples for the criterion it was made with
    if samples is None and find_criterion(options.criterion).needs_calibration:
        raise _needs_samples(f"criterion {options.criterion}")
    with matrix_threads(options.runtime.threads):
        measured = calibrate(analysis, options, samples, progress, labels)
        groups = analysis.selected(options.include, options.exclude)
        if not (groups or options.blocks):
            raise NothingPrunable(why_nothing(analysis, options))
        prepared = prepare(analysis, groups, options, measured, progress)
        cost, multiples = _costs(analysis, groups, options, progress, whole)
        found = _gradients(prepared, groups, options, progress)
        groups = [group for group in groups if group.name not in found.blocked]
        ranked = _ranked(prepared, groups, options, multiples, found.gradients, progress)
    return Ready(
        analysis,
        options,
        samples,
        groups,
        measured,
        prepared,
        ranked,
        cost,
        multiples,
        found.gradients,
        _left_whole(found.blocked),
    )


def retarget(ready: Ready, target: Mapping[str, float], progress: Progress[Any]) -> Ready:
    """The same model for another target; ranked anew where orders depend on it."""
    options = replace(ready.options, target=dict(target))
    kinds = {*target, *ready.options.target}
    timed = LATENCY in target and LATENCY not in ready.options.target
    cost, multiples = ready.cost, ready.multiples
    if timed:
        cost, multiples = _costs(ready.analysis, ready.groups, options, progress)
    ranked = ready.ranked
    if timed or "channels" in kinds:
        ranked = _ranked(
            ready.prepared, ready.groups, options, multiples, ready.gradients, progress
        )
    return replace(ready, options=options, ranked=ranked, cost=cost, multiples=multiples)


def rerank_after_step(ready: Ready, compensated: Compensated, progress: Progress[Any]) -> Ready:
    """Rank anew on what is left after a removal; what is gone goes first from now on.

    Layers that are solved later still aim at what the original computes.
    """
    prepared = after(ready.prepared, compensated, ready.options, progress)
    slopes = _gradients(prepared, ready.groups, ready.options, progress).gradients
    ranked = _ranked(prepared, ready.groups, ready.options, ready.multiples, slopes, progress)
    return replace(ready, prepared=prepared, ranked=ranked, gradients=slopes)


def _needs_samples(what: str) -> InputError:
    return InputError(f"{what} looks at activations; give --calibration")


def _costs(
    analysis: Analysis,
    groups: Sequence[Group],
    options: PruneOptions,
    progress: Progress[Any],
    whole: Mapping[str, float] | None = None,
) -> tuple[CostModel, dict[str, int]]:
    """What a cut would cost, and the multiples that groups keep; timed only for latency."""
    graph, coupling = analysis.model.graph, analysis.coupling
    multiples = {}
    if isinstance(options.round_to, int):
        multiples = {group.name: options.round_to for group in groups}
    if LATENCY not in options.target:
        return CutCost(graph, coupling, whole=whole), multiples
    table = LatencyTable(analysis.model, coupling.facts, options.runtime)
    if options.round_to == "auto":
        work = partial(group_multiples, table, graph, coupling, groups)
        multiples = during(progress, "timing kernels", work)
    return CutCost(graph, coupling, {LATENCY: table.seconds}, whole), multiples


def _gradients(
    prepared: Prepared, groups: Sequence[Group], options: PruneOptions, progress: Progress[Any]
) -> GroupGradients:
    """Gradients of units that become zero, or their mean where that is made up for."""
    calibration = prepared.calibration
    needed = find_criterion(options.criterion).needs_gradients
    if calibration is None or not groups or not needed:
        return GroupGradients({}, {})
    means = {}
    if options.compensate != "none":
        taps = {
            one: tap_of(prepared.analysis.coupling, one)
            for group in groups
            for one in group.readings
        }
        known = calibration.moments
        means = {one: known[tap].mean for one, tap in taps.items() if tap in known}
    return mask_gradients(
        prepared.analysis.model,
        groups,
        calibration.samples,
        Objective(options.loss, calibration.labels),
        RunContext(runtime=options.runtime, seed=options.seed, progress=progress),
        means,
    )


def _left_whole(blocked: Mapping[str, str]) -> str:
    """What a run says about groups without gradients."""
    if not blocked:
        return ""
    names, reasons = sorted(blocked), sorted(set(blocked.values()))
    return (
        f"left whole: {', '.join(names)}, as gradients do not get there ({'; '.join(reasons)}); "
        "another criterion can cut them"
    )


def _ranked(
    prepared: Prepared,
    groups: Sequence[Group],
    options: PruneOptions,
    multiples: Mapping[str, int],
    gradients: Mapping[str, MaskGradients],
    progress: Progress[Any],
) -> list[RankedGroup]:
    goal = 1 - options.target["channels"] if options.target.keys() == {"channels"} else None
    inputs = RankingInputs(
        prepared.analysis,
        RunContext(runtime=options.runtime, seed=options.seed, progress=progress),
        prepared.calibration,
        gradients,
        prepared.lossless,
        goal,
    )
    ranked = find_criterion(options.criterion).rank(inputs, groups)
    finer = options.round_to == "auto"
    return [each.bundled(multiples.get(each.group.name, 1), finer=finer) for each in ranked]
