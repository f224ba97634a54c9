"""One calibration, many budgets."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxprune.calibration.checks import sample_warnings
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.samples import CalibrationSource, model_samples
from onnxprune.calibration.streams import Samples
from onnxprune.coupling.analysis import analyse
from onnxprune.errors import InputError, NothingPrunable, VerificationError
from onnxprune.model.inputs import check_batch
from onnxprune.model.load import LoadedModel, ModelSource, load, loaded_bytes
from onnxprune.model.save import check_writable, write_text_atomic
from onnxprune.options import BATCH, check_targets, target_text
from onnxprune.progress import Progress, silent
from onnxprune.pruning.finetune import finetuned
from onnxprune.pruning.method import Method
from onnxprune.pruning.quality import divided_samples, known_labels, loss_labels, quality_measure
from onnxprune.pruning.results import PruneResult, build_result
from onnxprune.pruning.run import PruneRun
from onnxprune.pruning.studies.neighbours import SharedTrials
from onnxprune.pruning.studies.study import (
    metric_setting,
    read_study,
    study_of,
    study_options,
    written,
)
from onnxprune.report.figures import json_text
from onnxprune.report.records import SweepPointRecord, SweepRecord
from onnxprune.report.study_pages import sweep_page, tradeoff_chart
from onnxprune.verification.divergence import DivergenceEvaluator
from onnxprune.verification.quality import QualityMeasure

_FORMAT = "onnxprune-sweep"


@dataclass(frozen=True)
class SweepPoint(SweepPointRecord):
    """One budget, with its result while that is in memory.

    Attributes:
        run: the result; None where there is none, or its model is in a folder.
    """

    run: PruneResult | None = None


@dataclass(frozen=True)
class Sweep(SweepRecord):
    """What `sweep` returns.

    Attributes:
        study: what all points have in common.
        points: in the order asked for.
        baselines: the same budgets met in simple ways, for comparison.
        source: the model's file, which nothing may overwrite; None for a model in memory.
        warnings: what is odd about the samples, each with the next step.
    """

    points: tuple[SweepPoint, ...] = ()
    baselines: tuple[SweepPoint, ...] = ()

    def with_point(self, point: SweepPoint) -> Sweep:
        """Add a point, among the baselines if it is one, in place of one with the same target."""
        if point.baseline:
            return replace(self, baselines=_with(self.baselines, point))
        return replace(self, points=_with(self.points, point))

    def find(self, target: Mapping[str, float], baseline: str = "") -> SweepPoint | None:
        """The point with a target."""
        among = self.baselines if baseline else self.points
        wanted = baseline, dict(target)
        return next(
            (point for point in among if (point.baseline, dict(point.target)) == wanted), None
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        best = self.pareto()
        points = [point.to_dict() | {"pareto": point in best} for point in self.points]
        baselines = [point.to_dict() for point in self.baselines]
        results = {"points": points, "baselines": baselines, "warnings": list(self.warnings)}
        return written(self.study, _FORMAT, results)

    def to_html(self) -> str:
        """Return one self-contained HTML page."""
        return sweep_page(self)

    def save(self, folder: str | Path, *, models: bool = True) -> Sweep:
        """Write `sweep.json`, `sweep.svg`, `sweep.html` and the models of the Pareto points.

        Args:
            folder: made if it is missing (not those above it).
            models: write models and plans, of the results that are still in memory.

        Returns:
            the sweep, its points with the names of the files.

        Raises:
            InputError: when something cannot be written.
        """
        target = make_folder(folder)
        best = self.pareto() if models else ()
        points = tuple(
            save_point(point, target) if point.run is not None and point in best else point
            for point in self.points
        )
        saved = replace(self, points=points)
        saved.write(target)
        return saved

    def write(self, folder: Path) -> None:
        """Write `sweep.json` and, where there is any result, `sweep.svg` and `sweep.html`."""
        write_text_atomic(folder / "sweep.json", json_text(self.to_dict()))
        if any(point.done for point in self.points):
            write_text_atomic(folder / "sweep.svg", tradeoff_chart(self))
            write_text_atomic(folder / "sweep.html", self.to_html())

    @classmethod
    def load(cls, folder: str | Path) -> Sweep:
        """Read the `sweep.json` of a folder.

        Raises:
            InputError: when there is none, or it is damaged.
        """
        path = Path(folder) / "sweep.json"
        study, data = read_study(path, _FORMAT)
        try:
            points, baselines = data["points"], data.get("baselines", ())
            return cls(
                study,
                tuple(map(SweepPoint.from_dict, points)),
                tuple(map(SweepPoint.from_dict, baselines)),
                warnings=tuple(data.get("warnings", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError(f"{path}: is damaged; delete it to start afresh") from None


def file_stem(target: Mapping[str, float]) -> str:
    """Name of the files of a point, such as macs-0.50."""
    return "+".join(f"{kind}-{_fraction(value)}" for kind, value in target.items())


def make_folder(folder: str | Path) -> Path:
    """Make a folder, and make sure that files can be written there.

    Raises:
        InputError: when that is not possible.
    """
    path = Path(folder)
    check_folder(path)
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made: {error.strerror or error}") from None
    check_writable(path / "sweep.json")
    return path


def check_folder(folder: str | Path) -> None:
    """Make sure that a folder can be made or is there, without making it.

    Raises:
        InputError: when it is a file, or the folder above is missing or not writable.
    """
    path = Path(folder)
    if path.is_dir():
        check_writable(path / "sweep.json")
    elif path.exists():
        raise InputError(f"{path}: is a file; name a folder")
    else:
        check_writable(path)


def save_point(point: SweepPoint, folder: Path) -> SweepPoint:
    """Write plan and model of a point; return it with the name of the file."""
    assert point.run is not None
    stem = file_stem(point.target)
    write_text_atomic(folder / f"{stem}.plan.json", point.run.plan.to_json())
    point.run.save(folder / f"{stem}.onnx")
    return replace(point, file=f"{stem}.onnx")


def _fraction(value: float) -> str:
    return f"{value:.2f}" if round(value, 2) == value else f"{value:g}"


def _with(points: Sequence[SweepPoint], new: SweepPoint) -> tuple[SweepPoint, ...]:
    """Points with a new one in place of that of the same target."""
    wanted = new.baseline, dict(new.target)
    others = [point for point in points if (point.baseline, dict(point.target)) != wanted]
    return (*others, new)


TARGETS: tuple[Mapping[str, float], ...] = tuple(
    {"macs": tenths / 10} for tenths in range(9, 2, -1)
)
"""Budgets of a sweep that asks for none: nine to three tenths of the MACs."""

BASELINES = ("random", "l1")
"""Criteria of the usual baselines: chance, and the norm of the weights."""


def sweep(
    model: ModelSource,
    *,
    calibration: CalibrationSource,
    targets: Sequence[Mapping[str, float]] = TARGETS,
    labels: Any = None,
    metric: Callable[..., Any] | str | None = None,
    baselines: Sequence[str] = (),
    folder: str | Path | None = None,
    save: bool = False,
    measure_latency: bool | None = None,
    batch: int | None = None,
    progress: Progress[Any] = silent,
    **method: Any,
) -> Sweep:
    """Prune a model to many budgets, all on one calibration.

    The model of a point is, bit for bit, what `apply` gives for its plan. It is what `prune` gives
    for its target as well, unless there are four or more budgets of one kind: then those between
    the outermost only try the allocations that were best there, where `prune` tries all. A budget
    that cannot be reached is a point that says so.

    Args:
        model: as for `prune`.
        calibration: as for `prune`, and not optional.
        targets: one for each point, as for `prune`.
        labels: as for `prune`; the quality of every point is then measured on them.
        metric: as for `prune`; the quality of every point is then measured by it.
        baselines: criteria that need no samples, such as `BASELINES`; with each, every target is
            also met by taking the same fraction of every group and making up for nothing.
        folder: where `sweep.json`, `sweep.svg` and `sweep.html` are written after every point. When
            they are there from a run with the same model, samples, labels and options, its points
            are not computed again, and stay; otherwise they are replaced. Made if missing.
        save: write the models and plans of the Pareto points to the folder, too.
        measure_latency: as for `prune`.
        batch: as for `prune`.
        progress: progress callback of long loops.
        **method: criterion, compensate and others, as for `prune`; not `max_drop`.

    Returns:
        the points. Without a folder they hold their results; models in a folder are not kept in
        memory.

    Raises:
        InputError: for a model, samples, labels, options or folder that cannot be used.
        NothingPrunable: when no axis of the model can be cut at all.
    """
    wanted = _checked(targets)
    if calibration is None:
        raise InputError("a sweep compares outputs on samples; give --calibration")
    if save and folder is None:
        raise InputError("models are saved to a folder; give one")
    options = study_options(wanted[0], method)
    if folder is not None:
        check_folder(folder)
    loaded = load(model)
    samples = model_samples(calibration, loaded.model, options.runtime)
    _check_files(loaded, folder, wanted if save else ())
    known = known_labels(labels, samples, options)
    runtime = replace(options.runtime, batch=BATCH.read(batch))
    check_batch(samples.specs, batch)
    sized = {} if batch is None else {"batch": batch}  # sweeps of older versions have none
    study = study_of(
        loaded.sha256,
        samples,
        options,
        known,
        latency=measure_latency,
        **sized,
        **metric_setting(metric),
    )
    done = Sweep(study, source=loaded.path)
    target_folder = Path(folder) if folder is not None else None
    if target_folder is not None:
        done = _resumed(target_folder, done)
    missing = [target for target in wanted if not _is_finished(done, target, target_folder, save)]
    compared = [(b, target) for b in baselines for target in wanted if done.find(target, b) is None]
    if missing or compared:
        measure = quality_measure(loaded.model, samples, known, metric, options, options.runtime)
        headed = _HeadedProgress(progress)
        fitted, held_out = divided_samples(samples, options)
        context = RunContext(
            fitted, loss_labels(known, options), runtime, options.seed, headed, measure_latency
        )
        analysis = analyse(
            loaded.model,
            context,
            normalised_axes=options.normalised_axes,
            file_bytes=loaded_bytes(loaded),
        )
        odd = sample_warnings(loaded.model, samples, options.runtime)
        done = replace(done, warnings=odd)
        run = PruneRun(analysis, Method.of(options), context)
        shared = SharedTrials(run, wanted)
        points = _Points(loaded, run, shared, run.evaluator(), measure, context, held_out)
        if target_folder is not None:
            make_folder(target_folder)
        for number, target in enumerate(shared.outermost_first(missing), 1):
            headed.heading = f"{target_text(target)} ({number} of {len(missing)}): "
            done = done.with_point(points.at(target))
            if target_folder is not None:
                done = _kept(done, target_folder, save=save)
        for name in dict.fromkeys(name for name, _ in compared):
            targets = [target for criterion, target in compared if criterion == name]
            baseline = points.baseline(name)
            for target in progress(targets, f"baseline {name}", len(targets)):
                point = baseline.at(target)
                done = done.with_point(replace(point, baseline=name, run=None))
    done = _ordered(done, wanted)
    if target_folder is not None:
        done.write(target_folder)
    return done


@dataclass(frozen=True)
class _Points:
    """Makes the points of a sweep, with everything that does not depend on the target shared."""

    loaded: LoadedModel
    run: PruneRun
    shared: SharedTrials
    evaluator: DivergenceEvaluator
    measure: QualityMeasure | None
    context: RunContext
    held_out: Samples | None = None

    def baseline(self, criterion: str) -> _Points:
        """The same model with each group cut by the same fraction, without compensation.

        Raises:
            InputError: for a criterion that is unknown or needs samples.
        """
        options = replace(
            self.run.method.options,
            criterion=criterion,
            compensate="none",
            allocation="uniform",
            augment=(),
            finetune=False,
            steps=1,
            blocks=False,
        )
        context = replace(self.run.context, samples=None, labels=None, progress=silent)
        run = PruneRun(self.run.analysis, Method.of(options), context)
        return replace(self, run=run, shared=SharedTrials(run, ()))

    def at(self, target: Mapping[str, float]) -> SweepPoint:
        """Prune to one target and measure."""
        begun = time.perf_counter()
        try:
            chosen = self.shared.run_for(target).at(target)
            self.shared.note(chosen)
            pruned = finetuned(chosen, self.context, self.held_out)
        except (NothingPrunable, VerificationError) as error:
            status = "unreachable" if isinstance(error, NothingPrunable) else "failed"
            return SweepPoint(target, status, str(error), seconds=time.perf_counter() - begun)
        model = pruned.cut.model
        quality = self.measure.of(model) if self.measure is not None else None
        run = build_result(self.loaded, pruned, self.context, quality, begun)
        figures = run.report.to_dict()
        return SweepPoint(
            target,
            original=figures["original"],
            result=figures["result"],
            channels=self._channels(run),
            latency=figures["latency"],
            outputs=tuple(_with_noise(output) for output in figures["outputs"]),
            divergence=self.evaluator.divergence(model),
            quality=figures["quality"],
            seconds=time.perf_counter() - begun,
            widths=run.report.widths,
            run=run,
        )

    def _channels(self, run: PruneResult) -> float:
        """Fraction of the units that is left."""
        removed = sum(len(group.removed) for group in run.plan.groups)
        return 1 - removed / sum(group.size for group in self.run.groups)


def _checked(targets: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Targets as floats, each once."""
    checked: list[dict[str, float]] = []
    for target in targets:
        fractions = check_targets(target)
        if fractions not in checked:
            checked.append(fractions)
    if not checked:
        raise InputError("no target; give at least one, such as macs=0.5")
    return checked


