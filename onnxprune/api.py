"""The functions behind `import onnxprune`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.samples import CalibrationSource
from onnxprune.model.load import ModelSource, load
from onnxprune.model.runtime import Runtime
from onnxprune.options import BATCH
from onnxprune.passes.pipeline.quality import QualityGoal
from onnxprune.passes.pipeline.run import repeat_plan, run_passes
from onnxprune.passes.pipeline.steps import read_steps, single_step
from onnxprune.progress import Progress, silent
from onnxprune.pruning.inspection import compare_models, inspect_model
from onnxprune.pruning.plan import Plan
from onnxprune.pruning.results import Comparison, Inspection, PruneResult


def prune(
    model: ModelSource,
    *,
    calibration: CalibrationSource | None = None,
    target: Mapping[str, float] | None = None,
    max_drop: float | None = None,
    labels: Any = None,
    metric: Callable[..., Any] | str | None = None,
    best_effort: bool = False,
    criterion: str | None = None,
    loss: str | Callable[..., Any] | None = None,
    compensate: str | None = None,
    allocation: str = "auto",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    round_to: int | str = "auto",
    finetune: bool = False,
    effort: int | str = "normal",
    steps: int = 1,
    blocks: bool = False,
    normalised_axes: bool | str = "hidden",
    lossless: bool = True,
    components: bool = True,
    augment: Sequence[str] = (),
    seed: int = 0,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
    measure_latency: bool | None = None,
    batch: int | None = None,
    force: bool = False,
    progress: Progress[Any] = silent,
) -> PruneResult:
    """Make a model smaller, dense and verified.

    Args:
        model: a path, onnx.ModelProto, onnx_ir.Model or onnx_graphsurgeon.Graph; never changed.
        calibration: unlabelled samples: a mapping of input name to array (first axis = samples),
            an iterable of feeds, a path (.npz, .npy, folder, "module.py:function"), `Images`,
            `Texts`, `Audio`, a `ClosedLoop`, or anything with onnxruntime's
            `CalibrationDataReader.get_next()`.
        target: fraction of the original that remains, by kind: `channels`, `params`, `macs`,
            `size`, `memory` or `latency`; several are all met. Default: channels=0.5, or with
            `max_drop` the smallest model within that limit.
        max_drop: largest drop of quality allowed: of accuracy in percent with `labels`, of what
            `metric` returns, else of the agreement with the original in percent (same class; cosine
            of other outputs). Measured on every fourth sample, which nothing is fitted on.
        labels: one label for each sample, for measuring quality and for `loss`: classes, or with a
            `metric` anything (boxes, masks, text), in an array, a list, .npy, .npz, .json, .jsonl
            or text file.
        metric: what measures quality: `agreement`, `kappa`, `r2`, `topk`, `map` (detection), `iou`
            (segmentation), `perplexity` or `retrieval`; or a function of all outputs ({name: array
            [samples, ...]}), those of the original and the labels (None without), or of outputs and
            labels, whose result is higher for better answers, also as module.py:function.
        best_effort: with `max_drop`: where the limit, or the target within it, cannot be met, write
            the best that was found all the same; the report says so, and the exit code is still 3.
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
        finetune: then train all weights on the samples so that the smaller model answers as the
            original does (distillation; no labels needed): it takes several times as long as
            pruning, and the best check-point on held-out samples is kept.
        effort: how long to fine-tune: `low`, `normal`, `high`, or a number of passes over the
            samples.
        steps: how many steps to prune in; after each, layers are re-fitted and units ranked again.
        blocks: also replace whole residual branches by their mean, where outputs then diverge less
            on held-out samples than with narrower layers alone; needs samples and `least-squares`.
        normalised_axes: whether axes that normalisation statistics run over are cut, removed
            entries counting as zeros: `hidden`, those of hidden layers where this is exact; true,
            all, such as the residual width of a transformer; false, none.
        lossless: first remove units that are dead, constant or copies of others, which changes no
            output; not done with compensation `none`.
        components: with `least-squares`, remove the least important components instead of units
            wherever only linear maps act on them: values of attention heads, queries and keys
            without rotary embedding, bottlenecks without activation.
        augment: views of calibration samples to fit on as well: `flip`, `shift`, `crop` of images
            that may be flipped, shifted and seen nearer, `splice` of sequences of tokens: one goes
            on as another. Fine-tuning chooses some by itself where none is named.
        seed: seed of everything random; the same input, options and seed give the same bytes.
        providers: onnxruntime execution providers, the preferred one first.
        threads: threads within an operator; 0 lets onnxruntime decide.
        measure_latency: time original and result in alternation for the report; default: unless
            the weights exceed 512 MB, which are then never loaded as a whole.
        batch: rows of the batch that latency is measured on, as where the model is to run; default:
            the two rows that MACs and memory refer to, or the number that the model fixes.
        force: write the result even where its answers no longer follow the original's: kappa of
            decisions below 0.6, or R squared of quantities below 0.5; from 128 samples on those
            compared were not fitted.
        progress: progress callback of long loops.

    Raises:
        InputError: for a model, samples or options that cannot be used.
        NothingPrunable: when nothing can be removed, or (TargetUnreachable) not enough.
        VerificationError: when no result could be verified, or (CollapseError) its answers no
            longer follow the original's.
    """
    arguments = locals()
    context = _context(providers, threads, seed, progress, measure_latency, batch, force)
    return run_passes(model, [single_step("prune", arguments)], calibration, context)


def finetune(
    model: ModelSource,
    *,
    calibration: CalibrationSource,
    teacher: ModelSource | None = None,
    pruning: str | os.PathLike[str] | None = None,
    labels: Any = None,
    loss: str | Callable[..., Any] | None = None,
    effort: int | str = "normal",
    augment: Sequence[str] = (),
    embeddings: bool = False,
    metric: Callable[..., Any] | str | None = None,
    seed: int = 0,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
    measure_latency: bool | None = None,
    batch: int | None = None,
    force: bool = False,
    progress: Progress[Any] = silent,
) -> PruneResult:
    """Train all weights of a model to answer as another does; the graph stays as it is.

    The best check-point on held-out samples is returned, and the model as it was where none is
    better; `steps[0].tuning` of the result tells the course.

    Args:
        model: a path, onnx.ModelProto, onnx_ir.Model or onnx_graphsurgeon.Graph; never changed.
        calibration: samples to train on, as for `prune`; every fourth, of 256 and more every
            eighth, is held out.
        teacher: what the model is to answer as: the path of a model with the same inputs and
            outputs, such as the one it was pruned from, or a larger one. Default: the model that
            the pipeline was given; in the first pass, which only `labels` can then teach anything,
            the model itself.
        pruning: path of the plan by which the model was cut from the teacher: what is left of a
            tensor inside is then compared with the teacher's as well.
        labels: one label for each sample, for measuring quality and for `loss`: classes, or with a
            `metric` anything (boxes, masks, text), in an array, a list, .npy, .npz, .json, .jsonl
            or text file.
        loss: what is learnt of `labels`: `cross-entropy`, `mse` (labels are then targets), or a
            function of all outputs and the labels that returns the loss of each sample, or {output:
            gradient}; also as module.py:function. Default: `cross-entropy` for class scores, `mse`
            for others.
        effort: how long to fine-tune: `low`, `normal`, `high`, or a number of passes over the
            samples.
        augment: views of calibration samples to fit on as well: `flip`, `shift`, `crop` of images
            that may be flipped, shifted and seen nearer, `splice` of sequences of tokens: one goes
            on as another. Fine-tuning chooses some by itself where none is named.
        embeddings: also train tables of embeddings, which a few samples hardly touch.
        metric: what measures quality: `agreement`, `kappa`, `r2`, `topk`, `map` (detection), `iou`
            (segmentation), `perplexity` or `retrieval`; or a function of all outputs ({name: array
            [samples, ...]}), those of the original and the labels (None without), or of outputs and
            labels, whose result is higher for better answers, also as module.py:function.
        seed: seed of everything random; the same input, options and seed give the same bytes.
        providers: onnxruntime execution providers, the preferred one first.
        threads: threads within an operator; 0 lets onnxruntime decide.
        measure_latency: time original and result in alternation for the report; default: unless
            the weights exceed 512 MB, which are then never loaded as a whole.
        batch: rows of the batch that latency is measured on, as where the model is to run; default:
            the two rows that MACs and memory refer to, or the number that the model fixes.
        force: write the result even where its answers no longer follow the original's: kappa of
            decisions below 0.6, or R squared of quantities below 0.5; from 128 samples on those
            compared were not fitted.
        progress: progress callback of long loops.

    Raises:
        InputError: for a model, teacher, samples, labels or options that cannot be used.
        CalibrationError: for too few samples to hold any out.
        NothingPrunable: when no weight can be trained.
        VerificationError: when the result fails a check, or (CollapseError) its answers do not
            follow the teacher's.
    """
    arguments = locals()
    context = _context(providers, threads, seed, progress, measure_latency, batch, force)
    return run_passes(model, [single_step("finetune", arguments)], calibration, context)


def run_pipeline(
    model: ModelSource,
    passes: Any,
    *,
    calibration: CalibrationSource | None = None,
    labels: Any = None,
    metric: Callable[..., Any] | str | None = None,
    max_drop: float | None = None,
    best_effort: bool = False,
    seed: int = 0,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
    measure_latency: bool | None = None,
    batch: int | None = None,
    force: bool = False,
    progress: Progress[Any] = silent,
) -> PruneResult:
    """Run passes one after another; after each the model is checked and compared.

    Args:
        model: a path, onnx.ModelProto, onnx_ir.Model or onnx_graphsurgeon.Graph; never changed.
        passes: path of a YAML or JSON file; or a list of names, of {name: options}, and of passes
            or functions themselves; `onnxprune passes` lists the names.
            Fractions of a `target` refer to the model given here; with `of: current` to the one
            that the pass is given.
        calibration: samples for passes that use them; as for `onnxprune.prune`.
        labels: one for each sample, as for `onnxprune.prune`: the quality of the model is measured
            after every pass, and losses have targets.
        metric: as for `onnxprune.prune`: measured after every pass.
        max_drop: largest drop of quality after any pass, against the model given here, on every
            fourth sample, which no pass sees. A pass `prune` without target and limit goes as far
            as this allows, and half or a quarter as far where a later pass needs some of it.
        best_effort: with `max_drop`: where it cannot be kept, return the model before the pass that
            exceeds it; the step's `missed` says so.
        seed: of everything random.
        providers: onnxruntime execution providers, the preferred one first.
        threads: threads within an operator; 0 lets onnxruntime decide.
        measure_latency: time the model after every pass; default: unless its weights exceed
            512 MB.
        batch: rows of the batch that latency is measured on, as where the model is to run; default:
            the two rows that MACs and memory refer to, or the number that the model fixes.
        force: write the result even where its answers no longer follow the original's: kappa of
            decisions below 0.6, or R squared of quantities below 0.5; from 128 samples on those
            compared were not fitted.
        progress: progress callback of long loops.

    Raises:
        InputError: for a pipeline, model or samples that cannot be used, or a third-party pass
            that fails.
        NothingPrunable: when a pass that is to reach a target cannot, or (TargetUnreachable) the
            limit cannot be kept.
        VerificationError: when what a pass made is no valid model, does not run, or has another
            interface than the pass announces; or (CollapseError) the answers no longer follow the
            original's.
    """
    context = _context(providers, threads, seed, progress, measure_latency, batch, force)
    goal = QualityGoal.read(
        {"labels": labels, "metric": metric, "max_drop": max_drop, "best_effort": best_effort}
    )
    return run_passes(model, read_steps(passes), calibration, context, goal)


def apply(
    model: ModelSource,
    plan: Plan | str | os.PathLike[str],
    *,
    calibration: CalibrationSource | None = None,
    compensate: str | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
    measure_latency: bool | None = None,
    batch: int | None = None,
    progress: Progress[Any] = silent,
) -> PruneResult:
    """Run again what a plan says, on the model it was made for.

    Passes that planned what they did do not choose anew; on the same samples, with the same number
    of threads, the result is the same bit for bit.

    Args:
        model: as for `prune`.
        plan: of a result of `prune` or `run_pipeline`, or the path of its file.
        calibration: samples for the compensation; as for `prune`.
        compensate: of a plan of one pruning; default: its own when there is calibration, else
            `none`.
        providers: onnxruntime execution providers, the preferred one first.
        threads: threads within an operator; 0 lets onnxruntime decide.
        measure_latency: time original and result in alternation for the report; default: unless
            the weights exceed 512 MB, which are then never loaded as a whole.
        batch: rows of the batch that latency is measured on, as where the model is to run; default:
            the two rows that MACs and memory refer to, or the number that the model fixes.
        progress: progress callback of long loops.

    Raises:
        InputError: for a plan that was made for another model, or does not fit this one, and as
            `run_pipeline`.
        NothingPrunable: as `run_pipeline`.
        VerificationError: when a result fails a check.
    """
    context = _context(providers, threads, 0, progress, measure_latency, batch)
    return repeat_plan(model, plan, calibration, compensate, context)


apply_pipeline = apply
"""Public name for plans of several passes."""


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
        calibration: samples; only needed for models that do not run on randomly generated inputs.
        providers: onnxruntime execution providers, the preferred one first.
        threads: threads within an operator; 0 lets onnxruntime decide.

    Raises:
        InputError: for a model or samples that cannot be used.
    """
    return inspect_model(load(model), calibration, _context(providers, threads))


