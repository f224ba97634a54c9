"""Making up for a removal on calibration samples, at full size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxprune.calibration.batches import held_out_part
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.moments import Calibration
from onnxprune.compensation.fold_means import fold_means
from onnxprune.compensation.least_squares import LayerFit, LeastSquares, OpenChoice, Settings
from onnxprune.compensation.regression.linear_layers import replaceable_layers
from onnxprune.coupling.analysis import Analysis
from onnxprune.coupling.cut import Cut, Removal
from onnxprune.coupling.groups import Group
from onnxprune.importance.registry import find_criterion
from onnxprune.options import PruneOptions
from onnxprune.progress import Progress, silent
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.verification.divergence import divergence


@dataclass(frozen=True)
class Compensated:
    """A model at full size that is ready to lose what is to go.

    Attributes:
        full: the model and its coupling.
        removal: what is to go.
        repairs: what became of each layer that was to be solved anew.
        divergence: of its outputs from the original's on batches that were not fitted; None where
            nothing was measured.
    """

    full: EditableModel
    removal: Removal
    repairs: tuple[LayerFit, ...] = field(default=())
    divergence: float | None = None


def compensate(
    analysis: Analysis,
    removal: Removal,
    options: PruneOptions,
    calibration: Calibration | None,
    *,
    settings: Settings | None = None,
    open_groups: bool = False,
    progress: Progress[Any] = silent,
) -> Compensated:
    """Fold means, and solve layers anew, as the options say.

    Args:
        analysis: the original.
        removal: what is to go.
        options: which compensation.
        calibration: None for no compensation.
        settings: how to solve layers.
        open_groups: where possible take the number of units from the removal, but choose anew
            which, on what the pruned model computes.
        progress: told about every layer.

    Raises:
        CutError: when the graph cannot express the removal.
        RuntimeFailure: when onnxruntime refuses a part of a model.
    """
    full = EditableModel(analysis.model.clone(), analysis.coupling)
    if calibration is None or options.compensate == "none":
        return Compensated(full, removal)
    cut = Cut(analysis.coupling, removal.removed_units())
    solvable = _solvable(full, cut, settings) if options.compensate == "least-squares" else set()
    sample = calibration.samples.take(1)
    fold_means(full, cut, calibration.moments, sample, options.runtime, solvable)
    if options.compensate != "least-squares":
        return Compensated(full, removal)
    curves = find_criterion(options.criterion).measures_curves
    choices = _open_choices(analysis.groups, removal, solvable) if open_groups and curves else []
    fixed = {n: c for n, c in removal.units.items() if n not in {o.group.name for o in choices}}
    refit = LeastSquares(
        full,
        analysis.original,
        calibration.feeds,
        RunContext(runtime=options.runtime, seed=options.seed, progress=progress),
        settings or Settings(rows=Settings.rows * (1 + len(options.augment))),
    ).fit(Removal(fixed).removed_units(), choices, analysis.altered)
    return Compensated(
        full,
        Removal({**fixed, **refit.chosen}),
        refit.layers,
        divergence(analysis.original, held_out_part(refit.outputs)),
    )


def _solvable(full: EditableModel, cut: Cut, settings: Settings | None) -> set[str]:
    """Outputs of the layers that least squares takes care of."""
    largest = (settings or Settings()).largest
    found = set()
    for layer in replaceable_layers(full.model, full.coupling):
        kept = layer.kept_unknowns(cut)
        if kept is not None and kept.shape[1] <= largest:
            found.add(layer.node.outputs[0].name or "")
    return found


def _open_choices(
    groups: Sequence[Group], removal: Removal, solvable: set[str]
) -> list[OpenChoice]:
    """Groups whose units their only reader may choose."""
    choices = []
    for group in groups:
        gone = removal.units.get(group.name, ())
        free = not len(group.constraints) and len(group.axes) == 1 and len(group.readings) == 1
        if gone and free:
            consumer = group.readings[0].consumer
            if consumer.group == 1 and consumer.node in solvable:
                choices.append(OpenChoice(group, len(gone)))
    return choices
