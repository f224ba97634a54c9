"""From a removal to a model that passed every check: compensate, mask, slice, certify."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxprune.calibration.moments import Calibration
from onnxprune.compensation.compensate import Compensated, compensate
from onnxprune.compensation.least_squares import LayerFit
from onnxprune.cost.latency.measure import Latency
from onnxprune.coupling.analysis import Analysis
from onnxprune.coupling.cut import Cut, CutError, Removal
from onnxprune.errors import RuntimeFailure, VerificationError
from onnxprune.importance.ranked import RankedGroup
from onnxprune.options import PruneOptions
from onnxprune.progress import Progress, silent
from onnxprune.surgery.operators.normalisation import keep_statistics, restrict_statistics
from onnxprune.surgery.slicing import slice_removed, zero_removed
from onnxprune.verification.certificate import (
    Certificate,
    certify,
    check_result,
    probe,
    tolerance_for,
)


@dataclass(frozen=True)
class CutModel:
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
        stages: what was gone after each step but the last, when there were several.
        latency: measured against the original's, where that was a target.
        ranked: the groups with the removal orders it was chosen from; empty for a replayed plan.
        analysis: of the model that the removal is of, where blocks went before; None for the
            original.
        depths: number of blocks that are gone -> divergence, for each number that was tried.
    """

    model: ir.Model
    removal: Removal
    certificate: Certificate
    dropped: Mapping[str, str] = field(default_factory=dict)
    repairs: tuple[LayerFit, ...] = ()
    allocation: str = ""
    trials: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    compensate: str = "none"
    stages: tuple[Removal, ...] = ()
    latency: Latency | None = None
    ranked: tuple[RankedGroup, ...] = ()
    analysis: Analysis | None = None
    depths: Mapping[int, float] = field(default_factory=dict)


def finish(
    analysis: Analysis,
    removal: Removal,
    options: PruneOptions,
    calibration: Calibration | None,
    progress: Progress[Any],
) -> CutModel:
    """Build with full effort; with closed groups where open ones do not hold."""
    try:
        compensated = compensate(
            analysis, removal, options, calibration, open_groups=True, progress=progress
        )
        return _certified(analysis, compensated, options)
    except (CutError, VerificationError, RuntimeFailure):
        compensated = compensate(analysis, removal, options, calibration, progress=progress)
        return _certified(analysis, compensated, options)


def attempt(
    analysis: Analysis, removal: Removal, options: PruneOptions
) -> CutModel | dict[str, str]:
    """Build and certify a removal; on failure return the groups to leave whole, with the reason."""
    try:
        return build(analysis, removal, options, None)
    except CutError as error:
        guilty = analysis.names_at(error.tensor, removal.units)
        if guilty:
            return dict.fromkeys(guilty, str(error))
        reason = str(error)
    except (VerificationError, RuntimeFailure) as error:
        reason = str(error)
    if len(removal.units) == 1:
        return dict.fromkeys(removal.units, reason)
    names = sorted(removal.units)
    failing: dict[str, str] = {}
    for half in (names[: len(names) // 2], names[len(names) // 2 :]):
        part = Removal({name: removal.units[name] for name in half})
        outcome = attempt(analysis, part, options)
        failing |= outcome if isinstance(outcome, dict) else {}
    return failing or dict.fromkeys(names[len(names) // 2 :], reason)


def build(
    analysis: Analysis,
    removal: Removal,
    options: PruneOptions,
    calibration: Calibration | None,
    progress: Progress[Any] = silent,
) -> CutModel:
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


def _certified(analysis: Analysis, compensated: Compensated, options: PruneOptions) -> CutModel:
    """Mask, slice and compare."""
    full, removal = compensated.full, compensated.removal
    cut = Cut(full.coupling, removal.removed_units())
    masked, sliced = full.model.clone(), full.model
    zero_removed(masked, cut)
    restrict_statistics(masked, cut)
    slice_removed(sliced, cut)
    keep_statistics(sliced, cut)
    runs = analysis.runs()
    feeds = [run.feed for run in runs]
    wanted, got = (probe(one, options.runtime, feeds) for one in (masked, sliced))
    tolerance = tolerance_for(analysis.model)
    certificate = certify([run.outputs for run in runs], wanted, got, tolerance)
    if not certificate.holds:
        raise VerificationError(
            f"the sliced model differs from the masked one by {certificate.error:.1e} "
            f"(tolerance {certificate.tolerance:.0e})"
        )
    check_result(analysis.model, sliced, feeds, got.outputs, options.runtime, tolerance)
    return CutModel(
        sliced,
        removal,
        certificate,
        repairs=compensated.repairs,
        compensate=options.compensate,
    )
