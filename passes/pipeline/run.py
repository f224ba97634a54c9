"""Running passes one after another: each called, its result checked, compared and accounted for.

A pass that verifies its own result (`Pass.verifies`) is believed: what it has measured is not
measured a second time. So pruning alone is a pipeline of one pass, and costs no more for it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.checks import NOT_COMPARED, sample_warnings
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.moments import BATCH
from onnxprune.calibration.sample_axes import SampleAxes
from onnxprune.calibration.samples import CalibrationSource, model_samples
from onnxprune.calibration.streams import FeedSamples, Samples
from onnxprune.cost.latency.measure import Latency, measure_pair
from onnxprune.coupling.analysis import Analysis, analyse
from onnxprune.declaration import read_options
from onnxprune.errors import (
    CollapseError,
    InputError,
    NothingPrunable,
    OnnxPruneError,
    RuntimeFailure,
    TargetUnreachable,
    VerificationError,
    typed_line,
)
from onnxprune.model.inputs import check_batch, input_specs, list_initializers, resized_batch
from onnxprune.model.load import LoadedModel, ModelSource, convert, load, loaded_bytes
from onnxprune.model.save import model_bytes
from onnxprune.options import LATENCY, OPTIONS
from onnxprune.passes.pipeline.adapters import make_pass
from onnxprune.passes.pipeline.options import OF, TARGET, relative_target, remaining
from onnxprune.passes.pipeline.protocol import Pass, Reference
from onnxprune.passes.pipeline.quality import (
    SHARES,
    PipelineQuality,
    QualityGoal,
    not_met,
    pipeline_quality,
)
from onnxprune.passes.pipeline.steps import Step, planned_steps
from onnxprune.progress import during
from onnxprune.pruning.plan import Plan, PlannedStep, model_facts
from onnxprune.pruning.quality import are_enough
from onnxprune.pruning.results import PruneResult, compared, sizes_of
from onnxprune.report.accounts import provenance_of
from onnxprune.report.records import Sizes, StepReport
from onnxprune.verification.certificate import (
    check_interface,
    check_result,
    keep_loadable,
    tolerance_for,
)
from onnxprune.verification.comparison import OutputComparison, collapse_text
from onnxprune.verification.quality import Quality

_MEASUREMENTS = 3
_UNSTEADY = (
    "the original's latency cannot be told from here (the machine is busy, or it takes other "
    "inputs), so the latency asked for is that of the model it was given"
)


def run_passes(
    model: ModelSource,
    steps: Sequence[Step],
    calibration: CalibrationSource | None,
    context: RunContext,
    goal: QualityGoal | None = None,
) -> PruneResult:
    """Run passes one after another; after each the model is checked and compared.

    Args:
        model: as for `onnxprune.prune`.
        steps: the passes with their options, at least one.
        calibration: samples; as for `onnxprune.prune`.
        context: runtime, seed, progress callback and whether latency is measured after every pass;
            the samples are read here.
        goal: what is asked of quality; None for nothing.

    Raises:
        InputError: for a model or samples that cannot be used, or a third-party pass that fails.
        NothingPrunable: when a pass that is to reach a target cannot.
        VerificationError: when the result of a pass is no valid model, does not run, or has
            another interface than the pass announces.
    """
    return _run(load(model), steps, calibration, context, goal)


def repeat_plan(
    model: ModelSource,
    plan: Plan | str | os.PathLike[str],
    calibration: CalibrationSource | None,
    compensate: str | None,
    context: RunContext,
) -> PruneResult:
    """Run the passes of a plan again, on the model it was made for.

    Args:
        model: as for `onnxprune.prune`.
        plan: a plan, or the path of its file.
        calibration: samples; as for `onnxprune.prune`.
        compensate: of a plan of one pruning, in place of its own; None to keep that.
        context: as for `run_passes`; the seed is the plan's.

    Raises:
        InputError: for a plan of another model, and as `run_passes`.
        NothingPrunable: as `run_passes`.
        VerificationError: as `run_passes`.
    """
    plan = plan if isinstance(plan, Plan) else Plan.load(plan)
    loaded = load(model)
    if plan.model.get("sha256") != loaded.sha256:
        raise InputError("the plan was made for another model: the sha256 of the file differs")
    if compensate is not None:
        plan = _compensated(plan, compensate, calibrated=calibration is not None)
    # what was written once is only said to be far off
    context = replace(context, seed=plan.seed, force=True)
    return _run(loaded, planned_steps(plan), calibration, context)


def _compensated(plan: Plan, compensate: str, *, calibrated: bool) -> Plan:
    """A plan of one pruning with another compensation.

    Raises:
        InputError: where it cannot have that.
    """
    read_options(OPTIONS, {"compensate": compensate})
    if plan.steps:
        raise InputError(
            "this is the plan of a pipeline, whose passes set their own compensation; leave out "
            "--compensate"
        )
    if compensate != "none" and not calibrated:
        raise InputError(f"compensation {compensate} looks at activations; give --calibration")
    return replace(plan, options={**plan.options, "compensate": compensate})


def _run(
    loaded: LoadedModel,
    steps: Sequence[Step],
    calibration: CalibrationSource | None,
    context: RunContext,
    goal: QualityGoal | None = None,
) -> PruneResult:
    check_batch(input_specs(loaded.model), context.runtime.batch)
    if calibration is not None:
        samples = model_samples(calibration, loaded.model, context.runtime)
        context = replace(context, samples=samples)
    # all are made at once: a mistake in the last step is reported before the first one runs
    passes = [_make(step, context, step.options) for step in steps]
    quality = None
    if goal is not None and goal.asks:
        _check_labels_fit(goal, steps, passes)
        classes = all(step.options.get("loss") in (None, "cross-entropy") for step in steps)
        quality, context = pipeline_quality(goal, loaded.model, context, labels_are_classes=classes)
    warnings = _warnings(loaded.model, context)
    attempts = (
        partial(_attempt, _PipelineRun(loaded, context, warnings, shared), steps, passes)
        for shared in _shared(quality, steps)
    )
    outcome = _first_that_holds(attempts, best_effort=goal is not None and goal.best_effort)
    last = len(outcome.reports) - 1
    reports = (
        *outcome.reports[:last],
        _required_to_follow(steps[last], outcome.reports[last], context),
    )
    plan = _plan(loaded, context.seed, steps[: len(reports)], reports)
    options = plan.options or {"seed": context.seed}
    return PruneResult(
        original=outcome.original,
        steps=reports,
        provenance=provenance_of(loaded.path, loaded.sha256, options, context.runtime),
        model=convert(outcome.model, loaded.kind),
        plan=plan,
        _ir=outcome.model,
        _source=loaded.path,
    )


@dataclass(frozen=True)
class _Outcome:
    """What the passes that were run have come to."""

    model: ir.Model
    original: Sizes
    reports: tuple[StepReport, ...]


class _OverLimit(TargetUnreachable):
    """A pass exceeds the limit of the pipeline; what there was before it, and with it."""

    def __init__(self, message: str, before: _Outcome, after: _Outcome) -> None:
        super().__init__(message)
        self.before, self.after = before, after


def _attempt(run: _PipelineRun, steps: Sequence[Step], passes: Sequence[Pass]) -> _Outcome:
    """Run all passes.

    Raises:
        _OverLimit: when one exceeds the limit of the pipeline.
    """
    reports: list[StepReport] = []
    for number, (step, first) in enumerate(zip(steps, passes, strict=True)):
        later = zip(steps[number + 1 :], passes[number + 1 :], strict=True)
        before = run.result
        try:
            reports.append(run.advance(step, first, _preferences(step, later)))
        except (NothingPrunable, VerificationError) as error:
            if text := run.warning:
                error.args = (f"{error}; about the samples: {text}", *error.args[1:])
            raise
        if message := run.exceeded(step, reports[-1]):
            raise _OverLimit(
                message,
                _Outcome(before, run.original_sizes, tuple(reports[:-1])),
                _Outcome(run.result, run.original_sizes, tuple(reports)),
            )
    return _Outcome(run.result, run.original_sizes, tuple(reports))


def _shared(quality: PipelineQuality | None, steps: Sequence[Step]) -> list[PipelineQuality | None]:
    """What passes share in each attempt: less of the limit for a pruning that others follow.

    A pruning with a target, or with a limit of its own, does not depend on it.
    """
    searching = [
        number
        for number, step in enumerate(steps)
        if step.name == "prune" and not {"target", "max_drop"} & step.options.keys()
    ]
    if (
        quality is None
        or quality.limit is None
        or min(searching, default=-1) in (-1, len(steps) - 1)
    ):
        return [quality]
    return [replace(quality, share=share) for share in SHARES]


def _first_that_holds(attempts: Iterable[Callable[[], _Outcome]], *, best_effort: bool) -> _Outcome:
    """The first attempt within the limit.

    With best effort, where there is none, the first attempt up to the pass that exceeds the limit;
    with this pass where it is the first of all.

    Raises:
        TargetUnreachable: when there is none.
        NothingPrunable: when the first attempt has nothing to prune.
    """
    over: _OverLimit | None = None
    for attempt in attempts:
        try:
            return attempt()
        except _OverLimit as error:
            over = over or error
        except NothingPrunable:
            if over is None:
                raise
    assert over is not None
    if not best_effort:
        raise over
    best = over.before if over.before.reports else over.after
    last, missed = best.reports[-1], str(over)
    last = replace(last, missed=missed, warnings=(*last.warnings, not_met(missed)))
    return replace(best, reports=(*best.reports[:-1], last))


def _check_labels_fit(goal: QualityGoal, steps: Sequence[Step], passes: Sequence[Pass]) -> None:
    """Refuse labels where a pass changes the samples that they belong to.

    Raises:
        InputError: naming the pass.
    """
    changing = [
        step.name for step, made in zip(steps, passes, strict=True) if made.changes_interface
    ]
    if goal.labels is not None and changing:
        raise InputError(
            f"labels do not fit the samples after the pass {changing[0]}, which changes the "
            "interface; run it by itself first, or leave out the labels"
        )


def _required_to_follow(step: Step, report: StepReport, context: RunContext) -> StepReport:
    """Require that the answers after the last pass follow the original's.

    A pruning has checked that itself; where a plan is repeated, or samples are few, it is only
    said.

    Raises:
        CollapseError: when they do not.
    """
    text = collapse_text(report.outputs)
    if not text or (report.report is not None and step.plan is None):
        return report
    message = f"the answers no longer follow the original's: {text}"
    few = not are_enough(context.samples)
    quality = report.quality
    # labels may well be another thing than the answers before
    learnt = report.tuning is not None and quality is not None and quality.drop <= 0
    if context.force or few or learnt or step.plan is not None:
        return replace(report, warnings=(*report.warnings, message))
    raise CollapseError(
        step.named(f"{message}; nothing is written, --force writes it all the same")
    )


def _warnings(model: ir.Model, context: RunContext) -> tuple[str, ...]:
    """What is odd about the samples; nothing where the model does not run, which comes up later."""
    if context.samples is None:
        return (NOT_COMPARED,)
    work = partial(sample_warnings, model, context.samples, context.runtime)
    try:
        return during(context.progress, "checking samples", work)
    except RuntimeFailure:
        return ()


def _plan(
    loaded: LoadedModel, seed: int, steps: Sequence[Step], reports: Sequence[StepReport]
) -> Plan:
    """What was run, so that it can be run again."""
    if [step.name for step in steps] == ["prune"] and reports[0].plan is not None:
        return Plan.from_dict(reports[0].plan)
    planned = (
        PlannedStep(step.name, step.options, report.plan, step.installed.given_as_object)
        for step, report in zip(steps, reports, strict=True)
    )
    return Plan(model_facts(loaded), seed=seed, steps=tuple(planned))


@dataclass(frozen=True)
class _Preference:
    """An option that a later pass prefers an earlier one to be run with.

    Attributes:
        option: its name.
        value: what it is to be.
        by: name of the later pass.
    """

    option: str
    value: Any
    by: str


def _preferences(step: Step, later: Iterable[tuple[Step, Pass]]) -> tuple[_Preference, ...]:
    """What later passes prefer of this one, where nobody has set it; of several the nearest.

    Nothing where the pass is to repeat what it did.
    """
    known = {option.name for option in step.installed.options} if step.plan is None else set()
    preferences: dict[str, _Preference] = {}
    for other, made in later:
        for option, value in made.prefers.items():
            if option in known and option not in step.options:
                preferences.setdefault(option, _Preference(option, value, other.name))
    return tuple(preferences.values())


def _make(
    step: Step,
    context: RunContext,
    options: Mapping[str, Any],
    quality: PipelineQuality | None = None,
    reference: Reference | None = None,
) -> Pass:
    """Make the pass of a step.

    Raises:
        InputError: for options that the pass does not take.
    """
    values = dict(options)
    if OF in step.installed.options:
        values.pop(OF.name, None)
    made_by, plan = step.installed.made_by, step.plan
    try:
        return make_pass(made_by, values, context, plan, step.name, quality, reference)
    except InputError as error:
        raise InputError(step.named(error)) from error
    except Exception as error:
        if step.installed.ours:
            raise
        raise InputError(step.named(f"cannot be made: {typed_line(error)}")) from error


class _Idle(Pass, ir.passes.FunctionalPass):
    """Stands for a pass whose target is met before it runs."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Leave the model as it is."""
        return ir.passes.PassResult(model.clone(), modified=False)


