"""How far the outputs move when one group alone is cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.calibration.batches import spread_pairs
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.moments import Calibration
from onnxprune.calibration.samples import CalibrationSource, read_samples
from onnxprune.compensation.compensate import compensate
from onnxprune.compensation.least_squares import Settings
from onnxprune.compensation.regression.linear_layers import replaceable_layers
from onnxprune.coupling.analysis import analyse
from onnxprune.coupling.cut import Cut, CutError, Removal
from onnxprune.errors import InputError, RuntimeFailure, VerificationError
from onnxprune.importance.ranked import RankedGroup
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import ModelSource, load
from onnxprune.model.runtime import matrix_threads
from onnxprune.model.save import check_writable
from onnxprune.progress import Progress, silent
from onnxprune.pruning.build import build
from onnxprune.pruning.prepare import Ready, held_out_batches, prepare_run
from onnxprune.pruning.quality import known_labels
from onnxprune.pruning.studies.sensitivity_result import Sensitivity
from onnxprune.pruning.studies.study import study_of, study_options
from onnxprune.report.records import GroupCut, GroupSensitivity
from onnxprune.surgery.operators.normalisation import restrict_statistics
from onnxprune.surgery.slicing import zero_removed
from onnxprune.verification.divergence import DivergenceEvaluator

KEEP = (0.75, 0.5, 0.25)
"""Fractions of its units that a group keeps."""

_KINDS = ("params", "macs")
_BATCHES = 8
_FEWEST_ROWS, _MOST_ROWS = 8_192, 32_768
_ROWS_PER_UNKNOWN = 8
_FAILURES = (CutError, VerificationError, RuntimeFailure)


def sensitivity(
    model: ModelSource,
    *,
    calibration: CalibrationSource,
    keep: Sequence[float] = KEEP,
    labels: Any = None,
    shard: tuple[int, int] | None = None,
    file: str | Path | None = None,
    progress: Progress[Any] = silent,
    **method: Any,
) -> Sensitivity:
    """Cut each group alone, everything else whole, and measure what it does to the outputs.

    What is cut is compensated as the options say, with the little effort of a trial.

    Args:
        model: as for `prune`.
        calibration: as for `prune`, and not optional.
        keep: fractions of its units that a group keeps, above 0 and below 1; the nearest that is
            legal is taken from the front of the group's removal order.
        labels: as for `prune`, for a criterion by gradients.
        shard: (i, n) measures every n-th group from the i-th on, 1 <= i <= n; None all groups.
        file: JSON file that is written after every group. Groups that are in it already are not
            measured again.
        progress: told about long loops.
        **method: criterion, compensate and others, as for `prune`; not `target`, `max_drop`.

    Raises:
        InputError: for a model, samples, labels or options that cannot be used, or a file of
            another study.
        NothingPrunable: when no axis of the model can be cut.
    """
    fractions = _checked(keep)
    first, every = _checked_shard(shard)
    if calibration is None:
        raise InputError("sensitivity compares outputs on samples; give --calibration")
    # any target but channels: for that one orders of removal would end early
    options = study_options({"params": min(fractions)}, method)
    if file is not None:
        check_writable(file)
    before = Sensitivity.load(file) if file is not None and Path(file).exists() else None
    loaded = load(model)
    samples = read_samples(calibration, input_specs(loaded.model))
    known = known_labels(labels, samples, options)
    study = study_of(loaded.sha256, samples, options, known, keep=fractions)
    if before is not None and (differing := before.study.differences(study)):
        raise InputError(
            f"{file}: is of another study: {', '.join(differing)} differ; name another file"
        )
    analysis = analyse(
        loaded.model,
        RunContext(samples, None, options.runtime, options.seed),
        normalised_axes=options.normalised_axes,
    )
    names = [one.name for one in analysis.selected(options.include, options.exclude)]
    if before is not None and not {*names[first - 1 :: every]} & {*before.missing}:
        return before
    ready = prepare_run(analysis, options, samples, progress, known)
    full = ready.cost.after(())
    found = Sensitivity(study, {kind: int(full[kind]) for kind in _KINDS}, tuple(names))
    found = found.with_rows(before.rows) if before is not None else found
    mine = ready.ranked[first - 1 :: every]
    waiting = [one for one in mine if one.group.name in found.missing]
    with matrix_threads(options.runtime.threads):
        trials = _Trials(ready)
        for one in progress(waiting, "cutting each group", len(waiting)):
            found = found.with_rows([trials.of(one, fractions)])
            if file is not None:
                found.write(file)
    return found


class _Trials:
    """Cuts of single groups, with everything that does not depend on the group shared."""

    def __init__(self, ready: Ready) -> None:
        self._ready = ready
        calibration = ready.prepared.calibration
        assert calibration is not None
        feeds = spread_pairs(calibration.feeds, _BATCHES)
        self._calibration: Calibration = replace(calibration, feeds=feeds)
        self._judge = _judge(ready)
        self._settings = _settings(ready)

    def of(self, one: RankedGroup, keep: Sequence[float]) -> GroupSensitivity:
        """Measure one group."""
        group = one.group
        row = GroupSensitivity(group.name, group.kind, group.size)
        if not one.steps:
            return replace(row, reason="nothing of it can go alone")
        ends = [_nearest(one, fraction) for fraction in keep]
        if why := self._why_not(_prefix(one, max(ends))):
            return replace(row, reason=why)
        cuts = {end: self._cut(one, end) for end in dict.fromkeys(ends)}
        found = (replace(cuts[end], keep=share) for end, share in zip(ends, keep, strict=True))
        return replace(row, cuts=tuple(found))

    def _why_not(self, removal: Removal) -> str:
        """Why a removal cannot be carried out; empty where it can."""
        plain = replace(self._ready.options, compensate="none")
        try:
            build(self._ready.prepared.analysis, removal, plain, None)
        except _FAILURES as error:
            return str(error)
        return ""

    def _cut(self, one: RankedGroup, end: int) -> GroupCut:
        removal = _prefix(one, end)
        cost, dead = self._ready.cost, removal.removed_units()
        before, after = cost.after(()), cost.after(dead)
        saved = {kind: int(before[kind] - after[kind]) for kind in _KINDS}
        left = one.group.size - int(np.isin(one.group.units, dead).sum())
        try:
            return GroupCut(0.0, left, self._divergence(removal), saved)
        except _FAILURES as error:
            return GroupCut(0.0, left, None, saved, str(error))

    def _divergence(self, removal: Removal) -> float:
        analysis, options = self._ready.prepared.analysis, self._ready.options
        trial = compensate(analysis, removal, options, self._calibration, settings=self._settings)
        if self._judge is None:
            return trial.divergence if trial.divergence is not None else math.inf
        cut = Cut(trial.full.coupling, removal.removed_units())
        zero_removed(trial.full.model, cut)
        restrict_statistics(trial.full.model, cut)
        return self._judge.divergence(trial.full.model)


def _judge(ready: Ready) -> DivergenceEvaluator | None:
    """What measures divergence; least squares does so itself."""
    if ready.options.compensate == "least-squares":
        return None
    return DivergenceEvaluator(ready.analysis.model, held_out_batches(ready), ready.options.runtime)


def _checked(keep: Sequence[float]) -> list[float]:
    """Fractions, each once, the largest first."""
    try:
        fractions = sorted({float(one) for one in keep}, reverse=True)
    except (TypeError, ValueError):
        raise InputError(f"keep takes fractions such as 0.5, not {keep!r}") from None
    for one in fractions:
        if not 0 < one < 1:
            raise InputError(f"a group can keep a fraction above 0 and below 1, not {one:g}")
    if not fractions:
        raise InputError("no fraction to keep; give at least one, such as 0.5")
    return fractions


def _checked_shard(shard: tuple[int, int] | None) -> tuple[int, int]:
    number, count = shard if shard is not None else (1, 1)
    if not 1 <= number <= count:
        raise InputError(f"shard {number}/{count} does not exist; give I/N with 1 <= I <= N")
    return number, count


def _nearest(one: RankedGroup, keep: float) -> int:
    """How many steps of the removal order, at least one, leave about this fraction."""
    distances = [abs(1 - step.fraction - keep) for step in one.steps]
    return int(np.argmin(distances)) + 1


def _prefix(one: RankedGroup, end: int) -> Removal:
    classes = sorted(each for step in one.steps[:end] for each in step.units)
    return Removal({one.group.name: tuple(classes)})


def _settings(ready: Ready) -> Settings:
    """Least squares with little effort: as few rows as the widest layer can do with."""
    analysis = ready.prepared.analysis
    layers = replaceable_layers(analysis.model, analysis.coupling)
    widest = max((layer.shape[2] for layer in layers), default=1)
    rows = min(max(_ROWS_PER_UNKNOWN * widest, _FEWEST_ROWS), _MOST_ROWS)
    return Settings(rows=rows, iterations=3, ridges=(1e-3,), both_halves=False)
