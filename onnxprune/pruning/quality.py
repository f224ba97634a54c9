"""Quality of a result: labels, the measure, and the largest reduction within a limit of it.

One calibration serves all attempts. How far to go is found by bisection over t in [0, 1], where a
target that is to keep a share s of something asks for 1 - t (1 - s): t = 1 is the whole way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from onnxprune.calibration.labels import Labels, class_labels, read_labels, target_labels
from onnxprune.calibration.streams import Samples, divide
from onnxprune.errors import (
    CollapseError,
    InputError,
    NothingPrunable,
    TargetUnreachable,
    VerificationError,
)
from onnxprune.model.runtime import Runtime
from onnxprune.options import PruneOptions, target_text
from onnxprune.pruning.run import PrunedModel, PruneRun
from onnxprune.verification.comparison import collapse_text, compare_outputs
from onnxprune.verification.metrics import read_metric
from onnxprune.verification.quality import Quality, QualityMeasure, required_classes


def known_labels(labels: Any, samples: Samples, options: PruneOptions) -> Labels | None:
    """Read labels.

    Args:
        labels: as for `prune`; None for none.
        samples: what they belong to.
        options: of the run, for their loss.

    Returns:
        one for each sample, as a metric takes them; None without.

    Raises:
        InputError: when they cannot be read, are not as many as the samples, or do not suit the
            loss.
    """
    if labels is None:
        return None
    known = read_labels(labels, samples)
    if options.loss == "cross-entropy":
        required_classes(known)
    elif options.loss == "mse":
        target_labels(known)
    return known


def loss_labels(labels: Labels | None, options: PruneOptions) -> Labels | None:
    """Labels as the loss of a run takes them; None where it draws its own.

    Args:
        labels: from `known_labels`.
        options: of the run, for their loss.
    """
    if labels is None or callable(options.loss):
        return labels
    if options.loss == "mse":
        return target_labels(labels)
    # what is no class is for the metric alone
    return class_labels(labels)


_EVERY = 4
"""One sample in so many is held out where something is decided on held-out samples."""

_MANY, _OF_MANY = 256, 8
"""Samples from which on fine-tuning holds one in so many out."""

_GUARD_EVERY = 16
"""One sample in so many is held out for the check that answers still follow the original's."""

_GUARD_LEAST = 128
"""Samples from which on any are held out for that; of fewer those that were fitted are compared."""

_GUARD_FEWEST = 32
"""Samples below which there is only a warning: answers on so few differ by chance."""

_GUARD_BATCHES = 16

_HOLDING_PARTS = 8
"""Parts of the way to a target among which the largest reduction that holds is looked for."""


def divided_samples(
    samples: Samples | None, options: PruneOptions
) -> tuple[Samples | None, Samples | None]:
    """Samples that layers are fitted on, and those held out, on which answers are compared.

    None are held out where nothing decides over quality and there are few.
    """
    if samples is None:
        return None, None
    if options.max_drop is not None or options.finetune:
        return divide(samples, held_out_every(samples, options))
    many = samples.count is not None and samples.count >= _GUARD_LEAST
    return divide(samples, _GUARD_EVERY) if many else (samples, None)


def held_out_every(samples: Samples, options: PruneOptions) -> int:
    """One sample in how many is held out where something is decided on them."""
    if options.max_drop is not None or samples.count is None:
        return _EVERY
    return _OF_MANY if samples.count >= _MANY else _EVERY


def are_enough(samples: Samples | None) -> bool:
    """Whether there are so many samples that a result may be refused for its answers on them."""
    return samples is not None and samples.count is not None and samples.count >= _GUARD_FEWEST


def required_to_follow(
    run: PruneRun, pruned: PrunedModel, held_out: Samples | None
) -> tuple[str, ...]:
    """Require that the answers of a result follow the original's, unless the context forces it.

    Args:
        run: what the result is of.
        pruned: the result.
        held_out: samples that were not fitted; None where there are too few, so that those are
            compared that were fitted.

    Returns:
        a warning where the result is handed out all the same.

    Raises:
        CollapseError: when an output does not follow; names a target that holds.
    """
    samples = run.context.samples if held_out is None else held_out
    text = _collapse(run, pruned, samples)
    if not text:
        return ()
    if run.context.force or not (held_out is not None or are_enough(samples)):
        return (f"the answers no longer follow the original's: {text}",)
    best = _holding(run, pruned.target, samples)
    found = (
        f"{target_text(best)} was found to hold"
        if best
        else "no smaller reduction that was tried holds"
    )
    raise CollapseError(
        f"with {target_text(pruned.target)} the answers no longer follow the original's: {text}; "
        f"nothing is written. {found}; --force writes it all the same",
        best,
    )


