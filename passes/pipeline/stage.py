"""One pass of a pipeline: called, its result checked, compared with the reference, accounted for.

A pass may have, besides what onnx-ir asks of it:

* `details`: a mapping of plain data about what it did, for the report;
* `notes`: sentences on what it did differently from what was set;
* `remark(latency)`: a sentence for people; it is given the measured `Latency` of the model against
  the one before the pass, or None;
* `files`: suffix -> text of files that belong beside the model, such as `{".tokens.json": "..."}`;
* `plan`: a mapping of plain data from which it can be repeated without choosing anew; it is then
  given back as the parameter `plan` of its constructor;
* `prefers`: option -> value that earlier passes had better be run with, where they have such an
  option, nobody set it, and they find enough to do with it;
* `changes_interface = True`: inputs and outputs of the model it makes may be others;
* `convert(feed)`: what a feed of the old model is for the new one, where inputs are others, or
  not all samples are to be seen from here on; feeds without any are left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
from onnxprune.passes.pipeline.adapters import Context, make_pass
from onnxprune.passes.pipeline.steps import Step
from onnxprune.passes.pipeline.targets import OF, TARGET, relative_target, remaining

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.feeds import Feed, batch_rows
from onnxprune.calibration.moments import BATCH
from onnxprune.calibration.streams import FeedSamples, Samples
from onnxprune.cost.latency.measure import Latency, measure_pair
from onnxprune.coupling.analysis import Analysis, analyse
from onnxprune.errors import (
    InputError,
    NothingPrunable,
    OnnxPruneError,
    RuntimeFailure,
    TargetUnreachable,
    VerificationError,
    typed_line,
)
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import load
from onnxprune.model.runtime import Runtime
from onnxprune.model.save import model_bytes
from onnxprune.options import LATENCY
from onnxprune.pruning.results import sizes_of
from onnxprune.report.records import Sizes, StepReport
from onnxprune.verification.certificate import (
    check_interface,
    check_runs,
    keep_loadable,
    tolerance_for,
)
from onnxprune.verification.comparison import OutputComparison, compare_outputs

_COMPARED_BATCHES = 16
_MEASUREMENTS = 3
_DOUBTFUL = 0.2
_UNSTEADY = (
    "the original's latency cannot be told from here (the machine is busy, or it takes other "
    "inputs), so the latency asked for is that of the model it was given"
)


@dataclass(frozen=True)
class Preference:
    """An option that a later pass prefers an earlier one to be run with.

    Attributes:
        option: its name.
        value: what it is to be.
        by: name of the later pass.
    """

    option: str
    value: Any
    by: str


@dataclass(frozen=True)
class Stage:
    """Where a pipeline has got to.

    Attributes:
        analysis: of the model as it is now.
        original: the model that the pipeline was given.
        sizes: what the original costs.
        current: what the model costs as it is now.
        reference: the model whose outputs are to be kept.
        context: what passes are offered.
        timed: whether latency is measured.
    """

    analysis: Analysis
    original: ir.Model
    sizes: Sizes
    current: Sizes
    reference: ir.Model
    context: Context
    timed: bool


@dataclass(frozen=True)
class _Made:
    """What one pass gave.

    Attributes:
        by: the pass; None where nothing was left to do.
        result: the model, and whether anything was changed.
        notes: what was done differently from what was asked.
    """

    by: Any
    result: ir.passes.PassResult
    notes: tuple[str, ...]


def advance(
    stage: Stage, step: Step, preferences: tuple[Preference, ...] = ()
) -> tuple[Stage, StepReport]:
    """Run one pass, check its result and compare it with the reference.

    Raises:
        InputError: when somebody else's pass fails.
        NothingPrunable: when the pass is to reach a target and cannot.
        VerificationError: when the result is no valid model, does not run, or has another interface
            than the pass announces.
    """
    context, before = stage.context, stage.analysis.model
    started = time.perf_counter()
    made = _carried_out(stage, step, preferences)
    seconds = time.perf_counter() - started
    one, result = made.by, made.result.model
    others = bool(getattr(one, "changes_interface", False))
    if others and hasattr(one, "convert") and context.samples is not None:
        context = replace(context, samples=_converted(context.samples, one, result))
    try:
        analysis = _checked(before, result, context, same_interface=not others)
    except (VerificationError, RuntimeFailure, InputError) as error:
        raise VerificationError(f"after {step.where or step.name}: {error}") from error
    latency = _timed(stage.original, analysis, context.runtime) if stage.timed else None
    sizes = sizes_of(analysis, (), model_bytes(analysis.model))
    report = StepReport(
        step.name,
        step.options,
        seconds,
        bool(made.result.modified),
        sizes,
        () if others else _compared(stage.reference, analysis, context),
        latency,
        others,
        _mapping(one, "details"),
        _remark(one, step, stage, analysis),
        (*made.notes, *_told_notes(one)),
        {str(suffix): str(text) for suffix, text in _mapping(one, "files").items()},
        _mapping(one, "plan") or None,
    )
    reference = analysis.model if others else stage.reference
    after = replace(stage, analysis=analysis, current=sizes, reference=reference, context=context)
    return after, report


def make(step: Step, context: Context, options: Mapping[str, Any] | None = None) -> Any:
    """Make the pass of a step.

    Args:
        step: what to make.
        context: what the pipeline supplies.
        options: in place of those of the step.

    Raises:
        InputError: for options that the pass does not take.
    """
    given = dict(step.options if options is None else options)
    if OF in step.installed.options:
        given.pop(OF.name, None)
    try:
        made_by = step.installed.made_by
        return make_pass(made_by, given, replace(context, plan=step.plan), step.name)
    except InputError as error:
        raise InputError(f"{step.where}: {error}") from error
    except Exception as error:
        if step.installed.ours:
            raise
        raise InputError(f"{step.where}: cannot be made: {typed_line(error)}") from error


def _carried_out(stage: Stage, step: Step, preferences: tuple[Preference, ...]) -> _Made:
    """Call a pass, with what later ones prefer where it can be had."""
    model = stage.analysis.model
    options, asked = _translated(stage, step)
    if options is None:
        idle = ir.passes.PassResult(model.clone(), modified=False)
        return _Made(None, idle, asked)
    notes = asked
    if preferences:
        said = ", ".join(f"{one.option}={one.value}, as {one.by} prefers" for one in preferences)
        one = make(step, stage.context, {**options, **{p.option: p.value for p in preferences}})
        try:
            return _Made(one, _called(one, model.clone(), step), (*notes, f"run with {said}"))
        except NothingPrunable:
            notes = (*notes, f"run without {said}: too little can go with that")
    one = make(step, stage.context, options)
    try:
        return _Made(one, _called(one, model.clone(), step), notes)
    except TargetUnreachable as error:
        if asked:
            error.args = (f"{error} ({'; '.join(asked)})", *error.args[1:])
        raise


def _translated(stage: Stage, step: Step) -> tuple[Mapping[str, Any] | None, tuple[str, ...]]:
    """Options as the pass itself is to be given them, None where nothing is left to do, and why."""
    options = step.options
    target = options.get(TARGET)
    relative = OF in step.installed.options and options.get(OF.name, OF.default) == OF.default
    if not relative or not target or step.plan is not None:
        return options, ()
    left = remaining(stage.sizes, stage.current)
    notes: tuple[str, ...] = ()
    if LATENCY in target and stage.current is not stage.sizes:
        measured = _steady_latency(stage)
        left |= {LATENCY: measured.ratio} if measured is not None else {}
        notes = () if measured is not None else (_UNSTEADY,)
    asked, note = relative_target(target, left)
    notes += (note,) if note else ()
    return ({**options, TARGET: asked} if asked else None), notes


def _steady_latency(stage: Stage) -> Latency | None:
    """Latency against the original, the least uncertain of several; None where none is certain."""
    runtime = stage.context.runtime
    tries = (_timed(stage.original, stage.analysis, runtime) for _ in range(_MEASUREMENTS))
    steady = [one for one in tries if one is not None and _uncertainty(one) < _DOUBTFUL]
    return min(steady, key=_uncertainty, default=None)


def _uncertainty(measured: Latency) -> float:
    low, high = measured.interval
    return (high - low) / measured.ratio


def _called(one: Any, model: ir.Model, step: Step) -> ir.passes.PassResult:
    """Call a pass; what goes wrong in somebody else's is not ours."""
    try:
        result: ir.passes.PassResult = one(model)
    except OnnxPruneError as error:
        error.args = (f"{step.where}: {error}", *error.args[1:])
        raise
    except Exception as error:
        if step.installed.ours:
            raise
        raise InputError(f"{step.where}: the pass failed: {typed_line(error)}") from error
    return result


