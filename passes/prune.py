"""Structured pruning as a pass: channels, hidden units and heads are removed, layers re-fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import onnx_ir as ir

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.labels import Labels
from onnxprune.calibration.streams import Samples
from onnxprune.coupling.analysis import Analysis, analyse
from onnxprune.coupling.cut import CutError
from onnxprune.declaration import Option
from onnxprune.errors import InputError, VerificationError
from onnxprune.importance.registry import resolve_options
from onnxprune.model.load import LoadedModel, load, loaded_bytes
from onnxprune.model.runtime import Runtime
from onnxprune.options import BEST_EFFORT, LABELS, METRIC, OPTIONS, PruneOptions
from onnxprune.passes.pipeline.protocol import Pass, VerifiedRun
from onnxprune.passes.pipeline.quality import PipelineQuality, not_met
from onnxprune.progress import Progress, silent
from onnxprune.pruning.blocks import without_blocks
from onnxprune.pruning.finetune import finetuned
from onnxprune.pruning.method import Method
from onnxprune.pruning.plan import Plan, planned_removal, planned_stages
from onnxprune.pruning.quality import (
    are_enough,
    divided_samples,
    known_labels,
    loss_labels,
    prune_within,
    quality_measure,
    required_to_follow,
)
from onnxprune.pruning.results import Report, describe
from onnxprune.pruning.run import PrunedModel, PruneRun, replay
from onnxprune.verification.quality import Quality, QualityMeasure


class Prune(Pass, ir.passes.FunctionalPass):
    """Remove whole channels, hidden units and heads, and re-fit the layers around them.

    Args:
        samples: calibration samples; None for none.
        runtime: onnxruntime providers and threads.
        seed: of everything random.
        progress: progress callback of long loops.
        plan: of the run that is to be repeated, as `Plan.to_dict` gives it; None to choose.
        quality: what the pipeline is asked of quality, for what the options do not say; None for
            nothing.
        force: hand out a result whose answers no longer follow the original's.
        options: those of `onnxprune.prune`; of no effect with a plan.

    Attributes:
        details: options, certificate, allocation, widths and axes that stay whole.
        plan: what was removed.

    Raises:
        InputError: for options that cannot be used, or a damaged plan.
    """

    verifies = True

    declared: ClassVar[tuple[Option, ...]] = (*OPTIONS, LABELS, METRIC, BEST_EFFORT)

    def __init__(
        self,
        samples: Samples | None = None,
        runtime: Runtime | None = None,
        seed: int = 0,
        progress: Progress[Any] = silent,
        plan: Mapping[str, Any] | None = None,
        quality: PipelineQuality | None = None,
        force: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            RunContext(samples, None, runtime or Runtime(), seed, progress, force=force)
        )
        self._to_repeat = None if plan is None else Plan.from_dict(plan)
        self._shared = quality
        self._labels, self._metric = options.pop("labels", None), options.pop("metric", None)
        self._best_effort = bool(options.pop("best_effort", False))
        self._has_target = options.get("target") is not None
        self._options = (
            self._checked(options) if self._to_repeat is None else self._planned(self._to_repeat)
        )
        if self._best_effort and self._options.max_drop is None:
            raise InputError("best_effort is for max_drop; give a limit")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Prune.

        Raises:
            InputError: for a model or samples that cannot be used.
            NothingPrunable: when nothing can be removed, or not enough.
            VerificationError: when no result could be verified.
        """
        return self.run(load(model))

    def run(self, loaded: LoadedModel) -> ir.passes.PassResult:
        """Prune a model that stays as it is; raises as `call` does."""
        plan, options = self._to_repeat, self._options
        samples = self.context.samples
        fitted, held_out = divided_samples(samples, options)
        labels = None if samples is None else known_labels(self._labels, samples, options)
        if labels is None and self._shared is not None:
            labels = self._shared.labels
        context = replace(
            self.context, samples=fitted, labels=loss_labels(labels, options), seed=options.seed
        )
        measure, limit = None, options.max_drop
        if plan is None:
            measure, limit = self._measure_and_limit(loaded.model, labels)
        analysis = analyse(
            loaded.model,
            context,
            normalised_axes=options.normalised_axes,
            file_bytes=loaded_bytes(loaded),
        )
        quality, missed = None, ""
        warnings: tuple[str, ...] = ()
        if plan is None:
            run = PruneRun(analysis, Method.of(options), context)
            pruned, quality, missed = self._chosen(run, measure, limit, held_out)
            # a few that were held out for fine-tuning would refuse a result by chance
            few = options.finetune and not are_enough(held_out)
            warnings = required_to_follow(run, pruned, None if few else held_out)
        else:
            pruned = self._repeated(analysis, plan, context, held_out)
        done, report = describe(loaded, pruned, quality)
        if missed:
            warnings = (*warnings, not_met(missed))
        report = replace(report, missed=missed, warnings=(*report.warnings, *warnings))
        self.plan = done.to_dict()
        self.details = _details(done, report)
        self.notes = (report.note,) if report.note else ()
        if plan is not None and samples is None:
            self.notes += _uncompensated(plan)
        self.verified = VerifiedRun(analysis, report, fitted)
        return ir.passes.PassResult(pruned.cut.model, modified=True)

    def _measure_and_limit(
        self, model: ir.Model, labels: Labels | None
    ) -> tuple[QualityMeasure | None, float | None]:
        """What measures quality, and the largest drop; None for none of them.

        Without options of its own a pass leaves measuring to the pipeline, unless that has a limit.
        """
        options, shared = self._options, self._shared
        own = (options.max_drop, self._labels, self._metric)
        if shared is not None and all(value is None for value in own):
            limit = shared.goal.max_drop if self._has_target else shared.limit
            return (None, None) if limit is None else (shared.measure, limit)
        labels = self._labels if labels is None else labels
        samples, runtime = self.context.samples, self.context.runtime
        measure = quality_measure(model, samples, labels, self._metric, options, runtime)
        return measure, options.max_drop

    def _chosen(
        self,
        run: PruneRun,
        measure: QualityMeasure | None,
        limit: float | None,
        held_out: Samples | None,
    ) -> tuple[PrunedModel, Quality | None, str]:
        """Choose what to remove, and remove it; with the quality and what is missed of limits."""
        options = self._options
        if limit is None or measure is None:
            pruned = finetuned(run.at(options.target), run.context, held_out)
            return pruned, measure.of(pruned.cut.model) if measure is not None else None, ""
        goal = options.target if self._has_target else None
        best_effort = self._best_effort or (
            self._shared is not None and self._shared.goal.best_effort
        )
        within = prune_within(
            run,
            limit,
            measure,
            goal,
            finetune=lambda pruned: finetuned(pruned, run.context, held_out),
            best_effort=best_effort,
        )
        return within.pruned, within.quality, within.missed

    def _repeated(
        self, analysis: Analysis, plan: Plan, context: RunContext, held_out: Samples | None
    ) -> PrunedModel:
        """Remove what a plan says.

        Raises:
            InputError: when the plan does not fit the model.
            VerificationError: when the graph cannot express it.
        """
        options, base = self._options, analysis
        if plan.blocks:
            normalised = options.normalised_axes
            base = without_blocks(analysis, plan.blocks, context, normalised_axes=normalised)
        removal = planned_removal(base, plan)
        try:
            stages = planned_stages(base, plan)
            pruned = replay(analysis, base, removal, Method.of(options), context, stages)
        except CutError as error:
            raise VerificationError(f"the plan cannot be carried out: {error}") from error
        return finetuned(pruned, context, held_out, plan.tuning)

    def _checked(self, options: Mapping[str, Any]) -> PruneOptions:
        """Options for a new run, checked before anything runs.

        Raises:
            InputError: naming the option that cannot be used.
        """
        context, runtime = self.context, self.context.runtime
        options = {
            **options,
            "seed": context.seed,
            "providers": runtime.providers,
            "threads": runtime.threads,
        }
        return resolve_options(options, calibrated=context.samples is not None)

    def _planned(self, plan: Plan) -> PruneOptions:
        """Options of a plan; without samples there is no compensation."""
        planned = str(plan.options.get("compensate", "mean"))
        compensate = planned if self.context.samples is not None else "none"
        runtime = self.context.runtime
        return PruneOptions.from_dict(plan.options, compensate=compensate, runtime=runtime)


def _uncompensated(plan: Plan) -> tuple[str, ...]:
    planned = plan.options.get("compensate", "none")
    if planned == "none":
        return ()
    return (f"the plan was made with compensation {planned}; without samples there is none",)


def _details(plan: Plan, report: Report) -> dict[str, Any]:
    """What a pruning did, as plain data."""
    return {
        "options": dict(plan.options),
        "allocation": report.allocation,
        "certificate": vars(report.certificate),
        "widths": {
            name: {"before": before, "after": after}
            for name, (before, after) in report.widths.items()
        },
        "left_whole": dict(report.dropped),
        "refused_axes": len(report.refused),
    }
