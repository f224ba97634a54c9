"""Distillation: a student is trained to answer as its teacher does, on unlabelled samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.augment import VIEWS
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.streams import Samples, divide
from onnxprune.cost.macs import node_macs
from onnxprune.distillation.features import KeptIndices, features_of
from onnxprune.distillation.fit import Course, Training
from onnxprune.distillation.labels import label_loss
from onnxprune.distillation.losses import DistillationLoss
from onnxprune.distillation.parameters import with_values
from onnxprune.distillation.pool import Pool
from onnxprune.distillation.student import Student, Values
from onnxprune.distillation.teacher import Teacher, with_variance
from onnxprune.distillation.views import fitting_views
from onnxprune.errors import InputError, NothingPrunable
from onnxprune.model.observe import Observation, observe
from onnxprune.verification.divergence import DivergenceEvaluator

_BATCH = 64
_OBSERVED = 2  # samples
_LEAST_STEPS_AN_EPOCH = 8
_FEWEST_STEPS = 2
_COUNTED = 256
"""Samples that say what counts how much in the loss."""
_ACTIVATION_BYTES = 1_000_000_000
_LISTED = 3  # names in a sentence


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


EFFORTS: Mapping[str, Effort] = {
    "low": Effort(16, 128, 4e11, 4, 2e12),
    "normal": Effort(64, 512, 4e12, 40, 3e13),
    "high": Effort(256, 2048, 2e13, 64, 1e14),
}


@dataclass(frozen=True)
class Distillation:
    """How to train.

    Attributes:
        effort: name of `EFFORTS`, or a number of epochs.
        augment: views of images that are drawn anew each time; empty for those that the teacher
            takes for more of the same.
        embeddings: train tables of embeddings as well.
        loss: of labels, as `gradients.losses.Objective` has it; without labels of no effect.
        rate: of a run that is repeated; None to find one.
        until: step whose check-point that run kept; None to go on to the end.
        labels_alone: labels are all that is learnt; nothing of the teacher.
    """

    effort: str | int = "normal"
    augment: tuple[str, ...] = ()
    embeddings: bool = False
    loss: str | Callable[..., Any] | None = None
    rate: float | None = None
    until: int | None = None
    labels_alone: bool = False


@dataclass(frozen=True)
class Distilled:
    """A trained student.

    Attributes:
        model: with the weights of the best check-point; as it was where none is better.
        course: of the training.
        moved: by name of a weight, the root mean square of its change over that of itself.
        frozen: by name of a weight that was not trained, why.
        features: names of the tensors inside that were compared.
        views: of images that were drawn.
        steps: of the whole training.
        batch: samples of a step.
        samples: trained on.
        notes: what went otherwise than asked, in sentences.
        learnt: what the loss was made of: the `teacher`, `labels`, or both.
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
    training = _prepared(student, teacher, options, context, pool, kept or _all)
    kept_out, labels = others.batches(_BATCH), training.labels
    divergence = DivergenceEvaluator(teacher, [part.feed for part in kept_out], context.runtime)

    def judge(values: Values) -> float:
        made = with_values(student, values)
        of_labels = labels.of_model(made, kept_out) if labels is not None else 0.0
        return of_labels + (0.0 if options.labels_alone else divergence.divergence(made))

    steps = _steps(options.effort, training.macs, pool.count, training.batch)
    course = training.run(steps, judge, context.progress, options.rate, options.until)
    trained = training.student
    return Distilled(
        with_values(student, course.values) if course.best else student.clone(),
        course,
        _moved(trained.values, course.values),
        trained.blocked,
        training.loss.features,
        pool.views,
        steps,
        training.batch,
        pool.count,
        (*_notes(course), *_left_as_they_were(trained.blocked)),
        (
            *(() if options.labels_alone else ("teacher",)),
            *(("labels",) if labels is not None else ()),
        ),
    )


def _prepared(
    student: ir.Model,
    teacher: ir.Model,
    options: Distillation,
    context: RunContext,
    pool: Pool,
    kept: KeptIndices,
) -> Training:
    """Student, teacher and loss, ready to run; raises as `distil` does."""
    runtime, rng = context.runtime, np.random.default_rng(context.seed)
    labels = label_loss(student, options.loss, context, rng)
    sample = pool.batches(_OBSERVED)[0]
    seen = [observe(model, runtime, rng, sample.feed).first for model in (student, teacher)]
    alone = options.labels_alone
    features = [] if alone else features_of(student, teacher, (seen[0], seen[1]), kept)
    counted = pool.some(_COUNTED, _BATCH)
    runs = [Teacher(teacher, features, runtime).run(part.feed) for part in counted]
    features = with_variance(features, [found for _, found in runs])
    taught = Teacher(teacher, features, runtime)
    if options.augment:
        pool.views = tuple(view for view in options.augment if view in VIEWS)
    elif features and labels is None:  # labels need not fit a view
        pool.views = fitting_views(taught, counted, rng)
    known = [outputs for outputs, _ in runs]
    loss = DistillationLoss(
        student, teacher, known, features, labelled=labels is not None, taught=not alone
    )
    trained = Student(student, loss, sample.feed, runtime, rng, embeddings=options.embeddings)
    if not trained.values:
        reasons = "; ".join(sorted(set(trained.blocked.values()))) or "it has no weights"
        raise NothingPrunable(f"nothing can be fine-tuned: {reasons}")
    batch = max(1, min(_BATCH, pool.count // _LEAST_STEPS_AN_EPOCH))
    together = max(1, int(_ACTIVATION_BYTES * sample.rows / max(trained.activation_bytes, 1)))
    macs = (3 * _macs(student, seen[0]) + _macs(teacher, seen[1])) / sample.rows
    return Training(
        trained, taught, loss, pool, batch, min(together, batch), macs, context.seed, labels
    )


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


def _moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    result = {}
    for name, value in before.items():
        size = float(np.sqrt(np.mean(np.square(value, dtype=np.float64))))
        change = float(np.sqrt(np.mean(np.square(after[name] - value, dtype=np.float64))))
        result[name] = change / size if size else 0.0
    return result
