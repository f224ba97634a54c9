"""From a removal to a model that passed every check: compensate, mask, slice, certify."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from onnxprune.calibration.context import RunContext
from onnxprune.compensation.compensate import Compensated
from onnxprune.compensation.least_squares import LayerFit
from onnxprune.coupling.analysis import Analysis
from onnxprune.coupling.cut import Cut, CutError, Removal
from onnxprune.errors import RuntimeFailure, VerificationError
from onnxprune.model.bodies import places
from onnxprune.model.inputs import list_initializers
from onnxprune.pruning.method import Method
from onnxprune.pruning.workspace import Workspace
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.surgery.operators.normalisation import keep_statistics, restrict_statistics
from onnxprune.surgery.slicing import slice_removed, zero_removed
from onnxprune.verification.certificate import (
    Certificate,
    certify,
    check_result,
    entering,
    probe,
    tolerance_for,
)

FAILURES = (CutError, VerificationError, RuntimeFailure)
"""What is raised when a removal cannot be built, or its result fails a check."""


@dataclass(frozen=True)
class CutModel:
    """A smaller model that passed every check.

    Attributes:
        model: the smaller model.
        removal: what was removed.
        certificate: the comparison with the masked model.
        fits: the layers that were to be re-fitted.
        unfolded: readers of removed units that nothing makes up for, with the reason.
        components: names of the groups whose units are no longer the original's.
    """

    model: ir.Model
    removal: Removal
    certificate: Certificate
    fits: tuple[LayerFit, ...] = ()
    unfolded: Mapping[str, str] = field(default_factory=dict)
    components: tuple[str, ...] = ()


def build(
    workspace: Workspace,
    removal: Removal,
    method: Method,
    context: RunContext,
    *,
    replay: bool = False,
) -> CutModel:
    """Compensate, cut and check a removal.

    Groups whose consumer may choose the units are left open at first; where the result does not
    hold, exactly the units of the removal are removed.

    Args:
        workspace: the model at full width, with its statistics.
        removal: what to remove.
        method: compensation and effort.
        context: runtime, seed and progress callback.
        replay: the removal was chosen by a run before, so that open groups have to end as they did
            there.

    Raises:
        CutError: when the graph cannot express the removal.
        VerificationError: when a check fails.
        RuntimeFailure: when onnxruntime refuses one of the models.
    """
    compensation, effort = method.compensation, method.effort
    try:
        compensated = compensation.apply(workspace.task(removal, context, effort))
        if not replay or compensated.removal.same_as(removal):
            cut = certified(workspace.current, compensated, context)
            return replace(cut, components=workspace.aligned)
    except FAILURES:
        if not effort.open_groups:
            raise
    closed = replace(effort, open_groups=False)
    compensated = compensation.apply(workspace.task(removal, context, closed))
    cut = certified(workspace.current, compensated, context)
    return replace(cut, components=workspace.aligned)


def build_plain(analysis: Analysis, removal: Removal, context: RunContext) -> CutModel:
    """Cut and check a removal without compensation; raises as `build` does."""
    full = EditableModel(analysis.model.clone(), analysis.coupling)
    return certified(analysis, Compensated(full, removal), context)


def build_or_blame(
    analysis: Analysis, removal: Removal, context: RunContext
) -> CutModel | dict[str, str]:
    """Cut and check a removal without compensation.

    Returns:
        the smaller model; where it fails, the groups to leave whole, with the reason.
    """
    try:
        return build_plain(analysis, removal, context)
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
        result = build_or_blame(analysis, part, context)
        failing |= result if isinstance(result, dict) else {}
    return failing or dict.fromkeys(names[len(names) // 2 :], reason)


def _compare_unseen(
    analysis: Analysis, cut: Cut, models: tuple[ir.Model, ir.Model], context: RunContext
) -> None:
    """Compare the masked with the sliced model in branches that no known input runs.

    Branches that the cut does not reach are left out, and those that cannot run on these inputs.

    Raises:
        VerificationError: when they differ.
    """
    feeds = [analysis.coupling.facts.first.feed]
    inner = places(models[0].graph)
    for key in sorted(analysis.unseen & inner.keys()):
        values = (v for node in inner[key].graph for v in (*node.inputs, *node.outputs))
        if not any(cut.touches(value.name) for value in values if value and value.name):
            continue
        masked, sliced = (entering(model, key) for model in models)
        try:
            expected = probe(masked, context.runtime, feeds)
        except RuntimeFailure:
            continue
        try:
            actual = probe(sliced, context.runtime, feeds)
        except RuntimeFailure as error:
            raise VerificationError(f"{inner[key]} does not run any more: {error}") from error
        tolerance = tolerance_for(analysis.model)
        certificate = certify(expected.outputs, expected, actual, tolerance)
        if not certificate.holds:
            raise VerificationError(
                f"{inner[key]} of the sliced model differs from that of the masked one by "
                f"{certificate.error:.1e} (tolerance {tolerance:.0e})"
            )


def certified(analysis: Analysis, compensated: Compensated, context: RunContext) -> CutModel:
    """Mask and slice a compensated model, and compare the two; raises as `build` does."""
    full, removal, runtime = compensated.full, compensated.removal, context.runtime
    cut = Cut(full.coupling, removal.removed_units())
    masked, sliced = full.model.clone(), full.model
    zero_removed(masked, cut)
    restrict_statistics(masked, cut)
    slice_removed(sliced, cut)
    keep_statistics(sliced, cut)
    list_initializers(sliced)
    runs = analysis.runs()
    feeds = [run.feed for run in runs]
    expected, actual = (probe(model, runtime, feeds) for model in (masked, sliced))
    tolerance = tolerance_for(analysis.model)
    certificate = certify([run.outputs for run in runs], expected, actual, tolerance)
    if not certificate.holds:
        raise VerificationError(
            f"the sliced model differs from the masked one by {certificate.error:.1e} "
            f"(tolerance {certificate.tolerance:.0e})"
        )
    _compare_unseen(analysis, cut, (masked, sliced), context)
    check_result(analysis.model, sliced, feeds, actual.outputs, runtime, tolerance)
    return CutModel(sliced, removal, certificate, compensated.fits, compensated.unfolded)