def _check_files(
    loaded: LoadedModel, folder: str | Path | None, targets: Sequence[Mapping[str, float]]
) -> None:
    """Make sure that no model to be saved is the input."""
    if folder is not None and Path(folder).is_dir():
        for target in targets:
            check_writable(Path(folder) / f"{file_stem(target)}.onnx", loaded.path)


def _resumed(folder: Path, new: Sweep) -> Sweep:
    """What an earlier run of the same study left in a folder."""
    try:
        found = Sweep.load(folder)
    except InputError:
        return new
    return new if found.study.differences(new.study) else replace(found, source=new.source)


def _is_finished(done: Sweep, target: Mapping[str, float], folder: Path | None, save: bool) -> bool:
    """Whether a point need not be computed: it is there, and its model too if it is to be."""
    point = done.find(target)
    if point is None or not save or folder is None or point not in done.pareto():
        return point is not None
    return point.file is not None and (folder / point.file).is_file()


def _kept(done: Sweep, folder: Path, *, save: bool) -> Sweep:
    """Write what there is so far, and let go of the models."""
    before = {point.file for point in done.points if point.file is not None}
    done = done.save(folder, models=save)
    best = done.pareto()
    points = []
    for point in done.points:
        kept = point if any(point is other for other in best) else replace(point, file=None)
        points.append(replace(kept, run=None))
    done = replace(done, points=tuple(points))
    done.write(folder)
    beaten = before - {point.file for point in done.points}
    for name in {f"{file_stem(point.target)}.onnx" for point in done.points} & beaten:
        for file in (name, f"{name}.data", f"{name.removesuffix('.onnx')}.plan.json"):
            with contextlib.suppress(OSError):
                (folder / file).unlink()
    return done


def _ordered(done: Sweep, targets: Sequence[Mapping[str, float]]) -> Sweep:
    """Points in the order asked for, those of earlier runs behind."""
    first = [point for target in targets if (point := done.find(target)) is not None]
    others = [point for point in done.points if all(point is not other for other in first)]
    return replace(done, points=(*first, *others))


def _with_noise(output: Mapping[str, Any]) -> dict[str, Any]:
    """An output's comparison with the signal to noise ratio in decibels."""
    error = output["relative_error"]
    noise = None if error is None else math.inf if error == 0 else -20 * math.log10(error)
    return {"snr_db": noise, **output}


class _HeadedProgress:
    """A progress callback with a heading in front of every description.

    Attributes:
        heading: what the present work is for.
    """

    def __init__(self, progress: Progress[Any]) -> None:
        self.heading = ""
        self._progress = progress

    def __call__(
        self, items: Iterable[Any], description: str, total: int | None = None
    ) -> Iterator[Any]:
        return self._progress(items, self.heading + description, total)
