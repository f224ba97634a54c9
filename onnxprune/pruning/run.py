"""The whole path of a run: make ready, choose, build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from numpy.typing import NDArray

from onnxprune.allocation.secant import best_of, solve_for_target
from onnxprune.calibration.streams import Samples
from onnxprune.compensation.compensate import compensate
from onnxprune.cost.memory import stored_parameters
from onnxprune.coupling.analysis import Analysis
from onnxprune.coupling.cut import CutError, Removal
from onnxprune.errors import RuntimeFailure, TargetUnreachable, VerificationError
from onnxprune.model.runtime import matrix_threads
from onnxprune.model.save import model_bytes
from onnxprune.options import LATENCY, PARAMS, SIZE, PruneOptions, target_text
from onnxprune.progress import Progress, during, silent
from onnxprune.pruning.blocks import best_depth
from onnxprune.pruning.build import CutModel, build, finish
from onnxprune.pruning.prepare import Ready, calibrate, prepare_run, rerank_after_step, retarget
from onnxprune.pruning.rewrite import after, prepare
from onnxprune.pruning.search import Choice, Chooser, measured_latency, too_slow

_ATTEMPTS = 3
_NEGLIGIBLE = 1e-3
_FAILURES = (CutError, VerificationError, RuntimeFailure)


def prune_model(
    analysis: Analysis,
    options: PruneOptions,
    samples: Samples | None = None,
    progress: Progress[Any] = silent,
    labels: NDArray[Any] | None = None,
) -> CutModel:
    """Do all of it for one target; see `prepare_run` and `prune_ready`."""
    return prune_ready(prepare_run(analysis, options, samples, progress, labels), None, progress)


def prune_ready(
    ready: Ready, target: Mapping[str, float] | None = None, progress: Progress[Any] = silent
) -> CutModel:
    """Choose, compensate, cut and verify.

    Args:
        ready: the model.
        target: kind -> fraction to remain; None for that of the options.
        progress: told about long loops.

    Raises:
        NothingPrunable: when no group is left, or (TargetUnreachable) the target is out of reach.
        VerificationError: when no valid result could be built.
    """
    with matrix_threads(ready.options.runtime.threads):
        if target is not None and dict(target) != dict(ready.options.target):
            ready = retarget(ready, target, progress)
        if not ready.options.blocks or "channels" in ready.options.target:
            return _pruned(ready, progress)
        depth = best_depth(ready, progress)
        built = _pruned(depth.ready, progress)
        return replace(built, analysis=depth.ready.analysis, depths=depth.divergences)


def rebuild(
    analysis: Analysis,
    removal: Removal,
    options: PruneOptions,
    samples: Samples | None = None,
    progress: Progress[Any] = silent,
    stages: Sequence[Removal] = (),
) -> CutModel:
    """Carry out a removal that was chosen before.

    Args:
        analysis: the original.
        removal: what is to go.
        options: of the run that chose it.
        samples: of that run.
        progress: told about long loops.
        stages: what was gone after each step but the last.

    Raises:
        CutError: when the graph cannot express it.
        VerificationError: when a check fails.
        RuntimeFailure: when onnxruntime refuses one of the models.
    """
    with matrix_threads(options.runtime.threads):
        calibration = calibrate(analysis, options, samples, progress)
        if options.steps > 1:
            groups = analysis.selected(options.include, options.exclude)
        else:
            groups = [group for group in analysis.groups if group.name in removal.units]
        prepared = prepare(analysis, groups, options, calibration, progress)
        for stage in stages:
            compensated = compensate(
                prepared.analysis, stage, options, prepared.calibration, open_groups=True
            )
            prepared = after(prepared, compensated, options, progress)
        return build(prepared.analysis, removal, options, prepared.calibration, progress)


def _pruned(ready: Ready, progress: Progress[Any]) -> CutModel:
    ready, stages = _stepped(ready, progress)
    chooser = Chooser(ready, progress)
    choice = chooser.choose()
    if ready.options.compensate == "none":
        built = replace(choice.plain, allocation=choice.way.name)
    else:
        try:
            built = _compensated(ready, chooser, choice, progress)
        except _FAILURES as error:
            return _with_less(ready, error, progress)
    return replace(
        built,
        dropped=chooser.dropped,
        trials=choice.trials,
        stages=stages,
        ranked=tuple(ready.ranked),
        note="; ".join(filter(None, (ready.note, built.note))),
    )


def _with_less(ready: Ready, error: Exception, progress: Progress[Any]) -> CutModel:
    """Choose anew, so that the plan says what is in the model and can be carried out again."""
    lesser = "mean" if ready.options.compensate == "least-squares" else "none"
    options = replace(ready.options, compensate=lesser)
    labels = ready.measured.labels if ready.measured is not None else None
    again = prepare_run(ready.analysis, options, ready.samples, progress, labels, ready.cost.whole)
    built = _pruned(again, progress)
    note = f"{ready.options.compensate} compensation was not possible: {error}"
    return replace(built, note="; ".join(filter(None, (note, built.note))))


def _compensated(
    ready: Ready, chooser: Chooser, choice: Choice, progress: Progress[Any]
) -> CutModel:
    """Build with full effort; where latency counts, once more with another aim if it was missed."""
    target = ready.options.target
    if LATENCY not in target:
        return _counted(ready, chooser, choice, progress)
    asked, start = target[LATENCY], choice.aim[LATENCY]

    def timed(aim: float) -> tuple[CutModel, float]:
        here = choice if aim == start else chooser.at({**target, LATENCY: aim}, choice.way.name)
        built = _finished(ready, here, progress)
        work = partial(measured_latency, ready, built.model)
        latency = during(progress, "measuring latency", work)
        return replace(built, latency=latency), latency.ratio

    tried = solve_for_target(LATENCY, asked, start, timed, rounds=_ATTEMPTS, close=0.05)
    best = best_of(asked, tried)
    if best is None:
        raise too_slow(asked, tried)
    return best.result


def _counted(ready: Ready, chooser: Chooser, choice: Choice, progress: Progress[Any]) -> CutModel:
    """Build; again with a lower aim where biases that compensation added exceed a target.

    Raises:
        TargetUnreachable: when they exceed it still.
    """
    target = ready.options.target
    best: dict[str, float] = {}
    for _ in range(_ATTEMPTS):
        built = _finished(ready, choice, progress)
        over = _excess(ready, built)
        if not over:
            return built
        best = {kind: target[kind] + more for kind, more in over.items()}
        aim = {**choice.aim, **{kind: choice.aim[kind] - more for kind, more in over.items()}}
        try:
            choice = chooser.at(aim, choice.way.name)
        except TargetUnreachable:
            break
    asked = {kind: target[kind] for kind in best}
    raise TargetUnreachable(
        f"the target {target_text(asked)} cannot be reached with the biases that compensation "
        f"adds; the best that was built has {target_text(best)}"
    )


def _excess(ready: Ready, built: CutModel) -> dict[str, float]:
    """Targets of what is stored that a result misses, and by how much."""
    analysis, graph = ready.analysis, built.model.graph
    whole = analysis.file_bytes or model_bytes(analysis.original)
    shares = {
        PARAMS: stored_parameters(graph) / max(ready.cost.whole[PARAMS], 1),
        SIZE: model_bytes(built.model) / whole,
    }
    target = ready.options.target
    over = {kind: shares[kind] - target[kind] for kind in shares.keys() & target.keys()}
    return {kind: more for kind, more in over.items() if more > _NEGLIGIBLE}


def _finished(ready: Ready, choice: Choice, progress: Progress[Any]) -> CutModel:
    prepared, removal = ready.prepared, choice.way.removal
    if ready.options.steps == 1 and not set(prepared.aligned) <= removal.units.keys():
        # What is not cut stays as it was, bit for bit.
        cut = [group for group in ready.groups if group.name in removal.units]
        prepared = prepare(ready.analysis, cut, ready.options, ready.measured, progress)
    built = finish(prepared.analysis, removal, ready.options, prepared.calibration, progress)
    return replace(built, allocation=choice.way.name)


def _stepped(ready: Ready, progress: Progress[Any]) -> tuple[Ready, tuple[Removal, ...]]:
    """Take all steps but the last: prune a little, compensate, rank anew on what is left.

    Steps are even in proportion: of n steps towards a share s, the k-th keeps s^(k / n).
    """
    target, steps = ready.options.target, ready.options.steps
    stages = []
    for number in range(1, steps):
        little = {kind: share ** (number / steps) for kind, share in target.items()}
        choice = Chooser(retarget(ready, little, progress), progress).choose()
        compensated = compensate(
            ready.prepared.analysis,
            choice.way.removal,
            ready.options,
            ready.prepared.calibration,
            open_groups=True,
            progress=progress,
        )
        stages.append(compensated.removal)
        ready = rerank_after_step(ready, compensated, progress)
    return ready, tuple(stages)
