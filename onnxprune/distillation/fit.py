"""Training of a student: short probes find the rate, the best check-point on held-out samples wins.

    probe rates  ->  train with the best one  ->  keep the check-point that diverges least

A rate that does well over a few steps may be too large for many of them, the more so the fewer
samples there are: where a training is short, smaller rates are trained with to the end as well.

Every choice is made on samples that are not trained on. Effort is counted in steps, so that the
same options give the same bytes however fast the machine is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxprune.distillation.labels import LabelLoss
from onnxprune.distillation.losses import DistillationLoss
from onnxprune.distillation.optimiser import Optimiser, Schedule, orthogonalising_macs
from onnxprune.distillation.pool import Feed, Part, Pool
from onnxprune.distillation.student import Student, Values
from onnxprune.distillation.teacher import Teacher
from onnxprune.progress import Counted, Progress

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
"""Rates that are tried."""

_PROBE_STEPS = 24
_PROBE_SHARE = 16
"""A probe takes at most one in so many of the steps of the whole."""

_TOLERANCE, _MANY_STEPS = 0.05, 400
"""How much worse than the best the divergence after a probe may be, where there are many steps."""

_ORTHOGONALISING = 0.5
"""Multiplications that orthogonalising may take, over those of a step."""

_EVALUATIONS = 12
"""Check-points that are compared."""


@dataclass(frozen=True)
class Point:
    """A check-point.

    Attributes:
        step: number of steps before it.
        fitted: loss on the samples that were trained on since the last one; None at the start.
        held_out: divergence from the teacher on samples that were not.
    """

    step: int
    fitted: float | None
    held_out: float


@dataclass(frozen=True)
class Course:
    """What a training came to.

    Attributes:
        values: of the weights at the best check-point.
        best: step of that; 0 where none is better than the start.
        points: all check-points.
        rate: that was chosen; 0 where none was better than the start.
        probes: by rate, the divergence after a few steps.
        skipped: steps without use, whose gradients were not finite.
        stopped: step at which the user stopped it; None for the end.
    """

    values: Values
    best: int
    points: tuple[Point, ...]
    rate: float
    probes: Mapping[float, float] = field(default_factory=dict)
    skipped: int = 0
    stopped: int | None = None

    @property
    def least(self) -> float:
        """Divergence at the best check-point."""
        return next(point.held_out for point in self.points if point.step == self.best)


Judge: TypeAlias = Callable[[Values], float]
"""Divergence from the teacher, and loss of labels, of some values on held-out samples."""


@dataclass(frozen=True)
class Training:
    """One student, one teacher and their samples.

    Attributes:
        student: is trained.
        teacher: says what is right.
        loss: of one against the other.
        pool: samples to train on.
        batch: samples of a step.
        most: samples that run together.
        macs: multiplications that a sample takes in a step.
        seed: of the order of samples and of their views.
        labels: loss of labels; None without.
        reader: makes what the student reads of a feed; None for the feed itself.
    """

    student: Student
    teacher: Teacher
    loss: DistillationLoss
    pool: Pool
    batch: int
    most: int
    macs: float
    seed: int
    labels: LabelLoss | None = None
    reader: Callable[[Feed], Feed] | None = None

    def run(
        self,
        steps: int,
        judge: Judge,
        progress: Progress[Any],
        rate: float | None = None,
        until: int | None = None,
        trainings: int = 1,
    ) -> Course:
        """Probe, and train.

        Args:
            steps: of the training.
            judge: compares check-points.
            progress: progress callback.
            rate: known from a run before; None to probe.
            until: the step whose check-point that run kept; None to go on to the end.
            trainings: from the start, the first with the rate that was found and each other with
                the next smaller one.
        """
        start = judge(self.student.values)
        probes: dict[float, float] = {}
        if rate is None:
            try:
                probes = self._probed(steps, judge, progress)
            except KeyboardInterrupt:
                return Course(self.student.values, 0, (Point(0, None, start),), 0.0, stopped=0)
            rate = _best_rate(probes, 1 + _TOLERANCE * min(1, steps / _MANY_STEPS))
        if not rate or until == 0:
            return Course(self.student.values, 0, (Point(0, None, start),), rate, probes)
        smaller = [each for each in sorted(probes, reverse=True) if each < rate]
        courses: list[Course] = []
        for each in (rate, *smaller[: trainings - 1]):
            courses.append(self._trained(Schedule(each, steps), start, judge, progress, until))
            if courses[-1].stopped is not None:
                break
        best = min(courses, key=lambda course: course.least)
        return replace(best, probes=probes, stopped=courses[-1].stopped)

    def _probed(self, steps: int, judge: Judge, progress: Progress[Any]) -> dict[float, float]:
        """Divergence after a short training with each rate."""
        count = max(min(_PROBE_STEPS, steps // _PROBE_SHARE), 2)
        probes = {}
        for rate in progress(RATES, "finding the learning rate", len(RATES)):
            optimiser = self._optimiser()
            schedule = Schedule(rate, count)
            for step, parts in zip(range(count), self._steps(), strict=False):
                gradients, _ = self._gradients(parts, optimiser.values)
                if gradients is None:
                    break
                optimiser.step(gradients, schedule.at(step))
            probes[rate] = judge(optimiser.values)
        return probes

    def _trained(
        self,
        schedule: Schedule,
        start: float,
        judge: Judge,
        progress: Progress[Any],
        until: int | None,
    ) -> Course:
        optimiser = self._optimiser()
        points = [Point(0, None, start)]
        best, values = points[0], self.student.values
        every = -(-schedule.steps // _EVALUATIONS)
        losses: list[float] = []
        skipped, factor, stopped = 0, 1.0, None
        last = schedule.steps if until is None else until
        try:
            pairs = Counted(zip(range(last), self._steps(), strict=False))
            pairs.status = f"loss {start:.3g}"
            for step, parts in progress(pairs, "fine-tuning", last):
                gradients, loss = self._gradients(parts, optimiser.values)
                if gradients is None:
                    skipped, factor = skipped + 1, factor / 2
                else:
                    optimiser.step(gradients, factor * schedule.at(step))
                    losses.append(loss)
                if (step + 1) % every == 0 or step + 1 == last:
                    fitted = float(np.mean(losses)) if losses else None
                    points.append(Point(step + 1, fitted, judge(optimiser.values)))
                    losses = []
                    pairs.status = f"loss {points[-1].held_out:.3g}"
                    if points[-1].held_out < best.held_out:
                        best, values = points[-1], dict(optimiser.values)
        except KeyboardInterrupt:
            stopped = points[-1].step
        return Course(values, best.step, tuple(points), schedule.rate, {}, skipped, stopped)

    def _optimiser(self) -> Optimiser:
        """A new optimiser; matrices are orthogonalised where that costs less than gradients."""
        values, affordable = self.student.values, _ORTHOGONALISING * self.macs * self.batch
        matrices = [name for name in self.student.matrices if name in values]
        extra = sum(orthogonalising_macs(values[name].shape) for name in matrices)
        return Optimiser(values, matrices if extra <= affordable else ())

    def _steps(self) -> Any:
        """Steps without end, the same each time."""
        rng = np.random.default_rng(self.seed)
        while True:
            yield from self.pool.epoch(self.batch, self.most, rng)

    def _gradients(self, parts: Sequence[Part], values: Values) -> tuple[Values | None, float]:
        """Mean gradients of a step and its loss; None where they are not finite."""
        count = sum(part.rows for part in parts)
        total: Values = {}
        whole = 0.0
        for part in parts:
            of_labels = 0.0
            feed = part.feed if self.reader is None else self.reader(part.feed)
            outputs, features = self.teacher.run(part.feed)
            targets = self.loss.feed(outputs, features, part.rows)
            if self.labels is not None:
                answers = self.student.outputs(feed, values)
                of_labels, slopes = self.labels.of(answers, part)
                targets |= self.loss.given(slopes, answers)
            of_outputs, of_features, gradients = self.student.gradients(feed, targets, values)
            share = np.float32(part.rows / count)
            whole += float(share) * (of_outputs + of_features + of_labels)
            for name, gradient in gradients.items():
                total[name] = total[name] + share * gradient if name in total else share * gradient
        finite = math.isfinite(whole) and all(_is_finite(each) for each in total.values())
        return (total if finite else None), whole


def _is_finite(array: NDArray[np.float32]) -> bool:
    # a sum is finite only if all entries are, and needs no second array
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(array.sum(dtype=np.float64)))


def _best_rate(probes: Mapping[float, float], tolerance: float) -> float:
    """The largest rate that is hardly worse than the best; 0 where none gave an answer.

    A large rate looks worse after a few steps than it is after many, while the rate falls.
    """
    finite = {rate: value for rate, value in probes.items() if math.isfinite(value)}
    least = min(finite.values(), default=0.0)
    return max((rate for rate, value in finite.items() if value <= tolerance * least), default=0.0)
