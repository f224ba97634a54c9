"""Running a pipeline: pass after pass, and every one's result checked before the next begins.

A pass may have, besides what onnx-ir asks of it:

* `details`: a mapping of plain data about what it did, for the report;
* `remark(latency)`: a sentence for people; it is given the measured `Latency` of the model against
  the one before the pass, or None;
* `changes_interface = True`: inputs and outputs of the model it makes may be others;
* `convert(feed)`: what a feed of the old model is for the new one, where inputs are others.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxprune.analysis import analyse
from onnxprune.calibration.samples import read_samples
from onnxprune.calibration.scripts import first_line
from onnxprune.calibration.statistics import BATCH
from onnxprune.calibration.streams import FeedSamples
from onnxprune.cost.latency import measure_pair
from onnxprune.errors import InputError, OnnxPruneError, RuntimeFailure, VerificationError
from onnxprune.model.execution import is_heavy
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import convert, load
from onnxprune.model.runtime import Runtime
from onnxprune.model.size import loaded_bytes, model_bytes
from onnxprune.options import Options
from onnxprune.outcome import sizes_of
from onnxprune.pipelines.adapters import Context, make_pass
from onnxprune.pipelines.results import PipelineResult, StepReport
from onnxprune.pipelines.steps import Step, read_steps
from onnxprune.progress import silent
from onnxprune.verification.certificate import tolerance_for
from onnxprune.verification.comparison import compare_outputs
from onnxprune.verification.gates import check_interface, check_runs
from onnxprune.verification.stored import keep_loadable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onnxprune.analysis import Analysis
    from onnxprune.calibration.feeds import Feed
    from onnxprune.calibration.samples import CalibrationSource, Samples
    from onnxprune.cost.latency import Latency
    from onnxprune.model.load import ModelSource
    from onnxprune.progress import Progress

__all__ = ["run_pipeline"]

_COMPARED_BATCHES = 16


def run_pipeline(
    model: ModelSource,
    passes: Any,
    *,
    calibration: CalibrationSource | None = None,
    seed: int = 0,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
    measure_latency: bool | None = None,
    progress: Progress[Any] = silent,
) -> PipelineResult:
    """Run passes one after another; after each the model is checked and compared.

    Args:
        model: a path, onnx.ModelProto, onnx_ir.Model or onnx_graphsurgeon.Graph; never changed.
        passes: path of a YAML or JSON file; or a list of names, of {name: options}, and of passes
            or functions themselves. See `pipelines.steps`, and `onnxprune passes` for the names.
        calibration: samples for passes that use them; as for `onnxprune.prune`.
        seed: of everything random.
        providers: onnxruntime execution providers.
        threads: threads within an operator; 0 lets onnxruntime decide.
        measure_latency: time the model after every pass; default: unless its weights exceed
            512 MB.
        progress: told about long loops.

    Raises:
        InputError: for a pipeline, model or samples that cannot be used, or a pass of somebody
            else's that fails.
        NothingPrunable: when a pass that is to reach a target cannot.
        VerificationError: when what a pass made is no valid model, does not run, or has another
            interface than the pass announces.
    """
    runtime = Runtime(tuple(providers), threads)
    runtime.validate()
    steps = read_steps(passes)
    loaded = load(model)
    samples = None if calibration is None else read_samples(calibration, input_specs(loaded.model))
    context = Context(samples, runtime, seed, progress)
    for step in steps:
        _made(step, context)  # a mistake in the last step is told before the first one runs
    analysis = analyse(loaded.model, Options(runtime=runtime, seed=seed), samples)
    original = sizes_of(analysis, (), loaded_bytes(loaded))
    timed = not is_heavy(loaded.model) if measure_latency is None else measure_latency
    state = _State(analysis, loaded.model, context, timed)
    reports = []
    for step in steps:
        state, report = _advanced(state, step)
        reports.append(report)
    result = state.analysis.model
    return PipelineResult(
        convert(result, loaded.kind), original, tuple(reports), result, loaded.path
    )


@dataclass(frozen=True)
class _State:
    """Where a pipeline has got to.

    Attributes:
        analysis: of the model as it is now.
        reference: the model whose outputs are to be kept.
        context: what passes are offered.
        timed: whether latency is measured.
    """

    analysis: Analysis
    reference: ir.Model
    context: Context
    timed: bool


def _advanced(state: _State, step: Step) -> tuple[_State, StepReport]:
    """Run one pass, check its result and compare it with the reference."""
    context, before = state.context, state.analysis.model
    one = _made(step, context)
    started = time.perf_counter()
    made = _called(one, before.clone(), step)
    seconds = time.perf_counter() - started
    others = bool(getattr(one, "changes_interface", False))
    if others and hasattr(one, "convert") and context.samples is not None:
        context = replace(context, samples=_converted(context.samples, one, made.model))
    try:
        analysis = _checked(before, made.model, context, same_interface=not others)
    except (VerificationError, RuntimeFailure, InputError) as error:
        raise VerificationError(f"after {step.where or step.name}: {error}") from error
    reference = analysis.model if others else state.reference
    latency = _timed(state.reference, analysis, context.runtime) if state.timed else None
    outputs = []
    if context.samples is not None and not others:
        outputs = compare_outputs(
            reference,
            analysis.model,
            context.samples,
            context.runtime,
            batches=_COMPARED_BATCHES,
            progress=context.progress,
        )
    remark = ""
    if hasattr(one, "remark"):
        remark = one.remark(_timed(before, analysis, context.runtime) if state.timed else None)
    report = StepReport(
        step.name,
        step.options,
        seconds,
        bool(made.modified),
        sizes_of(analysis, (), model_bytes(analysis.model)),
        tuple(outputs),
        latency,
        others,
        dict(getattr(one, "details", {})),
        remark,
    )
    return _State(analysis, reference, context, state.timed), report


def _made(step: Step, context: Context) -> ir.passes.PassBase:
    try:
        return make_pass(step.installed.made_by, step.options, context, step.name)
    except InputError as error:
        raise InputError(f"{step.where}: {error}") from error


def _called(one: ir.passes.PassBase, model: ir.Model, step: Step) -> ir.passes.PassResult:
    """Call a pass; what goes wrong in somebody else's is not ours."""
    try:
        return one(model)
    except OnnxPruneError as error:
        error.args = (f"{step.where}: {error}", *error.args[1:])
        raise
    except Exception as error:
        if step.installed.ours:
            raise
        raise InputError(f"{step.where}: the pass failed: {first_line(error)}") from error


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
    analysis = analyse(model, Options(runtime=context.runtime, seed=context.seed), context.samples)
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
    """Latency against the reference; None where that does not take the same inputs."""
    feed = analysis.coupling.facts.first.feed
    try:
        return measure_pair(reference, analysis.model, feed, runtime)
    except RuntimeFailure:
        return None


def _converted(samples: Samples, one: Any, model: ir.Model) -> Samples:
    """Samples as the model takes them that a pass has made."""

    def feeds() -> Iterator[Feed]:
        return (one.convert(feed) for feed in samples.batches(BATCH))

    return FeedSamples(feeds, tuple(input_specs(model)), "converted calibration")
