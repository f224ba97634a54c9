"""The functions behind `import onnxprune`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.allocate.choose import Removal
from onnxprune.calibration.samples import read_samples
from onnxprune.cost.latency import measure_pair
from onnxprune.cost.macs import is_parameter, node_costs
from onnxprune.cost.shapes import CutCost
from onnxprune.coupling.closure import close
from onnxprune.coupling.cut import Cut, CutError
from onnxprune.errors import InputError, VerificationError
from onnxprune.importance import find_criterion
from onnxprune.model.execution import is_heavy
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import convert, load
from onnxprune.model.runtime import Runtime
from onnxprune.model.size import loaded_bytes, model_bytes
from onnxprune.options import COMPENSATIONS, Options, check_targets
from onnxprune.pipeline import Analysis, Built, analyse, build, prune_model, statistics_of
from onnxprune.plan import Plan, PlannedGroup, PlannedRefusal
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
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    round_to: int = 1,
    normalised_axes: bool = False,
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
        criterion: how units are ranked; default `variance` with calibration, else `l2`.
        compensate: `mean` folds the removed channels' mean into biases, `none` does not; default
            `mean` with calibration, else `none`.
        include: name patterns; only groups with a matching tensor or node are pruned.
        exclude: name patterns; matching tensors, and those of matching nodes, stay whole.
        round_to: every axis that is cut keeps a multiple of this many units: 8 or 16 suit the
            convolution kernels of CPUs; 1 leaves widths as they come.
        normalised_axes: allow axes to be cut that normalisation statistics run over, such as the
            residual width of a transformer; the removed entries count as zeros from then on.
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
        criterion=criterion or ("l2" if calibration is None else "variance"),
        compensate=compensate or ("none" if calibration is None else "mean"),
        include=tuple(include),
        exclude=tuple(exclude),
        round_to=round_to,
        normalised_axes=normalised_axes,
        seed=seed,
        runtime=runtime,
    )
    find_criterion(options.criterion)
    _check_compensation(options.compensate)
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
    _check_compensation(compensate)
    if compensate != "none" and calibration is None:
        raise InputError(f"compensation {compensate} looks at activations; give --calibration")
    samples = _samples(loaded, calibration)
    options = _planned_options(plan, compensate, runtime)
    analysis = analyse(loaded.model, options, samples)
    removal = _planned_removal(analysis, plan)
    moments = {}
    if samples is not None and compensate == "mean":
        moments = statistics_of(analysis, samples, options, progress)
    try:
        built = build(analysis, removal, options, moments, samples)
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


def _check_compensation(name: str) -> None:
    if name not in COMPENSATIONS:
        raise InputError(f"unknown compensation {name!r}; there are {', '.join(COMPENSATIONS)}")


def _samples(loaded: LoadedModel, calibration: CalibrationSource | None) -> Samples | None:
    return None if calibration is None else read_samples(calibration, input_specs(loaded.model))


def _planned_options(plan: Plan, compensate: str, runtime: Runtime) -> Options:
    try:
        return Options(
            target=check_targets(plan.options.get("target") or {"channels": 1.0}),
            criterion=str(plan.options.get("criterion", "l2")),
            compensate=compensate,
            include=tuple(map(str, plan.options.get("include", ()))),
            exclude=tuple(map(str, plan.options.get("exclude", ()))),
            normalised_axes=bool(plan.options.get("normalised_axes", False)),
            seed=int(plan.options.get("seed", 0)),
            runtime=runtime,
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"the plan's options are damaged ({error!r})") from None


def _planned_removal(analysis: Analysis, plan: Plan) -> Removal:
    """Classes of the planned units, with everything that has to go with them."""
    by_name = {group.name: group for group in analysis.groups}
    removed = {}
    for planned in plan.groups:
        group = by_name.get(planned.id)
        if (
            group is None
            or group.size != planned.size
            or max(planned.removed, default=0) >= group.size
        ):
            raise InputError(f"the plan does not fit this model at group {planned.id}")
        gone = set(planned.removed)
        if any(
            whole and gone.issuperset(units)
            for units, whole in zip(group.axes, group.closed, strict=True)
        ):
            raise InputError(f"the plan leaves nothing of an axis of group {planned.id}")
        seeds = [int(group.units[unit]) for unit in planned.removed]
        dead = np.zeros(int(group.classes.max()) + 1, bool)
        killed = close(
            group.constraints, group.constraints.by_class(), dead, seeds, np.zeros(len(dead))
        )
        if killed is None or int(dead[group.units].sum()) != len(seeds):
            raise InputError(f"the plan's removal in group {planned.id} is not a legal one")
        removed[group.name] = tuple(killed)
    return Removal(removed)


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
    plan = _plan(loaded, analysis, built, options)
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
        seconds=time.perf_counter() - started,
    )

    model = convert(built.model, loaded.kind)
    return PruneResult(model, plan, report, built.model, loaded.path)


def _plan(loaded: LoadedModel, analysis: Analysis, built: Built, options: Options) -> Plan:
    cut = Cut(analysis.coupling, built.removal.dead())
    groups = []
    inexact = analysis.coupling.inexact_classes()
    for group in analysis.groups:
        gone = set(built.removal.classes.get(group.name, ()))
        removed = tuple(i for i, one in enumerate(group.units.tolist()) if one in gone)
        consumers = dict.fromkeys(reading.consumer.node for reading in group.readings)
        if removed:
            groups.append(
                PlannedGroup(
                    group.name,
                    group.size,
                    removed,
                    group.kind,
                    tuple(consumers),
                    not inexact.isdisjoint(gone),
                )
            )
    kept = {
        name: {axis: tuple(indices.tolist()) for axis, indices in cut.kept(name).items()}
        for name in analysis.coupling.facts.constants
        if cut.touches(name)
    }
    return Plan(
        model={
            "sha256": loaded.sha256,
            "producer": loaded.model.producer_name or "",
            "opset": dict(loaded.model.opset_imports),
        },
        options=options.to_dict(),
        groups=tuple(groups),
        initializers=kept,
        refused=tuple(PlannedRefusal(one.axis, one.node, one.reason) for one in analysis.refused),
    )


def _sizes(analysis: Analysis, dead: Sequence[int], size: int) -> Sizes:
    cost = CutCost(analysis.model.graph, analysis.coupling).after(dead)
    return Sizes(cost["params"], cost["macs"], size)


def _batch(analysis: Analysis) -> int:
    """Rows of the first input of the traced feed."""
    feed = analysis.coupling.facts.first.feed
    first = next(iter(feed.values()), np.zeros(1))
    return int(first.shape[0]) if first.ndim else 1