def verify(
    original: ModelSource,
    pruned: ModelSource,
    *,
    calibration: CalibrationSource,
    labels: Any = None,
    metric: Callable[..., Any] | str | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
    progress: Progress[Any] = silent,
) -> Comparison:
    """Compare two models with the same interface on samples.

    Args:
        original: as for `prune`.
        pruned: as for `prune`.
        calibration: as for `prune`, and not optional.
        labels: as for `prune`; the accuracy of both is then measured on all samples.
        metric: as for `prune`; then measured in place of accuracy.
        providers: onnxruntime execution providers, the preferred one first.
        threads: threads within an operator; 0 lets onnxruntime decide.
        progress: progress callback of long loops.

    Raises:
        InputError: for models, samples, labels or a metric that cannot be used.
        VerificationError: when their interfaces differ.
    """
    context = _context(providers, threads, progress=progress)
    return compare_models(load(original), load(pruned), calibration, context, labels, metric)


def _context(
    providers: Sequence[str],
    threads: int,
    seed: int = 0,
    progress: Progress[Any] = silent,
    measure_latency: bool | None = None,
    batch: int | None = None,
    force: bool = False,
) -> RunContext:
    """Context of a run whose samples are still to be read; the runtime is checked."""
    runtime = Runtime(tuple(providers), threads, BATCH.read(batch))
    runtime.validate()
    return RunContext(None, None, runtime, seed, progress, measure_latency, force)
