"""Distillation: a student is trained to answer as its teacher does, on unlabelled samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.labels import take_labels
from onnxprune.calibration.streams import Samples, divide
from onnxprune.cost.macs import node_macs
from onnxprune.distillation.features import KeptIndices, features_of
from onnxprune.distillation.fit import Course, LabelGradient, Training
from onnxprune.distillation.losses import DistillationLoss
from onnxprune.distillation.parameters import with_values
from onnxprune.distillation.pool import Part, Pool
from onnxprune.distillation.student import Student
from onnxprune.distillation.teacher import Teacher, with_variance
from onnxprune.errors import InputError, NothingPrunable
from onnxprune.gradients.losses import LossGradient, heads_of
from onnxprune.model.observe import Observation, observe
from onnxprune.verification.divergence import DivergenceEvaluator

_BATCH = 64
_LEAST_STEPS_AN_EPOCH = 8
_COUNTED = 256
"""Samples that say what counts how much in the loss."""
_ACTIVATION_BYTES = 1_000_000_000
_LISTED = 3  # names in a sentence

EFFORTS: Mapping[str, tuple[float, int, int]] = {
    "low": (4e11, 8, 64),
    "normal": (4e12, 64, 512),
    "high": (2e13, 256, 2048),
}
"""Multiplications, epochs, and steps at least that epochs may be exceeded for, by name."""


@dataclass(frozen=True)
class Distillation:
    """How to train.

    Attributes:
        effort: name of `EFFORTS`, or a number of epochs.
        augment: views of images that are drawn anew each time.
        embeddings: train tables of embeddings as well.
        loss: of labels, as `gradients.losses.Objective` has it; without labels of no effect.
        rate: of a run that is repeated; None to find one.
    """

    effort: str | int = "normal"
    augment: tuple[str, ...] = ()
    embeddings: bool = False
    loss: str | Callable[..., Any] | None = None
    rate: float | None = None


@dataclass(frozen=True)
class Distilled:
    """A trained student.

    Attributes:
        model: with the weights of the best check-point; as it was where none is better.
        course: of the training.
        moved: by name of a weight, the root mean square of its change over that of itself.
        frozen: by name of a weight that was not trained, why.
        features: names of the tensors inside that were compared.
        steps: of the whole training.
        batch: samples of a step.
        samples: trained on.
        notes: what went otherwise than asked, in sentences.
    """

    model: ir.Model
    course: Course
    moved: Mapping[str, float] = field(default_factory=dict)
    frozen: Mapping[str, str] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    steps: int = 0
    batch: int = 0
    samples: int = 0
    notes: tuple[str, ...] = ()


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
    runtime, rng = context.runtime, np.random.default_rng(context.seed)
    labels = _label_gradient(student, options.loss, context, rng)
    if held_out is None:
        fitted, held_out = divide(context.samples)
    else:
        fitted = context.samples
    pool, others = Pool(fitted, options.augment), Pool(held_out)
    sample = pool.batches(2)[0].feed
    seen = tuple(observe(model, runtime, rng, sample).first for model in (student, teacher))
    features = features_of(student, teacher, (seen[0], seen[1]), kept or _all)
    batch = max(1, min(_BATCH, pool.count // _LEAST_STEPS_AN_EPOCH))
    counted = pool.batches(_BATCH)[: max(_COUNTED // _BATCH, 1)]
    runs = [Teacher(teacher, features, runtime).run(part.feed) for part in counted]
    features = with_variance(features, [found for _, found in runs])
    known = [outputs for outputs, _ in runs]
    loss = DistillationLoss(teacher, known, features, labelled=labels is not None)
    trained = Student(student, loss, sample, runtime, rng, embeddings=options.embeddings)
    if not trained.values:
        reasons = "; ".join(sorted(set(trained.blocked.values()))) or "it has no weights"
        raise NothingPrunable(f"nothing can be fine-tuned: {reasons}")
    each = trained.activation_bytes / max(len(next(iter(sample.values()))), 1)
    most = max(1, int(_ACTIVATION_BYTES / max(each, 1)))
    judge = DivergenceEvaluator(teacher, [part.feed for part in others.batches(_BATCH)], runtime)
    training = Training(
        trained,
        Teacher(teacher, features, runtime),
        loss,
        pool,
        lambda values: judge.divergence(with_values(student, values)),
        batch,
        min(most, batch),
        context.seed,
        labels,
    )
    macs = 3 * _macs(student, seen[0]) + _macs(teacher, seen[1])
    steps = _steps(options.effort, macs, pool.count, batch)
    course = training.run(steps, context.progress, options.rate)
    model = with_values(student, course.values) if course.best else student.clone()
    notes = (*_notes(course), *_left_as_they_were(trained.blocked))
    return Distilled(
        model,
        course,
        _moved(trained.values, course.values),
        trained.blocked,
        tuple(feature.name for feature in features),
        steps,
        batch,
        pool.count,
        notes,
    )


def _notes(course: Course) -> Iterator[str]:
    """What a training says of how it went."""
    if not course.best:
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


def _label_gradient(
    student: ir.Model,
    loss: str | Callable[..., Any] | None,
    context: RunContext,
    rng: np.random.Generator,
) -> LabelGradient | None:
    """Gradients of the loss of labels; None without labels."""
    samples, labels = context.samples, context.labels
    if labels is None or samples is None:
        return None
    known = LossGradient(heads_of(student, loss), loss, rng)

    def gradient(outputs: Mapping[str, NDArray[Any]], part: Part) -> dict[str, NDArray[np.float64]]:
        slopes = known.of(outputs, take_labels(labels, part.numbers))
        return {name: slope / part.rows for name, slope in slopes.items()}

    return gradient


def _all(name: str) -> Mapping[int, NDArray[np.int64]]:
    del name
    return {}


def _macs(model: ir.Model, seen: Observation) -> float:
    """Multiplications for one sample."""
    rows = max((len(array) for array in seen.feed.values() if array.ndim), default=1)
    return sum(node_macs(node, seen.shapes.__getitem__) for node in model.graph) / max(rows, 1)


def _steps(effort: str | int, macs: float, count: int, batch: int) -> int:
    """Number of steps."""
    an_epoch = max(count // batch, 1)
    if not isinstance(effort, str):
        return effort * an_epoch
    budget, epochs, least = EFFORTS[effort]
    affordable = int(budget / max(macs * batch, 1))
    return max(min(affordable, max(epochs * an_epoch, least)), 2)


def _moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    result = {}
    for name, value in before.items():
        size = float(np.sqrt(np.mean(np.square(value, dtype=np.float64))))
        change = float(np.sqrt(np.mean(np.square(after[name] - value, dtype=np.float64))))
        result[name] = change / size if size else 0.0
    return result