class _PipelineRun:
    """A pipeline on its way.

    Args:
        loaded: the model that it was given.
        context: what passes are offered; its samples follow the interface of the model.
        warnings: what is odd about the samples.
        quality: what is asked of quality; None for nothing.

    Attributes:
        result: the model as it is now.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        context: RunContext,
        warnings: tuple[str, ...] = (),
        quality: PipelineQuality | None = None,
    ) -> None:
        self.result = loaded.model
        self._quality = quality
        self._warnings = self._unsaid = warnings
        self._started = time.perf_counter()
        self._loaded = loaded
        self._original = loaded.model
        self._reference = Reference(loaded.model)
        self._context = context
        self._timed = context.measures_latency(loaded.model)
        self._original_sizes: Sizes | None = None
        self._sizes: Sizes | None = None
        self._feed: Mapping[str, NDArray[Any]] = {}

    @property
    def original_sizes(self) -> Sizes:
        """Costs of the model that the pipeline was given; known once a pass was run."""
        assert self._original_sizes is not None
        return self._original_sizes

    @property
    def warning(self) -> str:
        """The first of what is odd about the samples; empty for nothing."""
        return self._warnings[0] if self._warnings and self._context.samples is not None else ""

    def exceeded(self, step: Step, report: StepReport) -> str:
        """What a pass exceeds of the limit, in words; empty for nothing."""
        if self._quality is None or not self._quality.exceeded(report.quality):
            return ""
        assert report.quality is not None
        if report.missed:
            return report.missed
        return (
            f"after {step.where or step.name} the drop of quality is {report.quality.drop:.3g} "
            f"({report.quality.measure}), more than the {self._quality.goal.max_drop:g} allowed"
        )

    def advance(
        self, step: Step, made: Pass, preferences: tuple[_Preference, ...] = ()
    ) -> StepReport:
        """Run one pass, check its result and compare it with the reference.

        Args:
            step: its name and options.
            made: the pass, made with these options.
            preferences: what later passes prefer.

        Raises:
            InputError: when a third-party pass fails.
            NothingPrunable: when the pass is to reach a target and cannot.
            VerificationError: when the result is no valid model, does not run, or has another
                interface than the pass announces.
        """
        if self._original_sizes is None and not made.verifies:
            analysis = analyse(self.result, self._context)
            self._original_sizes = self._sizes = sizes_of(analysis, (), loaded_bytes(self._loaded))
            self._feed = analysis.coupling.facts.first.feed
        if self._loaded.model is not self.result:
            self._loaded = load(self.result)
        before, started = self._loaded.model, time.perf_counter()
        made, done, notes = self._carry_out(step, made, preferences)
        seconds = time.perf_counter() - started
        self._accept(step, made, done.model)
        verified, context = made.verified, self._context
        samples = context.samples if verified is None else verified.samples
        outputs: tuple[OutputComparison, ...] = ()
        self._follow(made, before)
        if samples is not None and not made.changes_interface:
            reference = self._reference.model
            outputs = compared(reference, self.result, replace(context, samples=samples))
        report = None if verified is None else verified.report
        known = report.latency if report is not None and before is self._original else None
        latency = known or self._latency(self._original)
        if report is not None and before is self._original:
            passed = time.perf_counter() - self._started
            report = replace(report, outputs=outputs, latency=latency, seconds=passed)
        quality = self._measured_quality(made) or made.quality
        if report is not None and quality is not None:
            report = replace(report, quality=quality)
        warnings = self._unsaid if report is None else (*self._unsaid, *report.warnings)
        self._unsaid = ()
        if report is not None:
            report = replace(report, warnings=(*self._warnings, *report.warnings))
        assert self._sizes is not None
        return StepReport(
            step.name,
            step.options,
            seconds,
            bool(done.modified),
            self._sizes,
            outputs,
            latency,
            made.changes_interface,
            made.details,
            self._remark(step, made, latency if before is self._original else None, before),
            (*notes, *made.notes),
            made.files,
            made.plan,
            report,
            warnings,
            quality,
            getattr(report, "missed", ""),
            made.tuning,
        )

    def _follow(self, made: Pass, before: ir.Model) -> None:
        """Let answers follow another model, after a pass that says so or changes what they are."""
        if made.changes_interface:
            self._reference = Reference(self.result)
        elif made.teacher is not None:
            self._reference = Reference(made.teacher)
        elif made.verified is not None and before is self._reference.model:
            self._reference = replace(self._reference, pruning=made.plan)

    def _measured_quality(self, made: Pass) -> Quality | None:
        """Quality against the reference; None where it is not measured.

        A pass that changes the interface makes another reference.
        """
        if self._quality is None:
            return None
        if not made.changes_interface:
            return self._quality.of(self.result)
        samples = _converted(self._quality.samples, made, self.result)
        self._quality = self._quality.against(self.result, samples, self._context.runtime)
        return None

    def _carry_out(
        self, step: Step, made: Pass, preferences: tuple[_Preference, ...]
    ) -> tuple[Pass, ir.passes.PassResult, tuple[str, ...]]:
        """Call a pass, with what later ones prefer where it can be had; say what is different."""
        options, asked = self._translated(step)
        if options is None:
            made = _Idle()
            return made, made.run(self._loaded), asked
        notes = asked
        if preferences:
            text = ", ".join(f"{p.option}={p.value}, as {p.by} prefers" for p in preferences)
            preferred = {p.option: p.value for p in preferences}
            values = {**options, **preferred}
            made = _make(step, self._context, values, self._quality, self._reference)
            try:
                return made, self._called(step, made), (*notes, f"run with {text}")
            except NothingPrunable:
                notes = (*notes, f"run without {text}: too little can go with that")
        made = _make(step, self._context, options, self._quality, self._reference)
        try:
            return made, self._called(step, made), notes
        except TargetUnreachable as error:
            if asked:
                error.args = (f"{error} ({'; '.join(asked)})", *error.args[1:])
            raise

    def _translated(self, step: Step) -> tuple[Mapping[str, Any] | None, tuple[str, ...]]:
        """Options as the pass itself is to be given them, None where its target is met, and why."""
        options = step.options
        target = options.get(TARGET)
        relative = OF in step.installed.options and options.get(OF.name, OF.default) == OF.default
        if not relative or not target or step.plan is not None or self._sizes is None:
            return options, ()
        left = remaining(self.original_sizes, self._sizes)
        notes: tuple[str, ...] = ()
        if LATENCY in target and self._sizes is not self._original_sizes:
            measured = self._steady_latency()
            left |= {LATENCY: measured.ratio} if measured is not None else {}
            notes = () if measured is not None else (_UNSTEADY,)
        asked, note = relative_target(target, left)
        notes += (note,) if note else ()
        return ({**options, TARGET: asked} if asked else None), notes

    def _called(self, step: Step, made: Pass) -> ir.passes.PassResult:
        """Call a pass; an exception in a third-party one is an error of the input."""
        try:
            return made.run(self._loaded)
        except OnnxPruneError as error:
            error.args = (step.named(error), *error.args[1:])
            raise
        except Exception as error:
            if step.installed.ours:
                raise
            raise InputError(step.named(f"the pass failed: {typed_line(error)}")) from error

    def _accept(self, step: Step, made: Pass, model: ir.Model) -> None:
        """Check what a pass has made, unless it did so itself, and go on from there.

        Raises:
            VerificationError: when it is no valid model, does not run, or computes no numbers.
        """
        if made.verified is not None:
            report = made.verified.report
            if self._original_sizes is None:
                self._original_sizes = report.original
            self.result, self._sizes = model, report.result
            self._feed = made.verified.analysis.coupling.facts.first.feed
            keep_loadable(model, self._context.runtime)
            return
        if made.changes_interface and self._context.samples is not None:
            samples = _converted(self._context.samples, made, model)
            self._context = replace(self._context, samples=samples)
        try:
            analysis = self._checked(model, same_interface=not made.changes_interface)
        except (VerificationError, RuntimeFailure, InputError) as error:
            raise VerificationError(f"after {step.where or step.name}: {error}") from error
        self.result = analysis.model
        self._sizes = sizes_of(analysis, (), model_bytes(analysis.model))
        self._feed = analysis.coupling.facts.first.feed

    def _checked(self, model: ir.Model, *, same_interface: bool) -> Analysis:
        """Check a model on the samples, or on randomly generated inputs.

        Raises:
            VerificationError: when it is no valid model, does not run, or computes no numbers.
            InputError: the same, where it does not even load.
        """
        before, runtime = self._loaded.model, self._context.runtime
        if same_interface:
            check_interface(before, model)
        list_initializers(model)
        self._loaded = load(model)
        model = self._loaded.model
        analysis = analyse(model, self._context)
        runs = analysis.runs()
        feeds, outputs = [run.feed for run in runs], [run.outputs for run in runs]
        check_result(
            before,
            model,
            feeds,
            outputs,
            runtime,
            tolerance_for(model),
            same_interface=same_interface,
        )
        keep_loadable(model, runtime)
        return analysis

    def _remark(self, step: Step, made: Pass, latency: Latency | None, before: ir.Model) -> str:
        """What a pass has to say; an exception in a third-party one is an error of the input."""
        if made.wants_latency and latency is None:
            latency = self._latency(before)
        try:
            return made.remark(latency)
        except Exception as error:
            if step.installed.ours:
                raise
            raise InputError(step.named(f"its remark failed: {typed_line(error)}")) from error

    def _latency(self, reference: ir.Model) -> Latency | None:
        """Latency against another model; None where it is not measured or other inputs are."""
        if not self._timed:
            return None
        return self._measured_latency(reference)

    def _measured_latency(self, reference: ir.Model) -> Latency | None:
        runtime = self._context.runtime
        feed = resized_batch(input_specs(self.result), self._feed, runtime.batch)
        work = partial(measure_pair, reference, self.result, feed, runtime)
        latency: Latency | None = None
        with contextlib.suppress(RuntimeFailure):
            latency = during(self._context.progress, "measuring latency", work)
        return latency

    def _steady_latency(self) -> Latency | None:
        """Latency against the original, the least uncertain of several; None where none is sure."""
        tries = (self._measured_latency(self._original) for _ in range(_MEASUREMENTS))
        steady = [each for each in tries if each is not None and each.reliable]
        return min(steady, key=lambda latency: latency.uncertainty, default=None)


def _converted(samples: Samples, made: Pass, model: ir.Model) -> Samples:
    """Samples as the model takes them that a pass has made."""
    specs = tuple(input_specs(model))
    axes = SampleAxes.of(specs)

    def feeds() -> Iterator[Mapping[str, NDArray[Any]]]:
        converted = (made.convert(feed) for feed in samples.batches(BATCH))
        return (feed for feed in converted if axes.rows(feed) != 0)

    return FeedSamples(feeds, specs, "converted calibration")
