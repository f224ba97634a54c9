"""Running a pipeline: pass after pass, and every one's result checked before the next begins."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from onnxprune.passes.pipeline.adapters import Context
from onnxprune.passes.pipeline.results import PipelineResult
from onnxprune.passes.pipeline.stage import Preference, Stage, advance, make
from onnxprune.passes.pipeline.steps import Step, planned_steps, read_steps

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.samples import CalibrationSource, read_samples
from onnxprune.coupling.analysis import analyse
from onnxprune.errors import InputError
from onnxprune.model.execution import is_heavy
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import LoadedModel, ModelSource, convert, load, loaded_bytes
from onnxprune.model.runtime import Runtime
from onnxprune.progress import Progress, silent
from onnxprune.pruning.plan import Plan, PlannedStep, model_facts
from onnxprune.pruning.results import sizes_of
from onnxprune.report.accounts import provenance_of
from onnxprune.report.records import StepReport


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
            Fractions of a `target` refer to the model given here; with `of: current` to the one
            that the pass is given.
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
    context = Context(None, _runtime(providers, threads), seed, progress)
    steps = read_steps(passes)
    return _run(load(model), steps, calibration, context, measure_latency)


def apply_pipeline(
    model: ModelSource,
    plan: Plan | str | os.PathLike[str],
    *,
    calibration: CalibrationSource | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
    measure_latency: bool | None = None,
    progress: Progress[Any] = silent,
) -> PipelineResult:
    """Run a pipeline again on the model it was run on.

    Passes that planned what they did are not asked to choose anew; on the same samples, with the
    same number of threads, the result is the same bit for bit.

    Args:
        model: as for `run_pipeline`.
        plan: of a result, or the path of its file.
        calibration: samples; as for `run_pipeline`.
        providers: onnxruntime execution providers.
        threads: threads within an operator; 0 lets onnxruntime decide.
        measure_latency: time the model after every pass; default: unless its weights exceed
            512 MB.
        progress: told about long loops.

    Raises:
        InputError: for a plan of another model, and as `run_pipeline`.
        NothingPrunable: as `run_pipeline`.
        VerificationError: as `run_pipeline`.
    """
    runtime = _runtime(providers, threads)
    plan = plan if isinstance(plan, Plan) else Plan.load(plan)
    loaded = load(model)
    if plan.model.get("sha256") != loaded.sha256:
        raise InputError("the plan was made for another model: the sha256 of the file differs")
    context = Context(None, runtime, plan.seed, progress)
    return _run(loaded, planned_steps(plan), calibration, context, measure_latency)


def _runtime(providers: Sequence[str], threads: int) -> Runtime:
    runtime = Runtime(tuple(providers), threads)
    runtime.validate()
    return runtime


def _run(
    loaded: LoadedModel,
    steps: Sequence[Step],
    calibration: CalibrationSource | None,
    context: Context,
    measure_latency: bool | None,
) -> PipelineResult:
    """Run passes on a model."""
    if calibration is not None:
        context = replace(context, samples=read_samples(calibration, input_specs(loaded.model)))
    # all are made at once: a mistake in the last step is told before the first one runs
    passes = [make(step, context) for step in steps]
    analysis = analyse(
        loaded.model, RunContext(context.samples, None, context.runtime, context.seed)
    )
    original = sizes_of(analysis, (), loaded_bytes(loaded))
    timed = not is_heavy(loaded.model) if measure_latency is None else measure_latency
    stage = Stage(analysis, loaded.model, original, original, loaded.model, context, timed)
    reports = []
    for number, step in enumerate(steps):
        later = zip(steps[number + 1 :], passes[number + 1 :], strict=True)
        stage, report = advance(stage, step, _preferences(step, later))
        reports.append(report)
    result = stage.analysis.model
    return PipelineResult(
        original=original,
        steps=tuple(reports),
        provenance=provenance_of(
            loaded.path, loaded.sha256, {"seed": context.seed}, context.runtime
        ),
        model=convert(result, loaded.kind),
        plan=_plan(loaded, context.seed, steps, reports),
        _ir=result,
        _source=loaded.path,
    )


def _preferences(step: Step, later: Iterable[tuple[Step, Any]]) -> tuple[Preference, ...]:
    """What later passes prefer of this one, where nobody has set it; of several the nearest.

    Nothing where the pass is to repeat what it did.
    """
    known = {one.name for one in step.installed.options} if step.plan is None else set()
    found: dict[str, Preference] = {}
    for other, one in later:
        preferred = getattr(one, "prefers", None)
        for option, value in preferred.items() if isinstance(preferred, Mapping) else ():
            if option in known and option not in step.options:
                found.setdefault(option, Preference(option, value, other.name))
    return tuple(found.values())


def _plan(
    loaded: LoadedModel, seed: int, steps: Sequence[Step], reports: Sequence[StepReport]
) -> Plan:
    """What was run, so that it can be run again."""
    planned = (
        PlannedStep(step.name, step.options, report.plan, step.installed.given_as_object)
        for step, report in zip(steps, reports, strict=True)
    )
    return Plan(model_facts(loaded), seed=seed, steps=tuple(planned))
