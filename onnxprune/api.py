"""The functions behind `import onnxprune`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.samples import CalibrationSource, read_samples
from onnxprune.calibration.streams import Samples, divide
from onnxprune.cost.figures import node_costs
from onnxprune.coupling.analysis import analyse
from onnxprune.coupling.cut import CutError
from onnxprune.declaration import read_options
from onnxprune.errors import InputError, VerificationError
from onnxprune.importance.registry import resolve_options
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import LoadedModel, ModelSource, load, loaded_bytes
from onnxprune.model.runtime import Runtime
from onnxprune.options import OPTIONS, RUNTIME_OPTIONS, PruneOptions
from onnxprune.progress import Progress, silent
from onnxprune.pruning.blocks import without_blocks
from onnxprune.pruning.max_drop import Limit, prune_within
from onnxprune.pruning.method import Method
from onnxprune.pruning.plan import Plan, planned_removal, planned_stages
from onnxprune.pruning.quality import fitted_samples, known_labels, quality_measure
from onnxprune.pruning.results import (
    Comparison,
    Inspection,
    PruneResult,
    batch_of,
    build_result,
    sizes_of,
)
from onnxprune.pruning.run import PruneRun, replay
from onnxprune.report.network.network import find_network
from onnxprune.verification.certificate import check_interface
from onnxprune.verification.comparison import compare_outputs
from onnxprune.verification.quality import Quality


def prune(
    model: ModelSource,
    *,
    calibration: CalibrationSource | None = None,
    target: Mapping[str, float] | None = None,
    max_drop: float | None = None,
    labels: Any = None,
    metric: Callable[..., Any] | str | None = None,
    criterion: str | None = None,
    loss: str | Callable[..., Any] | None = None,
    compensate: str | None = None,
    allocation: str = "auto",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    round_to: int | str = "auto",
    steps: int = 1,
    blocks: bool = False,
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
        target: fraction of the original that remains, by kind: `channels`, `params`, `macs`,
            `size`, `memory` or `latency`; several are all met. Default: channels=0.5, or with
            `max_drop` the smallest model within that limit.
        max_drop: largest drop of quality allowed: of accuracy in percent with `labels`, of what
            `metric` returns, else of the agreement with the original in percent (same class; cosine
            of other outputs). Measured on every fourth sample, which nothing is fitted on.
        labels: one label for each sample: array, .npy, .npz or text file; for measuring quality,
            and for `loss`.
        metric: function of all outputs ({name: array [samples, ...]}) and the labels (None without)
            whose result is higher for better answers; also as module.py:function.
        criterion: how units are ranked: `l1`, `l2`, `redundancy` or `random`; with samples also
            `reconstruction`, `variance`, `std`, `activity`, `taylor` or `fisher`. Default:
            `reconstruction` with samples, else `l2`.
        loss: what the criteria `taylor` and `fisher` differentiate: `cross-entropy`, `mse` (labels
            are then targets), or a function of all outputs and the labels that returns the loss of
            each sample, or {output: gradient}; also as module.py:function. Default: `cross-entropy`
            for class scores, `mse` for other outputs. Labels that are missing are drawn from the
            model's own outputs.
        compensate: `least-squares` re-fits the layers whose input or output is cut, `mean` folds
            the mean of removed units into biases, `none` leaves the other weights as they are.
            Default: `least-squares` with samples, else `none`.
        allocation: how the removal is spread over the model: `uniform`, `global` (by comparable
            scores), or `auto`, which tries several ways and keeps the one whose outputs diverge
            least from the original's on held-out samples.
        include: name patterns (with * and ?); only groups with a matching tensor or node are
            pruned.
        exclude: name patterns (with * and ?); matching tensors, and those of matching nodes, are
            not pruned.
        round_to: every cut axis keeps a multiple of this many units: 8 or 16 suit the convolution
            kernels of CPUs, 1 allows any width, `auto` takes the steps measured on this machine
            where latency is a target, else 1.
        steps: how many steps to prune in; after each, layers are re-fitted and units ranked again.
        blocks: also replace whole residual branches by their mean, where outputs then diverge less
            on held-out samples than with narrower layers alone; needs samples and `least-squares`.
        normalised_axes: also cut axes that normalisation statistics run over, such as the residual
            width of a transformer; removed entries then count as zeros.
        lossless: first remove units that are dead, constant or copies of others, which changes no
            output; not done with compensation `none`.
        components: with `least-squares`, remove the least important components instead of units
            wherever only linear maps act on them: values of attention heads, queries and keys
            without rotary embedding, bottlenecks without activation.
        augment: views of calibration images to fit layers on as well: `flip`, `shift`; for models
            of images that may be flipped and shifted.
        seed: seed of everything random; the same input, options and seed give the same bytes.
        providers: onnxruntime execution providers, the preferred one first.
        threads: threads within an operator; 0 lets onnxruntime decide.
        measure_latency: time original and result in alternation for the report; default: unless
            the weights exceed 512 MB, which are then never loaded as a whole.
        progress: told about long loops.

    Raises:
        InputError: for a model, samples or options that cannot be used.
        NothingPrunable: when nothing can be removed, or (TargetUnreachable) not enough.
        VerificationError: when no result could be verified.
    """
    arguments = locals()
    started = time.perf_counter()
    options = resolve_options(
        {each.name: arguments[each.name] for each in (*OPTIONS, *RUNTIME_OPTIONS)},
        calibrated=calibration is not None,
    )
    loaded = load(model)
    samples = _samples(loaded, calibration)
    known = known_labels(labels, samples, options) if samples is not None else None
    measure = quality_measure(
        loaded.model, samples, labels if known is None else known, metric, options, options.runtime
    )
    fitted = fitted_samples(samples, options)
    context = RunContext(fitted, known, options.runtime, options.seed, progress)
    analysis = analyse(
        loaded.model,
        context,
        normalised_axes=options.normalised_axes,
        file_bytes=loaded_bytes(loaded),
    )
    run = PruneRun(analysis, Method.of(options), context)
    quality: Quality | None
    if options.max_drop is not None and measure is not None:
        goal = options.target if target is not None else None
        within = prune_within(run, Limit(options.max_drop, measure), goal)
        pruned, quality = within.pruned, within.quality
    else:
        pruned = run.at(options.target)
        quality = measure.of(pruned.cut.model) if measure is not None else None
    return build_result(loaded, pruned, context, quality, measure_latency, started)


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
        compensate: as for `prune`. Default: as the plan says with samples, else `none`.
        providers: onnxruntime execution providers, the preferred one first.
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
    read_options(OPTIONS, {"compensate": compensate})
    if compensate != "none" and calibration is None:
        raise InputError(f"compensation {compensate} looks at activations; give --calibration")
    samples = _samples(loaded, calibration)
    options = PruneOptions.from_dict(plan.options, compensate=compensate, runtime=runtime)
    if samples is not None and options.max_drop is not None:
        samples, _ = divide(samples)
    context = RunContext(samples, None, runtime, options.seed, progress)
    analysis = analyse(loaded.model, context, normalised_axes=options.normalised_axes)
    cut = analysis
    if plan.blocks:
        cut = without_blocks(
            analysis, plan.blocks, context, normalised_axes=options.normalised_axes
        )
    removal = planned_removal(cut, plan)
    try:
        stages = planned_stages(cut, plan)
        pruned = replay(analysis, cut, removal, Method.of(options), context, stages)
    except CutError as error:
        raise VerificationError(f"the plan cannot be carried out: {error}") from error
    return build_result(loaded, pruned, context, None, measure_latency, started)


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
        providers: onnxruntime execution providers, the preferred one first.
        threads: threads within an operator; 0 lets onnxruntime decide.

    Raises:
        InputError: for a model or samples that cannot be used.
    """
    runtime = Runtime(tuple(providers), threads)
    runtime.validate()
    loaded = load(model)
    analysis = analyse(loaded.model, RunContext(_samples(loaded, calibration), runtime=runtime))
    nodes = node_costs(analysis.model.graph, analysis.coupling.facts)
    return Inspection(
        sizes=sizes_of(analysis, (), loaded_bytes(loaded)),
        batch=batch_of(analysis),
        nodes=tuple(nodes),
        groups=analysis.groups,
        refused=analysis.refused,
        network=find_network(
            analysis.model.graph, analysis.coupling, analysis.groups, analysis.refused
        ),
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
    sizes = [
        sizes_of(analyse(m.model, RunContext(samples, runtime=runtime)), (), loaded_bytes(m))
        for m in (first, second)
    ]
    return Comparison(tuple(outputs), sizes[0], sizes[1])


def _samples(loaded: LoadedModel, calibration: CalibrationSource | None) -> Samples | None:
    return None if calibration is None else read_samples(calibration, input_specs(loaded.model))
