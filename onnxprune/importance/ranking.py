"""In which order the units of every group go, and what their removal costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.moments import Moments, Tap
from onnxprune.coupling.activation_statistics import tap_of
from onnxprune.coupling.analysis import Analysis
from onnxprune.coupling.group_view import GroupView, MaskGradients
from onnxprune.coupling.groups import Group
from onnxprune.errors import InputError
from onnxprune.importance.criterion import find_criterion
from onnxprune.importance.curves import Curve, part_curves, whole_curve
from onnxprune.importance.ranked import RankedGroup
from onnxprune.importance.removal_order import aligned, removal_order
from onnxprune.importance.survey import Survey
from onnxprune.model.constants import ConstantValues
from onnxprune.options import PruneOptions
from onnxprune.progress import Progress, silent


def rank(
    analysis: Analysis,
    groups: Sequence[Group],
    options: PruneOptions,
    moments: Mapping[Tap, Moments],
    feeds: Sequence[Mapping[str, NDArray[Any]]] = (),
    first: Mapping[str, Sequence[int]] | None = None,
    gradients: Mapping[str, MaskGradients] | None = None,
    progress: Progress[Any] = silent,
) -> list[RankedGroup]:
    """Rank the units of groups by the criterion.

    Args:
        analysis: the model.
        groups: those to rank.
        options: criterion and target.
        moments: activation statistics; empty without calibration.
        feeds: calibration batches for a criterion that measures error curves.
        first: by group, classes that go before all others.
        gradients: by group, for a criterion that needs them.
        progress: told about long loops.

    Raises:
        InputError: when a criterion gives anything but one finite score for each unit.
    """
    criterion = find_criterion(options.criterion)
    constants = ConstantValues(analysis.model, analysis.coupling.facts.constants)
    known = gradients or {}
    goal = 1 - options.target["channels"] if options.target.keys() == {"channels"} else None
    views = [
        replace(_view(analysis, group, constants, moments), gradients=known.get(group.name))
        for group in groups
    ]
    if getattr(criterion, "measures_curves", False):
        survey = Survey(
            analysis.model,
            analysis.coupling,
            constants,
            feeds,
            options.runtime,
            seed=options.seed,
        )
        found = {}
        for number, regressions in survey.groups(groups, progress):
            whole = whole_curve(views[number], regressions, goal)
            parts = [] if goal is not None else part_curves(views[number], regressions)
            found[number] = _ranked(groups[number], whole, parts)
        return [found[number] for number in range(len(groups))]
    ranked = []
    rng = np.random.default_rng(options.seed)
    for view in views:
        group = view.group
        scores = np.asarray(criterion.score(view, rng), np.float64)
        if scores.shape != (group.size,) or not np.isfinite(scores).all():
            raise InputError(
                f"criterion {options.criterion} gave no {group.size} finite scores for {group.name}"
            )
        order = tuple(removal_order(group, _lowered(group, scores, first or {}), goal))
        ranked.append(RankedGroup(group, order, {}))
    return ranked


def bundled(one: RankedGroup, multiple: int, *, finer: bool = False) -> RankedGroup:
    """Bundle the steps of a group so that its axes keep a multiple of some number of units.

    Args:
        one: the group with its removal order.
        multiple: 1 changes nothing.
        finer: go on in smaller steps behind the last such width.
    """
    whole = _bundled(one, multiple, finer)
    # 11 heads of 64, or 12 of 62, are multiples of 8; 11 of 62 are not
    parts = [_bundled(part, multiple, finer, by_row=not finer) for part in one.parts]
    return replace(whole, parts=tuple(parts) if all(part.steps for part in parts) else ())


def _ranked(group: Group, whole: Curve, parts: Sequence[Curve]) -> RankedGroup:
    one, *others = (RankedGroup(group, curve.steps, curve.scalings()) for curve in (whole, *parts))
    return replace(one, parts=tuple(others))


def _view(
    analysis: Analysis, group: Group, constants: ConstantValues, moments: Mapping[Tap, Moments]
) -> GroupView:
    seen = {
        reading: moments[tap]
        for reading in group.readings
        if (tap := tap_of(analysis.coupling, reading)) in moments
    }
    return GroupView(group, constants, seen)


def _lowered(
    group: Group, scores: NDArray[np.float64], first: Mapping[str, Sequence[int]]
) -> NDArray[np.float64]:
    """Scores below all others for units that go first."""
    mine = np.isin(group.units, first.get(group.name, ()))
    return np.where(mine, scores.min(initial=0.0) - 1.0, scores)


def _bundled(one: RankedGroup, multiple: int, finer: bool, *, by_row: bool = False) -> RankedGroup:
    """Steps bundled to a multiple, with the errors at their ends."""
    if multiple == 1:
        return one
    steps = tuple(aligned(one.group, one.steps, multiple, finer=finer, by_row=by_row))
    ends = np.cumsum([len(step.classes) for step in one.steps])
    gone = np.cumsum([len(step.classes) for step in steps])
    places = np.searchsorted(ends, gone)
    return RankedGroup(
        one.group, steps, {name: curve[places] for name, curve in one.curves.items()}
    )