def _collapse(run: PruneRun, pruned: PrunedModel, samples: Samples | None) -> str:
    if samples is None:
        return ""
    outputs = compare_outputs(
        pruned.original.model,
        pruned.cut.model,
        samples,
        run.context.runtime,
        batches=_GUARD_BATCHES,
    )
    return collapse_text(outputs)


def _holding(
    run: PruneRun, target: Mapping[str, float], samples: Samples | None
) -> dict[str, float]:
    """The largest reduction of a few on the way to a target with which answers still follow."""
    best: dict[str, float] = {}
    low, high = 0, _HOLDING_PARTS
    while high - low > 1:
        middle = (low + high) // 2
        part = middle / _HOLDING_PARTS
        milder = {kind: round(1 - part * (1 - share), 4) for kind, share in target.items()}
        try:
            holds = not _collapse(run, run.at(milder), samples)
        except (NothingPrunable, VerificationError):
            holds = False
        best, low, high = (milder, middle, high) if holds else (best, low, middle)
    return best


def quality_measure(
    model: ir.Model,
    samples: Samples | None,
    labels: Labels | None,
    metric: Callable[..., Any] | str | None,
    options: PruneOptions,
    runtime: Runtime,
) -> QualityMeasure | None:
    """What measures quality, on held-out samples where it decides anything; None for nothing.

    Args:
        model: the original.
        samples: None without calibration.
        labels: from `known_labels`.
        metric: as for `prune`; None for none.
        options: of the run.
        runtime: how to run models.

    Raises:
        InputError: when something is to be measured without samples, or the metric does not load.
    """
    limited = options.max_drop is not None
    if labels is None and metric is None and not limited:
        return None
    held_out = limited or options.finetune
    if samples is None:
        what = "max_drop measures" if limited else "labels and metrics need"
        raise InputError(f"{what} outputs on samples; give --calibration")
    measure = read_metric(metric)
    every = held_out_every(samples, options)
    measured = divide(samples, every)[1] if held_out else samples
    return QualityMeasure(
        model,
        measured,
        runtime,
        labels=labels if _are_classes(options) or measure is not None else None,
        metric=measure,
        held_out=held_out,
    )


def _are_classes(options: PruneOptions) -> bool:
    """Whether labels are classes, not the targets of a regression."""
    return options.loss in (None, "cross-entropy")


_PLACES = 100
"""Places on the way to a goal."""

_LEAST_SHARE = 0.25
"""Share of a drop that fine-tuning is believed to leave at least."""


@dataclass(frozen=True)
class Within:
    """A result within the limit, or the best there is.

    Attributes:
        pruned: the result.
        quality: measured.
        missed: what of limit and goal it does not meet; empty for nothing.
    """

    pruned: PrunedModel
    quality: Quality
    missed: str = ""


def _as_it_is(pruned: PrunedModel) -> PrunedModel:
    return pruned


def prune_within(
    run: PruneRun,
    limit: float,
    measure: QualityMeasure,
    goal: Mapping[str, float] | None,
    *,
    finetune: Callable[[PrunedModel], PrunedModel] = _as_it_is,
    best_effort: bool = False,
) -> Within:
    """Prune as far as the limit allows.

    Args:
        run: the model.
        limit: largest drop of quality, in the unit of the measure.
        measure: measures quality.
        goal: the target that is asked for besides, to be met within the limit; None to go as far
            as possible in MACs, or in parameters where the model has no MACs.
        finetune: fine-tunes a result, where the options ask for it: what is handed out, and what
            decides how far to go, not every attempt.
        best_effort: return the best instead of raising: the farthest within the limit where the
            goal is beyond it, the attempt that loses least where all do.

    Raises:
        TargetUnreachable: when the goal costs more than the limit; names how far one can go.
        NothingPrunable: when not even the least reduction stays within the limit.
    """
    attempts = _Attempts(run, measure, goal or {_kind(run): 0.0}, finetune)
    last = None
    if goal is not None:
        last = attempts.finetuned(attempts.measured(run.at(goal)))
        if last.quality.drop <= limit:
            return last
    best, worst = attempts.farthest(limit)
    if best is None:
        cause = f"; {_told(worst)}" if worst is not None else ""
        message = f"nothing can be pruned within a drop of {limit:g}{cause}"
        tried = [attempt for attempt in (last, worst) if attempt is not None]
        if best_effort and tried:
            return replace(min(tried, key=lambda attempt: attempt.quality.drop), missed=message)
        raise NothingPrunable(message)
    if last is not None:
        message = f"{_told(last)}, more than the {limit:g} allowed; within it, {_told(best)}"
        if best_effort:
            return replace(best, missed=message)
        raise TargetUnreachable(message)
    return best


