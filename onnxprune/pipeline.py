"""The whole path of a run: calibrate, rewrite, rank, choose, build, roll back.

Everything up to the ranking is the same for every target (`Ready`), so that runs with several
targets share it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.analysis import Analysis, why_nothing
from onnxprune.building import Built, attempt, build, finish
from onnxprune.calibration.augment import augmented
from onnxprune.calibration.sweep import sweep_batches
from onnxprune.compensation import Calibration
from onnxprune.cost.shapes import CutCost
from onnxprune.coupling.cut import CutError
from onnxprune.errors import InputError, NothingPrunable, RuntimeFailure, VerificationError
from onnxprune.importance import find_criterion
from onnxprune.preparation import Prepared, prepare
from onnxprune.progress import silent
from onnxprune.ranking import rank, statistics_of
from onnxprune.search import Search
from onnxprune.threads import matrix_threads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxprune.allocate.candidates import Ranked
    from onnxprune.allocate.choose import Removal
    from onnxprune.calibration.samples import Samples
    from onnxprune.coupling.groups import Group
    from onnxprune.options import Options
    from onnxprune.progress import Progress

__all__ = ["Ready", "calibrate", "get_ready", "prune_model", "prune_ready", "rebuild"]


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
    """

    analysis: Analysis
    options: Options
    samples: Samples | None
    groups: Sequence[Group]
    measured: Calibration | None
    prepared: Prepared
    ranked: Sequence[Ranked]
    cost: CutCost


def calibrate(
    analysis: Analysis, options: Options, samples: Samples | None, progress: Progress[Any] = silent
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
    moments = statistics_of(analysis, samples, options, progress)
    walks = options.compensate == "least-squares" or getattr(criterion, "measures_curves", False)
    first = analysis.coupling.facts.first
    feeds = sweep_batches(samples, analysis.model, first, 1 + len(options.augment)) if walks else []
    if options.augment and walks:
        if isinstance((samples.specs[0].shape or (None,))[0], int):
            raise InputError("augmentation adds to every batch, but the model fixes its size")
        rng = np.random.default_rng(options.seed)
        feeds = [augmented(feed, options.augment, rng) for feed in feeds]
    return Calibration(samples, moments, feeds)


def get_ready(
    analysis: Analysis,
    options: Options,
    samples: Samples | None = None,
    progress: Progress[Any] = silent,
) -> Ready:
    """Calibrate, rewrite and rank.

    Raises:
        InputError: for a criterion or compensation that needs calibration when there is none.
        NothingPrunable: when there is no group.
    """
    # who carries out a plan ranks nothing, and needs no samples for the criterion it was made with
    if samples is None and find_criterion(options.criterion).needs_calibration:
        raise _needs_samples(f"criterion {options.criterion}")
    with matrix_threads(options.runtime.threads):
        measured = calibrate(analysis, options, samples, progress)
        groups = analysis.selected(options.include, options.exclude)
        if not groups:
            raise NothingPrunable(why_nothing(analysis, options))
        prepared = prepare(analysis, groups, options, measured, progress)
        ranked = _ranked(prepared, groups, options, progress)
    cost = CutCost(analysis.model.graph, analysis.coupling)
    return Ready(analysis, options, samples, groups, measured, prepared, ranked, cost)


def prune_ready(
    ready: Ready, target: Mapping[str, float] | None = None, progress: Progress[Any] = silent
) -> Built:
    """Choose, compensate, cut and verify.

    A group whose cut the graph cannot express, or for which the certificate fails, is left whole,
    and the choice is made again without it.

    Args:
        ready: the model.
        target: kind -> fraction to remain; None for that of the options.
        progress: told about long loops.

    Raises:
        NothingPrunable: when no group is left, or (TargetUnreachable) the target is out of reach.
        VerificationError: when no valid result could be built.
    """
    with matrix_threads(ready.options.runtime.threads):
        if target is not None and dict(target) != dict(ready.options.target):
            ready = _aimed_at(ready, target, progress)
        return _pruned(ready, progress)


def prune_model(
    analysis: Analysis,
    options: Options,
    samples: Samples | None = None,
    progress: Progress[Any] = silent,
) -> Built:
    """Do all of it for one target; see `get_ready` and `prune_ready`."""
    return prune_ready(get_ready(analysis, options, samples, progress), None, progress)


def rebuild(
    analysis: Analysis,
    removal: Removal,
    options: Options,
    samples: Samples | None = None,
    progress: Progress[Any] = silent,
) -> Built:
    """Carry out a removal that was chosen before.

    Raises:
        CutError: when the graph cannot express it.
        VerificationError: when a check fails.
        RuntimeFailure: when onnxruntime refuses one of the models.
    """
    with matrix_threads(options.runtime.threads):
        calibration = calibrate(analysis, options, samples, progress)
        groups = [group for group in analysis.groups if group.name in removal.classes]
        prepared = prepare(analysis, groups, options, calibration, progress)
        return build(prepared.analysis, removal, options, prepared.calibration, progress)


def _needs_samples(what: str) -> InputError:
    return InputError(f"{what} looks at activations; give --calibration")


def _ranked(
    prepared: Prepared, groups: Sequence[Group], options: Options, progress: Progress[Any]
) -> list[Ranked]:
    calibration = prepared.calibration
    moments = calibration.moments if calibration is not None else {}
    feeds = calibration.feeds if calibration is not None else ()
    return rank(prepared.analysis, groups, options, moments, feeds, prepared.lossless, progress)


def _aimed_at(ready: Ready, target: Mapping[str, float], progress: Progress[Any]) -> Ready:
    """The same model for another target; only orders made for a fraction of channels change."""
    options = replace(ready.options, target=dict(target))
    if "channels" in {*target, *ready.options.target}:
        ranked: Sequence[Ranked] = _ranked(ready.prepared, ready.groups, options, progress)
    else:
        ranked = ready.ranked
    return replace(ready, options=options, ranked=ranked)


def _pruned(ready: Ready, progress: Progress[Any]) -> Built:
    options, prepared = ready.options, ready.prepared
    plain = replace(options, compensate="none")
    dropped: dict[str, str] = {}
    while True:
        left = [one for one in ready.ranked if one.group.name not in dropped]
        search = Search(prepared, left, options, ready.cost)
        ways = search.first_ways()
        if not ways[0].removal.classes and any(share < 1 for share in options.target.values()):
            raise NothingPrunable(why_nothing(ready.analysis, options, dropped))
        outcome = attempt(prepared.analysis, ways[0].removal, plain)
        if isinstance(outcome, Built):
            break
        dropped |= outcome
    if options.compensate == "none":
        return replace(outcome, dropped=dropped, allocation=ways[0].name)
    best, trials = search.best(ways, prepared.calibration, progress)
    if not set(prepared.aligned) <= best.removal.classes.keys():
        # What is not cut stays as it was, bit for bit.
        cut = [group for group in ready.groups if group.name in best.removal.classes]
        prepared = prepare(ready.analysis, cut, options, ready.measured, progress)
    try:
        built = finish(prepared.analysis, best.removal, options, prepared.calibration, progress)
    except (CutError, VerificationError, RuntimeFailure) as error:
        # Chosen anew, so that the plan says what is in the model and can be carried out again.
        lesser = "mean" if options.compensate == "least-squares" else "none"
        weaker = replace(options, compensate=lesser)
        built = _pruned(get_ready(ready.analysis, weaker, ready.samples, progress), progress)
        note = f"{options.compensate} compensation was not possible: {error}"
        return replace(built, note="; ".join(filter(None, (note, built.note))))
    return replace(built, dropped=dropped, allocation=best.name, trials=trials)
