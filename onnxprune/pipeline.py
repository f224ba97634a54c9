"""The whole path of a run: rank, choose, compensate, cut, certify, roll back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.allocate.choose import Removal
from onnxprune.analysis import Analysis, why_nothing
from onnxprune.calibration.augment import augmented
from onnxprune.calibration.sweep import sweep_batches
from onnxprune.compensation import Calibration, Compensated, compensate
from onnxprune.cost.shapes import CutCost
from onnxprune.coupling.cut import Cut, CutError
from onnxprune.errors import InputError, NothingPrunable, RuntimeFailure, VerificationError
from onnxprune.importance import find_criterion
from onnxprune.model.execution import Execution
from onnxprune.preparation import prepare
from onnxprune.progress import silent
from onnxprune.ranking import rank, statistics_of
from onnxprune.search import Search
from onnxprune.surgery.slicing import slice_removed, zero_removed
from onnxprune.surgery.statistics import keep_statistics, restrict_statistics
from onnxprune.threads import matrix_threads
from onnxprune.verification.certificate import Certificate, certify, tolerance_for
from onnxprune.verification.gates import check_result

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from onnxprune.calibration.samples import Samples
    from onnxprune.options import Options
    from onnxprune.passes.least_squares import Repair
    from onnxprune.progress import Progress

__all__ = ["Built", "calibrate", "prune_model", "rebuild"]


@dataclass(frozen=True)
class Built:
    """A result that passed every check.

    Attributes:
        model: the smaller model.
        removal: what was removed.
        certificate: the comparison with the masked model.
        dropped: groups left whole because the graph could not follow their cut, with the reason.
        repairs: what became of the layers that were to be solved anew.
        allocation: name of the way the removal was spread over the groups.
        trials: divergence measured for each way that was tried.
        note: what had to be done differently from what was asked, empty for nothing.
        compensate: the compensation that is in the model.
    """

    model: ir.Model
    removal: Removal
    certificate: Certificate
    dropped: Mapping[str, str] = field(default_factory=dict)
    repairs: tuple[Repair, ...] = ()
    allocation: str = ""
    trials: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    compensate: str = "none"


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


def prune_model(
    analysis: Analysis,
    options: Options,
    samples: Samples | None = None,
    progress: Progress[Any] = silent,
) -> Built:
    """Rank, choose, compensate, cut and verify.

    A group whose cut the graph cannot express, or for which the certificate fails, is left whole,
    and the choice is made again without it.

    Raises:
        InputError: for a criterion or compensation that needs calibration when there is none.
        NothingPrunable: when no group is left, or (TargetUnreachable) the target is out of reach.
        VerificationError: when no valid result could be built.
    """
    with matrix_threads(options.runtime.threads):
        return _pruned(analysis, options, samples, progress)


def _pruned(
    analysis: Analysis, options: Options, samples: Samples | None, progress: Progress[Any]
) -> Built:
    # who carries out a plan ranks nothing, and needs no samples for the criterion it was made with
    if samples is None and find_criterion(options.criterion).needs_calibration:
        raise _needs_samples(f"criterion {options.criterion}")
    measured = calibrate(analysis, options, samples, progress)
    groups = analysis.selected(options.include, options.exclude)
    if not groups:
        raise NothingPrunable(why_nothing(analysis, options))
    prepared = prepare(analysis, groups, options, measured, progress)
    ready, calibration = prepared.analysis, prepared.calibration
    moments = calibration.moments if calibration is not None else {}
    feeds = calibration.feeds if calibration is not None else ()
    ranked = rank(ready, groups, options, moments, feeds, prepared.lossless, progress)
    cost = CutCost(analysis.model.graph, analysis.coupling)
    plain = replace(options, compensate="none")
    dropped: dict[str, str] = {}
    while True:
        left = [one for one in ranked if one.group.name not in dropped]
        search = Search(prepared, left, options, cost)
        ways = search.first_ways()
        if not ways[0].removal.classes and any(share < 1 for share in options.target.values()):
            raise NothingPrunable(why_nothing(analysis, options, dropped))
        outcome = _attempt(ready, ways[0].removal, plain)
        if isinstance(outcome, Built):
            break
        dropped |= outcome
    if options.compensate == "none":
        return replace(outcome, dropped=dropped, allocation=ways[0].name)
    best, trials = search.best(ways, calibration, progress)
    if not set(prepared.aligned) <= best.removal.classes.keys():
        # What is not cut stays as it was, bit for bit.
        cut = [group for group in groups if group.name in best.removal.classes]
        prepared = prepare(analysis, cut, options, measured, progress)
    try:
        built = _finished(prepared.analysis, best.removal, options, prepared.calibration, progress)
    except (CutError, VerificationError, RuntimeFailure) as error:
        # Chosen anew, so that the plan says what is in the model and can be carried out again.
        lesser = "mean" if options.compensate == "least-squares" else "none"
        built = _pruned(analysis, replace(options, compensate=lesser), samples, progress)
        note = f"{options.compensate} compensation was not possible: {error}"
        return replace(built, note="; ".join(filter(None, (note, built.note))))
    return replace(built, dropped=dropped, allocation=best.name, trials=trials)


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
        return _built(prepared.analysis, removal, options, prepared.calibration, progress)


def _needs_samples(what: str) -> InputError:
    return InputError(f"{what} looks at activations; give --calibration")


def _finished(
    analysis: Analysis,
    removal: Removal,
    options: Options,
    calibration: Calibration | None,
    progress: Progress[Any],
) -> Built:
    """Build with full effort; with closed groups where open ones do not hold."""
    try:
        compensated = compensate(
            analysis, removal, options, calibration, open_groups=True, progress=progress
        )
        return _certified(analysis, compensated, options)
    except (CutError, VerificationError, RuntimeFailure):
        compensated = compensate(analysis, removal, options, calibration, progress=progress)
        return _certified(analysis, compensated, options)


def _attempt(analysis: Analysis, removal: Removal, options: Options) -> Built | dict[str, str]:
    """Build and certify a removal; on failure return the groups to leave whole, with the reason."""
    try:
        return _built(analysis, removal, options, None)
    except CutError as error:
        guilty = analysis.names_at(error.tensor, removal.classes)
        if guilty:
            return dict.fromkeys(guilty, str(error))
        reason = str(error)
    except (VerificationError, RuntimeFailure) as error:
        reason = str(error)
    if len(removal.classes) == 1:
        return dict.fromkeys(removal.classes, reason)
    names = sorted(removal.classes)
    failing: dict[str, str] = {}
    for half in (names[: len(names) // 2], names[len(names) // 2 :]):
        part = Removal({name: removal.classes[name] for name in half})
        outcome = _attempt(analysis, part, options)
        failing |= outcome if isinstance(outcome, dict) else {}
    return failing or dict.fromkeys(names[len(names) // 2 :], reason)


def _built(
    analysis: Analysis,
    removal: Removal,
    options: Options,
    calibration: Calibration | None,
    progress: Progress[Any] = silent,
) -> Built:
    """Compensate, mask, slice and check one removal.

    On the samples of the run that chose it, groups that were left open end as they did there; where
    they did not hold, that run went on with closed ones.
    """
    try:
        compensated = compensate(
            analysis, removal, options, calibration, open_groups=True, progress=progress
        )
        if compensated.removal.same_as(removal):
            return _certified(analysis, compensated, options)
    except (CutError, VerificationError, RuntimeFailure):
        if calibration is None:
            raise
    compensated = compensate(analysis, removal, options, calibration, progress=progress)
    return _certified(analysis, compensated, options)


def _certified(analysis: Analysis, compensated: Compensated, options: Options) -> Built:
    """Mask, slice and compare."""
    full, removal = compensated.full, compensated.removal
    cut = Cut(full.coupling, removal.dead())
    masked, sliced = full.model.clone(), full.model
    zero_removed(masked, cut)
    restrict_statistics(masked, cut)
    slice_removed(sliced, cut)
    keep_statistics(sliced, cut)
    runs = analysis.runs()
    feeds = [run.feed for run in runs]
    wanted = Execution(masked, options.runtime, optimise=False).run_all(feeds)
    got = Execution(sliced, options.runtime, optimise=False).run_all(feeds)
    tolerance = tolerance_for(analysis.model)
    certificate = certify([run.outputs for run in runs], wanted, got, tolerance)
    if not certificate.holds:
        raise VerificationError(
            f"the sliced model differs from the masked one by {certificate.error:.1e} "
            f"(tolerance {certificate.tolerance:.0e})"
        )
    check_result(analysis.model, sliced, feeds, got, options.runtime, tolerance)
    return Built(
        sliced,
        removal,
        certificate,
        repairs=compensated.repairs,
        compensate=options.compensate,
    )