def _remark(one: Any, step: Step, stage: Stage, analysis: Analysis) -> str:
    """What a pass has to say to people; what goes wrong in somebody else's is not ours."""
    if not callable(getattr(one, "remark", None)):
        return ""
    before, runtime = stage.analysis.model, stage.context.runtime
    latency = _timed(before, analysis, runtime) if stage.timed else None
    try:
        return str(one.remark(latency))
    except Exception as error:
        if step.installed.ours:
            raise
        raise InputError(f"{step.where}: its remark failed: {typed_line(error)}") from error


def _compared(
    reference: ir.Model, analysis: Analysis, context: Context
) -> tuple[OutputComparison, ...]:
    """Outputs of the reference and of a model on the samples; nothing without samples."""
    if context.samples is None:
        return ()
    return tuple(
        compare_outputs(
            reference,
            analysis.model,
            context.samples,
            context.runtime,
            batches=_COMPARED_BATCHES,
            progress=context.progress,
        )
    )


def _checked(
    before: ir.Model, after: ir.Model, context: Context, *, same_interface: bool
) -> Analysis:
    """Check a model that a pass has made, on the samples or made-up inputs.

    Raises:
        VerificationError: when it is no valid model, does not run, or computes no numbers.
        InputError: the same, where it does not even load.
    """
    if same_interface:
        check_interface(before, after)
    model = load(after).model
    analysis = analyse(model, RunContext(context.samples, None, context.runtime, context.seed))
    runs = analysis.runs()
    check_runs(
        before,
        model,
        [run.feed for run in runs],
        [run.outputs for run in runs],
        context.runtime,
        tolerance_for(model),
    )
    keep_loadable(model, context.runtime)
    return analysis


def _timed(reference: ir.Model, analysis: Analysis, runtime: Runtime) -> Latency | None:
    """Latency against another model; None where that does not take the same inputs."""
    feed = analysis.coupling.facts.first.feed
    try:
        return measure_pair(reference, analysis.model, feed, runtime)
    except RuntimeFailure:
        return None


def _converted(samples: Samples, one: Any, model: ir.Model) -> Samples:
    """Samples as the model takes them that a pass has made."""

    def feeds() -> Iterator[Feed]:
        converted = (one.convert(feed) for feed in samples.batches(BATCH))
        return (feed for feed in converted if batch_rows(feed, samples.specs) != 0)

    return FeedSamples(feeds, tuple(input_specs(model)), "converted calibration")


def _told_notes(one: Any) -> tuple[str, ...]:
    """Notes of a pass; none where it has no list of them."""
    told = getattr(one, "notes", None)
    return tuple(map(str, told)) if isinstance(told, (list, tuple)) else ()


def _mapping(one: Any, attribute: str) -> dict[str, Any]:
    """What a pass tells of itself under a name; empty where it is no mapping."""
    told = getattr(one, attribute, None)
    return dict(told) if isinstance(told, Mapping) else {}
