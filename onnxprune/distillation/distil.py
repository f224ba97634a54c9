"""Distillation: a student is trained to answer as its teacher does, on unlabelled samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from onnxprune.calibration.augment import VIEWS
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.streams import Samples, divide
from onnxprune.cost.macs import node_macs
from onnxprune.distillation.blocks import Block, Blocks, activation_bytes, weight_bytes
from onnxprune.distillation.features import KeptIndices, features_of
from onnxprune.distillation.fit import Course, Judge, Point, Training
from onnxprune.distillation.labels import LabelLoss, label_loss
from onnxprune.distillation.losses import DistillationLoss, Feature
from onnxprune.distillation.parameters import parameters_of, with_values
from onnxprune.distillation.pool import Feed, Part, Pool
from onnxprune.distillation.student import Student, Values
from onnxprune.distillation.teacher import Teacher, with_variance
from onnxprune.distillation.views import fitting_views
from onnxprune.errors import InputError, NothingPrunable
from onnxprune.gradients.preparation import to_single_precision
from onnxprune.model.execution import Execution
from onnxprune.model.observe import Facts, Observation, observe
from onnxprune.progress import Progress
from onnxprune.verification.divergence import DivergenceEvaluator
from onnxprune.verification.measures import is_float

_BATCH, _SINGLE, _SMALL_BATCH = 64, 16, 24
"""Samples of a step; where each has to run alone, so that many do not cost less together; and where
there are few in all, and steps are counted, not passes."""

_OBSERVED = 2  # samples
_LEAST_STEPS_AN_EPOCH = 8
_FEWEST_STEPS = 2
_MOST_TRAININGS = 3
_COUNTED = 256
"""Samples that say what counts how much in the loss."""
_ACTIVATION_BYTES = 1_000_000_000
_OUTPUT_BYTES = 48  # of each entry of an output, while it is compared
_LISTED = 3  # names in a sentence
_MEMORY = 4_000_000_000
"""Of weights in training and activations of the smallest run; beyond it blocks are trained."""
_SHARED = "several blocks that are trained apart read it"


@dataclass(frozen=True)
class Effort:
    """How long is trained, in multiplications and passes over the samples, not in seconds.

    Attributes:
        passes: over the samples.
        steps: at least, where samples are few.
        macs: multiplications from which on there are fewer passes.
        least_passes: as few as that.
        most_macs: multiplications that are not exceeded.
    """

    passes: int
    steps: int
    macs: float
    least_passes: int
    most_macs: float

    def steps_for(self, a_pass: int, macs: float) -> int:
        """Number of steps.

        Args:
            a_pass: steps of a pass over the samples.
            macs: multiplications of a step.
        """
        wanted = max(self.passes * a_pass, self.steps)
        fewer = max(int(self.macs / macs), self.least_passes * a_pass)
        return max(min(wanted, fewer, int(self.most_macs / macs)), _FEWEST_STEPS)

    def trainings_for(self, macs: float) -> int:
        """Number of trainings from the start, each with another rate.

        Args:
            macs: multiplications of a training.
        """
        return max(1, min(_MOST_TRAININGS, int(self.macs / macs)))


EFFORTS: Mapping[str, Effort] = {
    "low": Effort(16, 128, 4e11, 4, 2e12),
    "normal": Effort(64, 512, 4e12, 40, 3e13),
    "high": Effort(256, 2048, 2e13, 64, 1e14),
}


@dataclass(frozen=True)
class Distillation:
    """How to train.

    Attributes:
        effort: name of `EFFORTS`, or a number of passes over the samples.
        augment: views of samples that are drawn anew each time; empty for those that the teacher
            takes for more of the same.
        embeddings: train tables of embeddings as well.
        loss: of labels, as `gradients.losses.Objective` has it; without labels of no effect.
        rate: of a run that is repeated; None to find one.
        until: step whose check-point that run kept; None to go on to the end.
        labels_alone: labels are all that is learnt; nothing of the teacher.
        memory: bytes for weights in training and the activations of the smallest run; a student
            that takes more is trained block by block.
    """

    effort: str | int = "normal"
    augment: tuple[str, ...] = ()
    embeddings: bool = False
    loss: str | Callable[..., Any] | None = None
    rate: float | None = None
    until: int | None = None
    labels_alone: bool = False
    memory: int = _MEMORY


@dataclass(frozen=True)
class Distilled:
    """A trained student.

    Attributes:
        model: with the weights of the best check-point; as it was where none is better.
        course: of the training.
        moved: by name of a weight, the root mean square of its change over that of itself.
        frozen: by name of a weight that was not trained, why.
        features: names of the tensors inside that were compared.
        views: of samples that were drawn.
        steps: of the whole training.
        batch: samples of a step.
        samples: trained on.
        notes: what went otherwise than asked, in sentences.
        learnt: what the loss was made of: the `teacher`, `labels`, or both.
        blocks: tensors that the student was cut at, to be trained block by block; empty where it
            was trained as a whole.
    """

    model: ir.Model
    course: Course
    moved: Mapping[str, float] = field(default_factory=dict)
    frozen: Mapping[str, str] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    steps: int = 0
    batch: int = 0
    samples: int = 0
    notes: tuple[str, ...] = ()
    learnt: tuple[str, ...] = ("teacher",)
    blocks: tuple[str, ...] = ()


def distil(
    student: ir.Model,
    teacher: ir.Model,
    options: Distillation,
    context: RunContext,
    kept: KeptIndices | None = None,
    held_out: Samples | None = None,
) -> Distilled:
    """Train the weights of a student.

    Args:
        student: unchanged.
        teacher: with the same inputs and outputs; unchanged.
        options: how to train.
        context: samples, their labels, runtime, seed and progress callback.
        kept: which units of the teacher's tensors the student has; None for all of those of equal
            shape.
        held_out: samples to choose the best check-point on; None to keep every fourth of the
            others.

    Raises:
        InputError: without samples, and for labels that fit no output.
        CalibrationError: for too few samples.
        NothingPrunable: when no weight has a gradient.
        RuntimeFailure: when onnxruntime refuses one of the models.
    """
    if context.samples is None:
        raise InputError("fine-tuning runs the model on samples; give --calibration")
    fitted = context.samples
    if held_out is None:
        fitted, held_out = divide(fitted)
    pool, others = Pool(fitted), Pool(held_out)
    lesson = _Lesson.prepared((student, teacher), options, context, pool, kept or _all)
    kept_out, labels = others.batches(min(_BATCH, lesson.together)), lesson.labels
    divergence = DivergenceEvaluator(teacher, [part.feed for part in kept_out], context.runtime)

    def judge(values: Values) -> float:
        made = with_values(student, values)
        of_labels = labels.of_model(made, kept_out) if labels is not None else 0.0
        return of_labels + (0.0 if options.labels_alone else divergence.divergence(made))

    made = lesson.in_blocks(judge, kept_out) or lesson.whole(judge)
    course, frozen = made.course, made.frozen
    return Distilled(
        with_values(student, course.values) if course.best else student.clone(),
        course,
        _moved(made.start, course.values),
        frozen,
        tuple(feature.name for feature in lesson.features),
        pool.views,
        made.steps,
        lesson.batch,
        pool.count,
        (*_notes(course), *_left_as_they_were(frozen), *made.notes),
        (
            *(() if options.labels_alone else ("teacher",)),
            *(("labels",) if labels is not None else ()),
        ),
        made.blocks,
    )


@dataclass(frozen=True)
class _Made:
    """What a training came to.

    Attributes:
        course: of it.
        start: values of the weights before, by name.
        frozen: by name of a weight that was not trained, why.
        steps: of the whole training.
        blocks: tensors that the blocks begin with, but for the first; empty for a whole student.
        notes: in sentences.
    """

    course: Course
    start: Values
    frozen: Mapping[str, str]
    steps: int
    blocks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Lesson:
    """What is learnt, from whom, on what: for the whole student and for blocks of it.

    Attributes:
        models: student and teacher.
        options: how to train.
        context: runtime, seed and progress callback.
        pool: samples to train on.
        sample: some of them, that models were observed on.
        facts: of student and teacher, on these.
        features: tensors inside that are compared.
        known: outputs of the teacher on some batches.
        labels: loss of labels; None without.
        rng: for whatever is drawn later.
        together: samples that run forwards together.
    """

    models: tuple[ir.Model, ir.Model]
    options: Distillation
    context: RunContext
    pool: Pool
    sample: Part
    facts: tuple[Facts, Facts]
    features: Sequence[Feature]
    known: Sequence[Mapping[str, Any]]
    labels: LabelLoss | None
    rng: np.random.Generator
    together: int

    @classmethod
    def prepared(
        cls,
        models: tuple[ir.Model, ir.Model],
        options: Distillation,
        context: RunContext,
        pool: Pool,
        kept: KeptIndices,
    ) -> _Lesson:
        """Look at both models, and choose features and views; raises as `distil` does."""
        student, teacher = models
        runtime, rng = context.runtime, np.random.default_rng(context.seed)
        labels = label_loss(student, options.loss, context, rng)
        sample = pool.batches(_OBSERVED)[0]
        own, theirs = (observe(model, runtime, rng, sample.feed) for model in models)
        features: Sequence[Feature] = ()
        if not options.labels_alone:
            features = features_of(student, teacher, (own.first, theirs.first), kept)
        needed = activation_bytes(theirs) + _loss_bytes(theirs)
        together = _together(_ACTIVATION_BYTES, needed, sample)
        counted = pool.some(_COUNTED, min(_BATCH, together))
        watched, known = Teacher(teacher, features, runtime), []

        def found() -> Iterator[Mapping[str, Any]]:
            for part in counted:
                outputs, values = watched.run(part.feed)
                known.append(outputs)
                yield values

        features = with_variance(features, found())
        if options.augment:
            pool.views = tuple(view for view in options.augment if view in VIEWS)
        elif features and labels is None:  # labels need not fit a view
            pool.views = fitting_views(Teacher(teacher, features, runtime), counted, rng)
        return cls(
            models,
            options,
            context,
            pool,
            sample,
            (own, theirs),
            features,
            known,
            labels,
            rng,
            together,
        )

    @property
    def batch(self) -> int:
        """Samples of a step."""
        most, count = _SINGLE if self.pool.largest == 1 else _BATCH, self.pool.count
        few = min(_SMALL_BATCH, count // 2) if isinstance(self.options.effort, str) else 1
        return max(1, min(most, max(few, count // _LEAST_STEPS_AN_EPOCH)))

    def whole(self, judge: Judge) -> _Made:
        """Train all weights together.

        Args:
            judge: compares check-points.

        Raises:
            NothingPrunable: when no weight has a gradient.
        """
        training = self._training(Block(self.models[0], features=tuple(self.features)))
        trained, options = training.student, self.options
        if not trained.values:
            raise _nothing(trained.blocked)
        steps = _steps(options.effort, training.macs, self.pool.count, self.batch)
        trainings = _trainings(options.effort, training.macs * steps * self.batch)
        course = training.run(
            steps, judge, self.context.progress, options.rate, options.until, trainings
        )
        return _Made(course, trained.values, trained.blocked, steps)

    def in_blocks(self, judge: Judge, kept_out: Sequence[Part]) -> _Made | None:
        """Train one block after the other, where all weights together do not fit the limit.

        A run is repeated up to a step of all blocks together; rates are looked for anew.

        Args:
            judge: compares check-points of the whole student.
            kept_out: samples that are not trained on.

        Returns:
            None where the whole fits, or cannot be cut.

        Raises:
            NothingPrunable: when no weight has a gradient.
        """
        cutter = self._cutter()
        needed, limit = cutter.bytes(), self.options.memory
        blocks = cutter.within(limit, self.features) if needed > limit else []
        if len(blocks) < 2:
            return None
        runtime = self.context.runtime
        tuning = _Tuning(judge({}), self.options.until)
        for block in blocks:
            if tuning.is_over:
                break
            training = self._training(block, cutter.reader(block, tuning.values, runtime))
            tuning.frozen |= {**dict.fromkeys(block.fixed, _SHARED), **training.student.blocked}
            if not training.student.values:
                continue
            steps = _steps(
                self.options.effort, training.macs * len(blocks), self.pool.count, self.batch
            )
            own = self._feature_judge(block, training, kept_out) if block.end else None
            tuning.train(training, steps, self.context.progress, judge, own)
        if not tuning.start:
            raise _nothing(tuning.frozen)
        return _Made(
            tuning.course(),
            tuning.start,
            {name: why for name, why in tuning.frozen.items() if name not in tuning.start},
            tuning.done,
            tuple(block.start for block in blocks[1:]),
            (
                f"fine-tuned in {len(blocks)} blocks one after the other, because all of it "
                f"together would have taken about {needed / 1e9:.2g} GB",
            ),
        )

    def _feature_judge(self, block: Block, training: Training, kept_out: Sequence[Part]) -> Judge:
        """What compares check-points of a block: its error at the end, over the variance there."""
        (end,) = (feature for feature in block.features if feature.name == block.end)
        reader, runtime = training.reader, self.context.runtime

        def judge(values: Values) -> float:
            execution = Execution(with_values(block.model, values), runtime)
            total, count = 0.0, 0
            for part in kept_out:
                feed = part.feed if reader is None else reader(part.feed)
                wanted = training.teacher.run(part.feed)[1][end.name]
                apart = np.square(execution.run(feed)[end.name] - wanted, dtype=np.float64)
                total += float(apart.mean()) * part.rows
                count += part.rows
            return total / (count * end.variance)

        return judge

    def _cutter(self) -> Blocks:
        student = self.models[0].clone()
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=2)(student)
        to_single_precision(student)
        weights = parameters_of(student.graph, embeddings=self.options.embeddings)
        return Blocks(student, weights, self.facts[0], self.pool.least / self.sample.rows)

    def _training(self, block: Block, reader: Callable[[Feed], Feed] | None = None) -> Training:
        """Student, teacher and loss of a block, ready to run."""
        runtime, last = self.context.runtime, not block.end
        student, teacher = self.models
        labels = self.labels if last else None
        loss = DistillationLoss(
            student,
            teacher,
            self.known,
            block.features,
            labelled=labels is not None,
            taught=last and not self.options.labels_alone,
        )
        feed = self.sample.feed if reader is None else reader(self.sample.feed)
        try:
            trained = Student(
                block.model,
                loss,
                feed,
                runtime,
                self.rng,
                embeddings=self.options.embeddings,
                fixed=block.fixed,
            )
        except InputError as error:
            raise NothingPrunable(f"nothing can be fine-tuned: {error}") from error
        taught = Teacher(teacher, block.features, runtime, outputs=last)
        room = self.options.memory - weight_bytes(trained.values)
        needed = trained.activation_bytes + (_loss_bytes(self.facts[1]) if last else 0)
        most = _together(min(_ACTIVATION_BYTES, room), needed, self.sample)
        return Training(
            trained,
            taught,
            loss,
            self.pool,
            self.batch,
            min(most, self.batch),
            self._macs(block) / self.sample.rows,
            self.context.seed,
            labels,
            reader,
        )

    def _macs(self, block: Block) -> int:
        """Multiplications of a step, of a block at most."""
        both = zip(self.models, self.facts, strict=True)
        student, teacher = (_macs(model, facts.first) for model, facts in both)
        if block.model is self.models[0]:
            return 3 * student + teacher
        return 3 * _macs(block.model, self.facts[0].first) + student + teacher


class _Tuning:
    """Blocks that are trained one after the other.

    Args:
        divergence: of the student before.
        until: step whose check-point a run that is repeated kept; None to go on to the end.

    Attributes:
        values: of all weights that were trained, as they are now.
        start: the same before.
        frozen: by name of a weight that was not trained, why.
        done: steps so far.
    """

    def __init__(self, divergence: float, until: int | None) -> None:
        self.values: Values = {}
        self.start: Values = {}
        self.frozen: dict[str, str] = {}
        self.done = 0
        self._until = until
        self._points = [Point(0, None, divergence)]
        self._best: tuple[Point, Values] = self._points[0], {}
        self._last = Course({}, 0, (), 0.0)
        self._skipped = 0

    @property
    def is_over(self) -> bool:
        """Whether no more is to be trained."""
        repeated = self._until is not None and self._until <= self.done
        return repeated or self._last.stopped is not None

    def train(
        self,
        training: Training,
        steps: int,
        progress: Progress[Any],
        judge: Judge,
        own: Judge | None,
    ) -> None:
        """Train the next block.

        Args:
            training: of the block.
            steps: of it.
            progress: progress callback.
            judge: compares check-points of the whole student.
            own: compares those of the block; None for the last, which the whole's are for.
        """
        before = dict(self.values)
        self.start |= training.student.values
        left = None if self._until is None else min(self._until - self.done, steps)
        course = training.run(
            steps,
            own or (lambda values: judge({**before, **values})),
            progress,
            until=None if left == steps else left,
        )
        self.values |= course.values
        self._skipped += course.skipped
        if own is None:
            for point in course.points[1:]:
                self._add(replace(point, step=self.done + point.step))
        elif course.best or course.stopped is None:
            last = left or steps if course.stopped is None else course.best
            fitted = course.points[-1].fitted
            self._add(Point(self.done + last, fitted, judge(self.values)))
        self.done += steps if course.stopped is None else course.stopped
        self._last = course

    def course(self) -> Course:
        """What it came to, steps of all blocks counted together."""
        best, values = self._best
        stopped = None if self._last.stopped is None else self.done
        return replace(
            self._last,
            values={**self.start, **values},
            best=best.step,
            points=tuple(self._points),
            skipped=self._skipped,
            stopped=stopped,
        )

    def _add(self, point: Point) -> None:
        self._points.append(point)
        if point.held_out < self._best[0].held_out:
            self._best = point, dict(self.values)


def _notes(course: Course) -> Iterator[str]:
    """What a training says of how it went."""
    if not course.best and course.stopped is None:
        yield "fine-tuning changed nothing: no check-point was better on held-out samples"
    if course.skipped:
        yield (
            f"{course.skipped} steps of fine-tuning were skipped, and the rate halved, because "
            "gradients were not finite"
        )
    if course.stopped is not None:
        yield f"fine-tuning was stopped after {course.stopped} steps; the best so far is kept"


def _left_as_they_were(blocked: Mapping[str, str]) -> Iterator[str]:
    if blocked:
        names = sorted(blocked)
        shown = ", ".join(names[:_LISTED]) + (" and others" if len(names) > _LISTED else "")
        reasons = "; ".join(sorted(set(blocked.values())))
        yield f"{len(names)} weights were not fine-tuned ({shown}): {reasons}"


def _all(name: str) -> Mapping[int, NDArray[np.int64]]:
    del name
    return {}


def _nothing(reasons: Mapping[str, str]) -> NothingPrunable:
    told = "; ".join(sorted(set(reasons.values()))) or "it has no weights"
    return NothingPrunable(f"nothing can be fine-tuned: {told}")


def _together(room: float, needed: int, sample: Part) -> int:
    """Number of samples that run together.

    Args:
        room: bytes for activations.
        needed: bytes of activations of the sample.
        sample: that was observed.
    """
    return max(1, int(room * sample.rows / max(needed, 1)))


def _loss_bytes(facts: Facts) -> int:
    """Memory that comparing the outputs of the sample takes: a few copies in double precision."""
    outputs = (value for value in facts.first.outputs.values() if is_float(value))
    return _OUTPUT_BYTES * sum(int(value.size) for value in outputs)


def _macs(model: ir.Model, seen: Observation) -> int:
    """Multiplications of a run."""
    return sum(node_macs(node, seen.shapes.__getitem__) for node in model.graph)


def _steps(effort: str | int, macs: float, count: int, batch: int) -> int:
    """Number of steps.

    Args:
        effort: as in `Distillation`.
        macs: multiplications for a sample.
        count: of samples.
        batch: samples of a step.
    """
    a_pass = max(count // batch, 1)
    if not isinstance(effort, str):
        return max(effort * a_pass, _FEWEST_STEPS)
    return EFFORTS[effort].steps_for(a_pass, max(macs * batch, 1))


def _trainings(effort: str | int, macs: float) -> int:
    """Number of trainings; a single one where passes over the samples are counted.

    Args:
        effort: as in `Distillation`.
        macs: multiplications of a training.
    """
    return EFFORTS[effort].trainings_for(max(macs, 1)) if isinstance(effort, str) else 1


def _moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    result = {}
    for name, value in before.items():
        change = _mean_size(after[name] - value)
        # a bias that was zero has moved by all of what it is now
        result[name] = change / (_mean_size(value) or change or 1.0)
    return result


def _mean_size(array: NDArray[Any]) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))
