"""The functions behind `import onnxprune`."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.analysis import Analysis, analyse
from onnxprune.building import Built
from onnxprune.calibration.augment import VIEWS
from onnxprune.calibration.samples import read_samples
from onnxprune.cost.latency import measure_pair
from onnxprune.cost.macs import is_parameter, node_costs
from onnxprune.cost.shapes import CutCost
from onnxprune.coupling.cut import CutError
from onnxprune.errors import InputError, VerificationError
from onnxprune.importance import find_criterion
from onnxprune.model.execution import is_heavy
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import convert, load
from onnxprune.model.runtime import Runtime
from onnxprune.model.size import loaded_bytes, model_bytes
from onnxprune.options import ALLOCATIONS, COMPENSATIONS, Options, check_targets
from onnxprune.pipeline import prune_model, rebuild
from onnxprune.plan import Plan
from onnxprune.planning import plan_of, planned_options, planned_removal
from onnxprune.progress import silent
from onnxprune.report.summary import Report, Sizes
from onnxprune.results import Comparison, Inspection, PruneResult
from onnxprune.verification.comparison import OutputComparison, compare_outputs
from onnxprune.verification.gates import check_interface

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxprune.calibration.samples import CalibrationSource, Samples
    from onnxprune.model.load import LoadedModel, ModelSource
    from onnxprune.progress import Progress

__all__ = ["Comparison", "Inspection", "PruneResult", "apply", "inspect", "prune", "verify"]

_COMPARED_BATCHES = 16


def prune(
    model: ModelSource,
    *,
    calibration: CalibrationSource | None = None,
    target: Mapping[str, float] | None = None,
    criterion: str | None = None,
    compensate: str | None = None,
    allocation: str = "auto",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    round_to: int = 1,
    normalised_axes: bool = False,
    lossless: bool = True,
    components: bool = True,
    augment: Sequence[str] = (),
    seed: int = 0,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
    measure_latency: bool | None = None,
    progress: Progress[Any] = silent,
) -> PruneResult:
    """Make a model smaller, dense and verified.

    Args:
        model: a path, onnx.ModelProto, onnx_ir.Model or onnx_graphsurgeon.Graph; never changed.
        calibration: unlabelled samples: a mapping of input name to array (first axis = samples),
            an iterable of feeds, a path (.npz, .npy, folder, "module.py:function"), or anything
            with onnxruntime's `CalibrationDataReader.get_next()`.
        target: kind -> fraction of the original that is to remain; `channels`, `params`, `macs`.
            Default: channels=0.5.
        criterion: how units are ranked; default `reconstruction` with calibration, else `l2`.
        compensate: `least-squares` solves the layers anew whose input or output is cut, `mean`
            folds the removed channels' mean into biases, `none` does nothing; default
            `least-squares` with calibration, else `none`.
        allocation: how the removal is spread over the model: `uniform`, `global` by scores that
            can be compared, or `auto`: several ways are tried and the one is kept whose outputs
            diverge least from the original's on samples that were not fitted.
        include: name patterns; only groups with a matching tensor or node are pruned.
        exclude: name patterns; matching tensors, and those of matching nodes, stay whole.
        round_to: every axis that is cut keeps a multiple of this many units: 8 or 16 suit the
            convolution kernels of CPUs; 1 leaves widths as they come.
        normalised_axes: allow axes to be cut that normalisation statistics run over, such as the
            residual width of a transformer; the removed entries count as zeros from then on.
        lossless: before anything else take out units that are dead, constant, or copies of others;
            always without effect on the outputs, and not done with `compensate="none"`.
        components: with `least-squares`, rewrite units into components, the most important first,
            wherever only linear maps are done to them (the values of a head; its queries and keys
            without rotary embedding; bottlenecks without activation) and drop the last of these.
        augment: views of calibration images that layers are fitted on as well: `flip`, `shift`.
        seed: seed of everything random; same input, options and seed give the same bytes.
        providers: onnxruntime execution providers.
        threads: threads within an operator; 0 lets onnxruntime decide.
        measure_latency: time original and result in alternation for the report; default: unless
            the weights exceed 512 MB, which are then never loaded as a whole.
        progress: told about long loops.

    Raises:
        InputError: for a model, samples or options that cannot be used.
        NothingPrunable: when nothing can be removed, or (TargetUnreachable) not enough.
        VerificationError: when no result could be verified.
    """
    started = time.perf_counter()
    runtime = Runtime(tuple(providers), threads)
    runtime.validate()
    if seed < 0:
        raise InputError(f"the seed must be 0 or more, not {seed}")
    if round_to < 1:
        raise InputError(f"round_to must be 1 or more, not {round_to}")
    options = Options(
        target=check_targets({"channels": 0.5} if target is None else target),
        criterion=criterion or ("l2" if calibration is None else "reconstruction"),
        compensate=compensate or ("none" if calibration is None else "least-squares"),
        allocation=allocation,
        include=tuple(include),
        exclude=tuple(exclude),
        round_to=round_to,
        normalised_axes=normalised_axes,
        lossless=lossless,
        components=components,
        augment=tuple(augment),
        seed=seed,
        runtime=runtime,
    )
    find_criterion(options.criterion)
    _check_choice("compensation", options.compensate, COMPENSATIONS)
    _check_choice("allocation", options.allocation, ALLOCATIONS)
    for view in options.augment:
        _check_choice("augmentation", view, tuple(VIEWS))
    loaded = load(model)
    samples = _samples(loaded, calibration)
    analysis = analyse(loaded.model, options, samples)
    built = prune_model(analysis, options, samples, progress)
    return _result(loaded, analysis, built, options, samples, measure_latency, started, progress)


def apply(
    model: ModelSource,
    plan: Plan | str | Path,
    *,
    calibration: CalibrationSource | None = None,
    compensate: str | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
    measure_latency: bool | None = None,
    progress: Progress[Any] = silent,
) -> PruneResult:
    """Replay a plan on the model it was made for.

    Args:
        model: as for `prune`.
        plan: a plan, or the path of a plan file.
        calibration: samples for the compensation; as for `prune`.
        compensate: default: what the plan says when there is calibration, else `none`.
        providers: onnxruntime execution providers.
        threads: threads within an operator; 0 lets onnxruntime decide.
        measure_latency: time original and result in alternation for the report; default: unless
            the weights exceed 512 MB, which are then never loaded as a whole.
        progress: told about long loops.

    Raises:
        InputError: for a plan that was made for another model, or does not fit this one.
        VerificationError: when the result fails a check.
    """
    started = time.perf_counter()
    runtime = Runtime(tuple(providers), threads)
    runtime.validate()
    plan = plan if isinstance(plan, Plan) else Plan.load(plan)
    loaded = load(model)
    if plan.model.get("sha256") != loaded.sha256:
        raise InputError("the plan was made for another model: the sha256 of the file differs")
    if compensate is None:
        compensate = "none" if calibration is None else str(plan.options.get("compensate", "mean"))
    _check_choice("compensation", compensate, COMPENSATIONS)
    if compensate != "none" and calibration is None:
        raise InputError(f"compensation {compensate} looks at activations; give --calibration")
    samples = _samples(loaded, calibration)
    options = planned_options(plan, compensate, runtime)
    analysis = analyse(loaded.model, options, samples)
    removal = planned_removal(analysis, plan)
    try:
        built = rebuild(analysis, removal, options, samples, progress)
    except CutError as error:
        raise VerificationError(f"the plan cannot be carried out: {error}") from error
    return _result(loaded, analysis, built, options, samples, measure_latency, started, progress)


def inspect(
    model: ModelSource,
    *,
    calibration: CalibrationSource | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
) -> Inspection:
    """Say what can be pruned, what cannot and why, and what every node costs.

    Args:
        model: as for `prune`.
        calibration: samples; only needed for models that do not run on made-up inputs.
        providers: onnxruntime execution providers.
        threads: threads within an operator; 0 lets onnxruntime decide.

    Raises:
        InputError: for a model or samples that cannot be used.
    """
    runtime = Runtime(tuple(providers), threads)
    runtime.validate()
    loaded = load(model)
    options = Options(runtime=runtime)
    analysis = analyse(loaded.model, options, _samples(loaded, calibration))
    facts = analysis.coupling.facts
    parameters = [n for n, t in facts.constants.items() if is_parameter(t)]
    nodes = node_costs(analysis.model.graph, facts.first.shapes.__getitem__, parameters)
    return Inspection(
        sizes=_sizes(analysis, (), loaded_bytes(loaded)),
        batch=_batch(analysis),
        nodes=tuple(nodes),
        groups=analysis.groups,
        refused=analysis.refused,
    )


def verify(
    original: ModelSource,
    pruned: ModelSource,
    *,
    calibration: CalibrationSource,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
    progress: Progress[Any] = silent,
) -> Comparison:
    """Compare two models with the same interface on samples.

    Raises:
        InputError: for models or samples that cannot be used.
        VerificationError: when their interfaces differ.
    """
    runtime = Runtime(tuple(providers), threads)
    runtime.validate()
    first, second = load(original), load(pruned)
    check_interface(first.model, second.model)
    samples = read_samples(calibration, input_specs(first.model))
    outputs = compare_outputs(first.model, second.model, samples, runtime, progress=progress)
    options = Options(runtime=runtime)
    sizes = [
        _sizes(analyse(m.model, options, samples), (), loaded_bytes(m)) for m in (first, second)
    ]
    return Comparison(tuple(outputs), sizes[0], sizes[1])


def _check_choice(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise InputError(f"unknown {what} {name!r}; there are {', '.join(known)}")


def _samples(loaded: LoadedModel, calibration: CalibrationSource | None) -> Samples | None:
    return None if calibration is None else read_samples(calibration, input_specs(loaded.model))


def _result(
    loaded: LoadedModel,
    analysis: Analysis,
    built: Built,
    options: Options,
    samples: Samples | None,
    measure_latency: bool | None,
    started: float,
    progress: Progress[Any],
) -> PruneResult:
    # what `apply` is to do again, which need not be what was asked
    done = replace(options, compensate=built.compensate)
    plan = plan_of(loaded, analysis, built.removal, done)
    outputs: list[OutputComparison] = []
    if samples is not None:
        outputs = compare_outputs(
            analysis.model,
            built.model,
            samples,
            options.runtime,
            batches=_COMPARED_BATCHES,
            progress=progress,
        )
    feed = analysis.coupling.facts.first.feed
    latency = None
    if measure_latency or (measure_latency is None and not is_heavy(analysis.model)):
        latency = measure_pair(analysis.model, built.model, feed, options.runtime)

    report = Report(
        original=_sizes(analysis, (), loaded_bytes(loaded)),
        result=_sizes(analysis, built.removal.dead(), model_bytes(built.model)),
        batch=_batch(analysis),
        certificate=built.certificate,
        outputs=tuple(outputs),
        latency=latency,
        widths={one.id: (one.size, one.size - len(one.removed)) for one in plan.groups},
        inexact=tuple(one.id for one in plan.groups if one.inexact),
        refused=analysis.refused,
        dropped=dict(built.dropped),
        repairs=built.repairs,
        allocation=built.allocation,
        trials=dict(built.trials),
        note=built.note,
        seconds=time.perf_counter() - started,
    )

    model = convert(built.model, loaded.kind)
    return PruneResult(model, plan, report, built.model, loaded.path)


def _sizes(analysis: Analysis, dead: Sequence[int], size: int) -> Sizes:
    cost = CutCost(analysis.model.graph, analysis.coupling).after(dead)
    return Sizes(cost["params"], cost["macs"], size)


def _batch(analysis: Analysis) -> int:
    """Rows of the first input of the traced feed."""
    feed = analysis.coupling.facts.first.feed
    first = next(iter(feed.values()), np.zeros(1))
    return int(first.shape[0]) if first.ndim else 1
