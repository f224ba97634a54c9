"""How far the outputs move when one group alone is cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.calibration.batches import spread_pairs
from onnxprune.calibration.checks import sample_warnings
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.samples import CalibrationSource, model_samples
from onnxprune.compensation.compensate import Effort, Task
from onnxprune.compensation.least_squares import Settings
from onnxprune.compensation.regression.linear_layers import replaceable_layers
from onnxprune.coupling.analysis import Analysis, analyse
from onnxprune.coupling.cut import Cut, Removal
from onnxprune.errors import InputError
from onnxprune.importance.removal_order import RankedGroup
from onnxprune.model.load import ModelSource, load
from onnxprune.model.runtime import matrix_threads
from onnxprune.model.save import check_writable, write_text_atomic
from onnxprune.progress import Progress, silent
from onnxprune.pruning.build import FAILURES, build_plain
from onnxprune.pruning.method import Method
from onnxprune.pruning.quality import divided_samples, known_labels, loss_labels, quality_measure
from onnxprune.pruning.run import PruneRun
from onnxprune.pruning.studies.study import (
    metric_setting,
    read_study,
    study_of,
    study_options,
    written,
)
from onnxprune.report.figures import json_text
from onnxprune.report.records import GroupCut, GroupSensitivity, SensitivityRecord
from onnxprune.report.study_pages import sensitivity_page
from onnxprune.surgery.operators.normalisation import restrict_statistics
from onnxprune.surgery.slicing import zero_removed
from onnxprune.verification.quality import QualityMeasure

_FORMAT = "onnxprune-sensitivity"


@dataclass(frozen=True)
class Sensitivity(SensitivityRecord):
    """What `sensitivity` returns.

    Attributes:
        study: what all rows have in common.
        costs: by kind (params, macs) what the original costs.
        groups: names of all groups of the study, in the order of the model.
        rows: the groups that were measured, in the same order.
        warnings: what is odd about the samples, each with the next step.
    """

    def with_rows(self, rows: Sequence[GroupSensitivity]) -> Sensitivity:
        """Add rows; those of groups that have one already are left out."""
        known = {row.group: row for row in (*rows, *self.rows)}
        return replace(self, rows=tuple(known[name] for name in self.groups if name in known))

    def merge(self, *others: Sensitivity) -> Sensitivity:
        """Put parts of one study together.

        Raises:
            InputError: for parts of another study; says what differs.
        """
        merged = self
        for other in others:
            differing = self.study.differences(other.study)
            if not differing and self.groups != other.groups:
                differing = ["groups"]
            if differing:
                raise InputError(f"parts of different studies: {', '.join(differing)} differ")
            merged = merged.with_rows(other.rows)
        return merged

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        results = {
            "costs": dict(self.costs),
            "groups": list(self.groups),
            "missing": list(self.missing),
            "rows": [asdict(row) for row in self.rows],
            "warnings": list(self.warnings),
        }
        return written(self.study, _FORMAT, results)

    def to_html(self, title: str = "") -> str:
        """Return one self-contained HTML page.

        Args:
            title: what the model is called; empty for a model in memory.
        """
        return sensitivity_page(self, title)

    def write(self, file: str | Path) -> None:
        """Write a JSON file atomically.

        Raises:
            InputError: when it cannot be written.
        """
        write_text_atomic(file, json_text(self.to_dict()))

    @classmethod
    def load(cls, file: str | Path) -> Sensitivity:
        """Read what `write` wrote.

        Raises:
            InputError: when it cannot be read or is something else.
        """
        study, data = read_study(file, _FORMAT)
        try:
            rows = tuple(_row(row) for row in data["rows"])
            warnings = tuple(data.get("warnings", ()))
            return cls(study, dict(data["costs"]), tuple(data["groups"]), rows, warnings)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError(f"{file}: is damaged; delete it to start afresh") from None


def _row(data: Mapping[str, Any]) -> GroupSensitivity:
    return GroupSensitivity(**{**data, "cuts": tuple(_cut(cut) for cut in data["cuts"])})


def _cut(data: Mapping[str, Any]) -> GroupCut:
    cut = GroupCut(**data)
    # JSON has no infinity
    lost = cut.divergence is None and not cut.reason
    return replace(cut, divergence=math.inf) if lost else cut


KEEP = (0.75, 0.5, 0.25)
"""Fractions of its units that a group keeps."""

_KINDS = ("params", "macs")
_BATCHES = 8
_FEWEST_ROWS, _MOST_ROWS = 8_192, 32_768
_ROWS_PER_UNKNOWN = 8


def sensitivity(
    model: ModelSource,
    *,
    calibration: CalibrationSource,
    keep: Sequence[float] = KEEP,
    labels: Any = None,
    metric: Callable[..., Any] | str | None = None,
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
        labels: as for `prune`, for a criterion by gradients; with them, or a metric, every cut also
            says how much quality it costs.
        metric: as for `prune`.
        shard: (i, n) measures every n-th group from the i-th on, 1 <= i <= n; None all groups.
        file: JSON file that is written after every group. Groups that are in it already are not
            measured again.
        progress: progress callback of long loops.
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
    if options.finetune:
        raise InputError(
            "sensitivity cuts one group at a time, and trains nothing; leave out finetune"
        )
    if file is not None:
        check_writable(file)
    before = Sensitivity.load(file) if file is not None and Path(file).exists() else None
    loaded = load(model)
    samples = model_samples(calibration, loaded.model, options.runtime)
    known = known_labels(labels, samples, options)
    study = study_of(
        loaded.sha256, samples, options, known, keep=fractions, **metric_setting(metric)
    )
    if before is not None and (differing := before.study.differences(study)):
        raise InputError(
            f"{file}: is of another study: {', '.join(differing)} differ; name another file"
        )
    fitted, _ = divided_samples(samples, options)
    context = RunContext(
        fitted, loss_labels(known, options), options.runtime, options.seed, progress
    )
    analysis = analyse(loaded.model, context, normalised_axes=options.normalised_axes)
    names = [group.name for group in analysis.selected(options.include, options.exclude)]
    if before is not None and not {*names[first - 1 :: every]} & {*before.missing}:
        return before
    measure = quality_measure(loaded.model, samples, known, metric, options, options.runtime)
    run = PruneRun(analysis, Method.of(options), context)
    full = run.cost.after(())
    result = Sensitivity(study, {kind: int(full[kind]) for kind in _KINDS}, tuple(names))
    result = replace(result, warnings=sample_warnings(loaded.model, samples, options.runtime))
    result = result.with_rows(before.rows) if before is not None else result
    mine = run.ranked(options.target)[first - 1 :: every]
    waiting = [ranked for ranked in mine if ranked.group.name in result.missing]
    with matrix_threads(options.runtime.threads):
        trials = _Trials(run, measure)
        for ranked in progress(waiting, "cutting each group", len(waiting)):
            result = result.with_rows([trials.of(ranked, fractions)])
            if file is not None:
                result.write(file)
    return result


class _Trials:
    """Cuts of single groups, with everything that does not depend on the group shared."""

    def __init__(self, run: PruneRun, measure: QualityMeasure | None) -> None:
        calibration, compensation = run.workspace.calibration, run.method.compensation
        assert calibration is not None
        self._run, self._measure = run, measure
        self._analysis = run.workspace.current
        self._calibration = replace(calibration, feeds=spread_pairs(calibration.feeds, _BATCHES))
        self._context = replace(run.context, progress=silent)
        self._effort = Effort(_settings(self._analysis))
        # least squares measures the divergence itself
        self._evaluator = None if compensation.refits_layers else run.evaluator()

    def of(self, ranked: RankedGroup, keep: Sequence[float]) -> GroupSensitivity:
        """Measure one group."""
        group = ranked.group
        row = GroupSensitivity(group.name, group.kind, group.size)
        if not ranked.steps:
            return replace(row, reason="no unit of it can be removed alone")
        ends = [_nearest(ranked, fraction) for fraction in keep]
        if why := self._why_not(_prefix(ranked, max(ends))):
            return replace(row, reason=why)
        cuts = {end: self._cut(ranked, end) for end in dict.fromkeys(ends)}
        kept = zip(ends, keep, strict=True)
        return replace(row, cuts=tuple(replace(cuts[end], keep=share) for end, share in kept))

    def _why_not(self, removal: Removal) -> str:
        """Why a removal cannot be carried out; empty where it can."""
        try:
            build_plain(self._analysis, removal, self._context)
        except FAILURES as error:
            return str(error)
        return ""

    def _cut(self, ranked: RankedGroup, end: int) -> GroupCut:
        removal = _prefix(ranked, end)
        cost, removed = self._run.cost, removal.removed_units()
        before, after = cost.after(()), cost.after(removed)
        saved = {kind: int(before[kind] - after[kind]) for kind in _KINDS}
        left = ranked.group.size - int(np.isin(ranked.group.units, removed).sum())
        try:
            divergence, drop = self._measured(removal)
            return GroupCut(0.0, left, divergence, saved, drop=drop)
        except FAILURES as error:
            return GroupCut(0.0, left, None, saved, str(error))

    def _measured(self, removal: Removal) -> tuple[float, float | None]:
        """Divergence, and the drop of quality where that is measured."""
        compensation = self._run.method.compensation
        trial = compensation.apply(
            Task(self._analysis, removal, self._calibration, self._context, self._effort)
        )
        divergence = trial.divergence if trial.divergence is not None else math.inf
        if self._evaluator is None and self._measure is None:
            return divergence, None
        cut = Cut(trial.full.coupling, removal.removed_units())
        zero_removed(trial.full.model, cut)
        restrict_statistics(trial.full.model, cut)
        if self._evaluator is not None:
            divergence = self._evaluator.divergence(trial.full.model)
        drop = self._measure.of(trial.full.model).drop if self._measure is not None else None
        return divergence, drop


def _checked(keep: Sequence[float]) -> list[float]:
    """Fractions, each once, the largest first."""
    try:
        fractions = sorted({float(fraction) for fraction in keep}, reverse=True)
    except (TypeError, ValueError):
        raise InputError(f"keep takes fractions such as 0.5, not {keep!r}") from None
    for fraction in fractions:
        if not 0 < fraction < 1:
            raise InputError(f"a group can keep a fraction above 0 and below 1, not {fraction:g}")
    if not fractions:
        raise InputError("no fraction to keep; give at least one, such as 0.5")
    return fractions


def _checked_shard(shard: tuple[int, int] | None) -> tuple[int, int]:
    number, count = shard if shard is not None else (1, 1)
    if not 1 <= number <= count:
        raise InputError(f"shard {number}/{count} does not exist; give I/N with 1 <= I <= N")
    return number, count


def _nearest(ranked: RankedGroup, keep: float) -> int:
    """How many steps of the removal order, at least one, leave about this fraction."""
    distances = [abs(1 - step.fraction - keep) for step in ranked.steps]
    return int(np.argmin(distances)) + 1


def _prefix(ranked: RankedGroup, end: int) -> Removal:
    units = sorted(unit for step in ranked.steps[:end] for unit in step.units)
    return Removal({ranked.group.name: tuple(units)})


def _settings(analysis: Analysis) -> Settings:
    """Least squares with little effort: as few rows as the widest layer can do with."""
    layers = replaceable_layers(analysis.model, analysis.coupling)
    widest = max((layer.shape[2] for layer in layers), default=1)
    rows = min(max(_ROWS_PER_UNKNOWN * widest, _FEWEST_ROWS), _MOST_ROWS)
    return Settings(rows=rows, iterations=3, ridges=(1e-3,), both_halves=False)
