"""The model at full width as a run works on it: calibrated, rewritten, re-fitted after each step.

Nothing is smaller yet. Units that can be removed without changing the outputs are taken out of the
computation first (`compensation/lossless`): they would blur the statistics, and there is no reason
to keep them. Then units become components wherever only linear maps are applied to them
(`compensation/components`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.augment import augmented
from onnxprune.calibration.batches import load_held_batches
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.moments import Calibration
from onnxprune.compensation.compensate import Compensated, Effort, Task
from onnxprune.compensation.components.align import align_components
from onnxprune.compensation.lossless.remove import remove_lossless
from onnxprune.compensation.regression.linear_layers import linear_layers
from onnxprune.coupling.analysis import Analysis, statistics_of
from onnxprune.coupling.cut import Cut, Removal
from onnxprune.coupling.groups import Group
from onnxprune.errors import InputError
from onnxprune.gradients.sensitivity import measure_sensitivity
from onnxprune.importance.removal_order import keeps_multiples
from onnxprune.pruning.method import Method
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.surgery.slicing import zero_removed

_LISTED = 3
"""Names of groups that a sentence shows."""


@dataclass(frozen=True)
class Workspace:
    """A model at full width that targets are cut from.

    Attributes:
        reference: analysis of the model before it was rewritten.
        current: analysis of the rewritten model, with the same groups.
        calibration: statistics of the current model; None without samples.
        lossless: units that the current model does not need, by group name.
        aligned: names of the groups whose units are components.
        notes: what was left as it was, in sentences.
    """

    reference: Analysis
    current: Analysis
    calibration: Calibration | None
    lossless: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    aligned: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def task(self, removal: Removal, context: RunContext, effort: Effort) -> Task:
        """What to compensate for when units are removed from the current model."""
        return Task(self.current, removal, self.calibration, context, effort, self.lossless)

    def with_lossless(self, removal: Removal, multiple: int) -> Removal:
        """Add units that are not needed to a removal, wherever that is legal.

        Args:
            removal: what is removed anyway.
            multiple: of how many units every axis that is cut keeps a multiple; as many are added
                as leave that.
        """
        groups = {group.name: group for group in self.current.groups}
        classes = dict(removal.units)
        for name, spare in self.lossless.items():
            together = _together(groups[name], classes.get(name, ()), spare, multiple)
            if together:
                classes[name] = together
        return Removal(classes)

    def after_step(self, compensated: Compensated, context: RunContext) -> Workspace:
        """Go on from a compensated model: what was removed is held at zero, and stays removed.

        Layers that are re-fitted later still aim at what the reference model computes.

        Args:
            compensated: its model is changed.
            context: samples and how to run the model.
        """
        full, removal = compensated.full, compensated.removal
        zero_removed(full.model, Cut(full.coupling, removal.removed_units()))
        current = replace(
            self.current, model=full.model, coupling=full.coupling, reference=self.current.original
        )
        calibration = _recalibrated(self.calibration, current, context)
        return replace(self, current=current, calibration=calibration, lossless=dict(removal.units))


def calibrate(analysis: Analysis, method: Method, context: RunContext) -> Calibration | None:
    """Collect from the samples what criterion and compensation need; None without samples.

    Args:
        analysis: the model.
        method: criterion, compensation and augmentation.
        context: samples, runtime, seed and progress callback.

    Raises:
        InputError: for a compensation that needs samples when there are none.
        CalibrationError: for unusable samples.
    """
    samples, views = context.samples, method.options.augment
    if samples is None:
        if method.compensation.needs_samples:
            raise needs_samples(f"compensation {method.compensation.name}")
        return None
    moments = statistics_of(analysis, context)
    if not method.walks:
        return Calibration(samples, moments)
    first = analysis.coupling.facts.first
    feeds = load_held_batches(samples, analysis.model, first, 1 + len(views))
    if views:
        if samples.axes.fixed:
            raise InputError("augmentation adds to every batch, but the model fixes its size")
        rng = np.random.default_rng(context.seed)
        feeds = [augmented(feed, samples.axes, views, rng) for feed in feeds]
    layers = {
        layer.node.outputs[0].name or "": layer.output_axes
        for layer in linear_layers(analysis.model, analysis.coupling)
    }
    return Calibration(
        samples, moments, feeds, measure_sensitivity(analysis.model, layers, feeds, context)
    )


def needs_samples(what: str) -> InputError:
    """The error of something that looks at activations when there are no samples."""
    return InputError(f"{what} looks at activations; give --calibration")


def rewrite(
    analysis: Analysis,
    groups: Sequence[Group],
    method: Method,
    calibration: Calibration | None,
    context: RunContext,
) -> Workspace:
    """Rewrite a model so that it computes the same and is easier to prune.

    Args:
        analysis: the model.
        groups: those that may be cut.
        method: what to do. Without compensation nothing is rewritten: the result then is the
            original with slices set to zero.
        calibration: for units that never change on the samples, and for components; None without
            samples.
        context: how to run the model.
    """
    compensation, options = method.compensation, method.options
    workspace = Workspace(analysis, analysis, calibration)
    if not compensation.changes_weights:
        return workspace
    full = EditableModel(analysis.model.clone(), analysis.coupling)
    lossless: dict[str, tuple[int, ...]] = {}
    notes: list[str] = []
    if options.lossless:
        spare = remove_lossless(
            full,
            groups,
            context.runtime,
            feeds=_compared(analysis, calibration) if calibration is not None else None,
            moments=calibration.moments if calibration is not None else None,
            varying=analysis.passing,
        )
        lossless = spare.units
        notes += _left("units that no output seems to need are kept", spare.dropped)
    aligned: tuple[str, ...] = ()
    if options.components and compensation.refits_layers and calibration is not None:
        alignment = align_components(full, groups, calibration.feeds, context)
        aligned = tuple(alignment.sets)
        notes += _left("units are not made into components", alignment.dropped)
    if not lossless and not aligned:
        return replace(workspace, notes=tuple(notes))
    current = replace(analysis, model=full.model, coupling=full.coupling)
    if aligned:
        calibration = _recalibrated(calibration, current, context)
        units = [unit for group in groups if group.name in aligned for unit in group.all_units]
        calibration = _mixed(calibration, Cut(current.coupling, units))
    return Workspace(analysis, current, calibration, lossless, aligned, tuple(notes))


def _left(what: str, names: Sequence[str]) -> list[str]:
    """A sentence on groups that were not rewritten; none where there are none."""
    shown = ", ".join(names[:_LISTED]) + (" and others" if len(names) > _LISTED else "")
    return [f"{what} in {shown}: the outputs would differ"] if names else []


def _compared(analysis: Analysis, calibration: Calibration) -> list[Mapping[str, NDArray[Any]]]:
    """A few samples, and some that run the bodies which these do not."""
    return [calibration.samples.take(2), *(run.feed for run in analysis.more_runs)]


def _mixed(calibration: Calibration | None, rewritten: Cut) -> Calibration | None:
    """Calibration of a model some of whose units are components now.

    Args:
        calibration: with the sensitivity of the model before.
        rewritten: these units.
    """
    if calibration is None:
        return None
    tensors, known = rewritten.coupling.tensors, calibration.sensitivity
    names = {
        name
        for name in known.columns
        if name in tensors
        and not all(rewritten.alive(label).all() for label in tensors[name].axis_labels)
    }
    return replace(calibration, sensitivity=known.evened(names))


def _recalibrated(
    calibration: Calibration | None, analysis: Analysis, context: RunContext
) -> Calibration | None:
    """The same batches with the statistics of another model."""
    if calibration is None:
        return None
    return replace(calibration, moments=statistics_of(analysis, context))


def _together(
    group: Group, chosen: Sequence[int], spare: Sequence[int], multiple: int
) -> tuple[int, ...]:
    """Chosen units and as many spare ones as can be removed with them."""
    extra = sorted({*spare} - {*chosen})
    if not len(group.constraints):
        ends: Sequence[int] = range(len(extra), 0, -1)
    else:
        # a part of it, or a union with something else, need not be legal
        ends = () if chosen else (len(extra),)
    for end in ends:
        removed = (*chosen, *extra[:end])
        if not _empties(group, removed) and keeps_multiples(group, removed, multiple):
            return tuple(sorted(removed))
    return tuple(chosen)


def _empties(group: Group, removed: Sequence[int]) -> bool:
    """Whether an axis that has to keep something would lose everything."""
    is_removed = np.isin(group.units, removed)
    return any(
        whole and is_removed[list(axis)].all()
        for axis, whole in zip(group.axes, group.closed, strict=True)
    )
