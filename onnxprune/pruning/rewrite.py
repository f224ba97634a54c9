"""Rewriting the original before units are ranked: what it computes stays the same.

What goes without a trace is taken out first (`passes/remove_lossless.py`): it would blur the
covariances, and there is no reason to keep it. Then units become components wherever only linear
maps are done to them (`passes/align_components.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.moments import Calibration
from onnxprune.compensation.compensate import Compensated
from onnxprune.compensation.components.align import align_components
from onnxprune.compensation.lossless.remove import remove_lossless
from onnxprune.coupling.activation_statistics import statistics_of
from onnxprune.coupling.analysis import Analysis
from onnxprune.coupling.cut import Cut, Removal
from onnxprune.coupling.groups import Group
from onnxprune.importance.removal_order import keeps_multiples
from onnxprune.options import PruneOptions
from onnxprune.progress import Progress, silent
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.surgery.slicing import zero_removed


@dataclass(frozen=True)
class Prepared:
    """A model that computes what the original computes, and is easier to prune.

    Attributes:
        analysis: the original's, with the rewritten model.
        calibration: what the samples tell of it; None without samples.
        lossless: classes that go without a trace, by group name.
        aligned: names of the groups whose units are components.
    """

    analysis: Analysis
    calibration: Calibration | None
    lossless: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    aligned: tuple[str, ...] = ()

    def with_lossless(self, removal: Removal, multiple: int = 1) -> Removal:
        """Add what goes without a trace to a removal, wherever that is legal.

        Args:
            removal: what goes anyway.
            multiple: how many units every axis that is cut keeps a multiple of; as much is added
                as leaves that.
        """
        groups = {group.name: group for group in self.analysis.groups}
        classes = dict(removal.units)
        for name, gone in self.lossless.items():
            together = _together(groups[name], classes.get(name, ()), gone, multiple)
            if together:
                classes[name] = together
        return Removal(classes)


def prepare(
    analysis: Analysis,
    groups: Sequence[Group],
    options: PruneOptions,
    calibration: Calibration | None,
    progress: Progress[Any] = silent,
) -> Prepared:
    """Rewrite the model.

    Args:
        analysis: the original.
        groups: those that may be cut.
        options: what to do, and how to run the model. Without compensation nothing is rewritten:
            the result then is the original with slices set to zero.
        calibration: samples, for units that never change in them, and for components.
        progress: told about long loops.
    """
    if options.compensate == "none":
        return Prepared(analysis, calibration)
    full = EditableModel(analysis.model.clone(), analysis.coupling)
    lossless: dict[str, tuple[int, ...]] = {}
    if options.lossless:
        lossless = remove_lossless(
            full,
            groups,
            options.runtime,
            feeds=[calibration.samples.take(2)] if calibration is not None else None,
            moments=calibration.moments if calibration is not None else None,
        ).units
    aligned: tuple[str, ...] = ()
    if options.components and options.compensate == "least-squares" and calibration is not None:
        context = RunContext(runtime=options.runtime, seed=options.seed, progress=progress)
        aligned = tuple(align_components(full, groups, calibration.feeds, context).sets)
    if not lossless and not aligned:
        return Prepared(analysis, calibration)
    rewritten = replace(analysis, model=full.model, coupling=full.coupling)
    if aligned and calibration is not None:
        moments = statistics_of(
            rewritten,
            RunContext(calibration.samples, None, options.runtime, options.seed, progress),
        )
        calibration = replace(calibration, moments=moments)
    return Prepared(rewritten, calibration, lossless, aligned)


def after(
    prepared: Prepared,
    compensated: Compensated,
    options: PruneOptions,
    progress: Progress[Any] = silent,
) -> Prepared:
    """Go on from a model at full size that has lost something: what is gone is held at zero.

    Args:
        prepared: the model before.
        compensated: the removal, made up for; its model is changed.
        options: how to run the model.
        progress: told about long loops.
    """
    full, removal = compensated.full, compensated.removal
    zero_removed(full.model, Cut(full.coupling, removal.removed_units()))
    before = prepared.analysis
    analysis = replace(
        before,
        model=full.model,
        coupling=full.coupling,
        reference=before.original,
    )
    calibration = prepared.calibration
    if calibration is not None:
        moments = statistics_of(
            analysis, RunContext(calibration.samples, None, options.runtime, options.seed, progress)
        )
        calibration = replace(calibration, moments=moments)
    return replace(
        prepared, analysis=analysis, calibration=calibration, lossless=dict(removal.units)
    )


def _together(
    group: Group, chosen: Sequence[int], free: Sequence[int], multiple: int
) -> tuple[int, ...]:
    """What was chosen, with as much as can be of what goes without a trace."""
    extra = sorted({*free} - {*chosen})
    if not len(group.constraints):
        ends: Sequence[int] = range(len(extra), 0, -1)
    else:
        # a part of it, or a union with something else, need not be legal
        ends = () if chosen else (len(extra),)
    for end in ends:
        gone = (*chosen, *extra[:end])
        if not _empties(group, gone) and keeps_multiples(group, gone, multiple):
            return tuple(sorted(gone))
    return tuple(chosen)


def _empties(group: Group, classes: Sequence[int]) -> bool:
    """Whether an axis that has to keep something would lose everything."""
    gone = np.isin(group.units, classes)
    return any(
        whole and gone[list(axis)].all()
        for axis, whole in zip(group.axes, group.closed, strict=True)
    )