class _Attempts:
    """Results on the way to a goal, each computed once.

    Args:
        run: the model.
        measure: measures quality.
        goal: the end of the way.
        finetune: fine-tunes a result, where the options ask for it.
    """

    def __init__(
        self,
        run: PruneRun,
        measure: QualityMeasure,
        goal: Mapping[str, float],
        finetune: Callable[[PrunedModel], PrunedModel],
    ) -> None:
        self._run, self._measure, self._goal, self._finetune = run, measure, goal, finetune
        self._known: dict[int, Within | NothingPrunable] = {}

    def measured(self, pruned: PrunedModel) -> Within:
        """A result with its quality."""
        return Within(pruned, self._measure.of(pruned.cut.model))

    def finetuned(self, within: Within) -> Within:
        """The same fine-tuned; itself where that is not asked for, or no better."""
        pruned = self._finetune(within.pruned)
        if pruned is within.pruned:
            return within
        tuned = self.measured(pruned)
        return tuned if tuned.quality.drop <= within.quality.drop else within

    def farthest(self, limit: float) -> tuple[Within | None, Within | None]:
        """The farthest attempt within the limit, and the least far one beyond it.

        Fine-tuning takes back a share of the drop, about the same a little farther on: the
        farthest attempt without it within the limit over that share is fine-tuned as well.
        """
        place, best, worst = self._bisected(0, limit)
        if best is None:
            tuned = worst and self.finetuned(worst)
            return (tuned, worst) if tuned and tuned.quality.drop <= limit else (None, worst)
        tuned = self.finetuned(best)
        if tuned is best:
            return best, worst
        _, farther, _ = self._bisected(place, limit / _left(best, tuned))
        if farther is not None and farther is not best:
            further = self.finetuned(farther)
            if further.quality.drop <= limit:
                return further, worst
        return tuned, worst

    def _bisected(self, low: int, limit: float) -> tuple[int, Within | None, Within | None]:
        """The farthest place within a limit, its attempt, and the least far attempt beyond it."""
        best = self._at(low) if low else None
        worst: Within | None = None
        high = _PLACES
        while high - low > 1:
            middle = (low + high) // 2
            tried = self._at(middle)
            if isinstance(tried, TargetUnreachable):
                high = middle
            elif isinstance(tried, NothingPrunable):
                low = middle
            elif tried.quality.drop <= limit:
                best, low = tried, middle
            else:
                worst, high = tried, middle
        return low, best if isinstance(best, Within) else None, worst

    def _at(self, place: int) -> Within | NothingPrunable:
        """The attempt at a place of the way."""
        if place not in self._known:
            way = place / _PLACES
            target = {kind: round(1 - way * (1 - share), 6) for kind, share in self._goal.items()}
            try:
                self._known[place] = self.measured(self._run.at(target))
            except NothingPrunable as error:
                self._known[place] = error
        return self._known[place]


def _left(before: Within, after: Within) -> float:
    """Share of a drop that fine-tuning leaves."""
    if before.quality.drop <= 0:
        return 1.0
    return min(max(after.quality.drop / before.quality.drop, _LEAST_SHARE), 1.0)


def _kind(run: PruneRun) -> str:
    return "macs" if run.cost.after(())["macs"] else "params"


def _told(within: Within) -> str:
    quality = within.quality
    return f"{target_text(within.pruned.target)} costs {quality.drop:.3g} ({quality.measure})"
