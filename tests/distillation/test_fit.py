"""How a training goes: probes, check-points, what is not finite, and being stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from onnxprune.calibration.samples import read_samples
from onnxprune.distillation.fit import RATES, Course, Training
from onnxprune.distillation.pool import Pool
from onnxprune.model.inputs import InputSpec
from onnxprune.progress import silent

WANTED = np.array([0.3, -0.2, 0.1, 0.05], np.float32)


class Bowl:
    """A student whose loss is the squared distance of its weights from some point."""

    def __init__(self, slopes: Callable[[int, Any], Any] = lambda count, slope: slope) -> None:
        self.values = {"w": np.zeros(4, np.float32)}
        self.matrices: list[str] = []
        self._slopes, self._count = slopes, 0

    def gradients(self, feed: Any, targets: Any, values: Any) -> tuple[float, float, Any]:
        apart = values["w"] - WANTED
        self._count += 1
        slope = self._slopes(self._count, 2 * apart)
        return float(apart @ apart), 0.0, {"w": slope.astype(np.float32)}


class Silent:
    """A teacher, and a loss, that have nothing to say."""

    def run(self, feed: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, {}

    def feed(self, *given: Any) -> dict[str, Any]:
        return {}


def training(student: Any, seed: int = 0, most: int = 8) -> Training:
    specs = [InputSpec("x", np.dtype(np.float32), ("N", 1))]
    pool = Pool(read_samples({"x": np.arange(32, dtype=np.float32).reshape(32, 1)}, specs))
    nothing: Any = Silent()
    return Training(student, nothing, nothing, pool, 8, most, 1.0, seed)


def distance(values: Any) -> float:
    return float(np.square(values["w"] - WANTED).sum())


def trained(student: Any, judge: Any = distance, steps: int = 400, **options: Any) -> Course:
    progress = options.pop("progress", silent)
    return training(student).run(steps, judge, progress, **options)


def test_a_training_gets_nearer() -> None:
    course = trained(Bowl())
    assert course.points[0].held_out == pytest.approx(distance({"w": np.zeros(4)}))
    assert distance(course.values) < 1e-2 * course.points[0].held_out
    assert [point.step for point in course.points] == sorted({p.step for p in course.points})
    assert course.points[-1].step == 400
    assert course.stopped is None
    assert not course.skipped


def test_all_rates_are_tried_and_one_is_taken_that_does_well() -> None:
    course = trained(Bowl())
    assert set(course.probes) == set(RATES)
    assert course.probes[course.rate] <= 1.5 * min(course.probes.values())


def test_a_rate_that_ruins_the_student_is_not_taken() -> None:
    def judge(values: Any) -> float:
        # how far it got tells the rate
        moved = float(np.abs(values["w"]).max())
        return math.nan if moved > 0.004 else 1 - moved

    course = trained(Bowl(), judge, steps=80)
    assert math.isfinite(course.probes[course.rate])
    assert any(math.isnan(value) for rate, value in course.probes.items() if rate > course.rate)


def test_a_rate_that_is_known_is_not_looked_for() -> None:
    course = trained(Bowl(), rate=0.002)
    assert (course.rate, course.probes) == (0.002, {})


def test_the_best_check_point_is_kept_not_the_last() -> None:
    half = 0.5 * WANTED
    course = trained(Bowl(), lambda values: float(np.square(values["w"] - half).sum()), rate=0.003)
    best = min(course.points, key=lambda point: point.held_out)
    assert 0 < course.best < 400
    assert course.best == best.step
    assert float(np.square(course.values["w"] - half).sum()) == best.held_out


def test_the_start_is_kept_where_nothing_is_better() -> None:
    student = Bowl()
    course = trained(student, lambda values: float(np.abs(values["w"]).sum()))
    assert course.best == 0
    assert course.values is student.values
    assert (course.values["w"] == 0).all()


def test_steps_whose_gradients_are_not_finite_are_skipped_at_half_the_rate() -> None:
    def broken(count: int, slope: Any) -> Any:
        return slope * np.nan if count == 41 else slope

    usual, course = (trained(student, rate=1e-3, steps=80) for student in (Bowl(), Bowl(broken)))
    assert (usual.skipped, course.skipped) == (0, 1)
    assert np.isfinite(course.values["w"]).all()

    # what is left of the way is half as long
    def way(each: Course) -> float:
        return distance(each.values) - distance(usual.values)

    assert way(course) > 0
    many = trained(
        Bowl(lambda count, slope: slope * np.inf if count > 40 else slope), rate=1e-3, steps=80
    )
    assert many.skipped == 40
    assert np.isfinite(many.values["w"]).all()
    assert many.points[-1].fitted is None


def test_where_no_gradient_is_finite_the_start_is_kept() -> None:
    course = trained(Bowl(lambda count, slope: slope * np.nan))
    assert course.best == 0
    assert (course.values["w"] == 0).all()


def stopping(at: str, count: int) -> Any:
    def progress(items: Iterable[Any], what: str, total: int | None = None) -> Iterator[Any]:
        for number, item in enumerate(items):
            if what == at and number >= count:
                raise KeyboardInterrupt
            yield item

    return progress


def test_stopping_keeps_the_best_so_far() -> None:
    whole = trained(Bowl(), rate=1e-3)
    course = trained(Bowl(), rate=1e-3, progress=stopping("fine-tuning", 200))
    assert course.points == whole.points[: len(course.points)]
    assert course.stopped == course.best == course.points[-1].step
    assert 0 < course.best <= 200
    assert distance(course.values) == course.points[-1].held_out


def test_stopping_while_the_rate_is_looked_for_keeps_the_start() -> None:
    course = trained(Bowl(), progress=stopping("finding the learning rate", 1))
    assert (course.best, course.stopped) == (0, 0)
    assert (course.values["w"] == 0).all()


def test_a_run_is_repeated_up_to_the_check_point_that_was_kept() -> None:
    whole = trained(Bowl(), rate=1e-3)
    again = trained(Bowl(), rate=1e-3, until=whole.points[3].step)
    assert again.points == whole.points[:4]
    assert trained(Bowl(), rate=1e-3, until=0).best == 0


class Leaning(Bowl):
    """A student whose gradients depend on which samples it sees."""

    def gradients(self, feed: Any, targets: Any, values: Any) -> tuple[float, float, Any]:
        outputs, features, slopes = super().gradients(feed, targets, values)
        lean = np.float32(0.1 * np.sin(feed["x"].mean()))
        return outputs, features, {"w": slopes["w"] + lean}


def test_the_same_seed_gives_the_same_bytes() -> None:
    courses = [training(Leaning(), seed).run(60, distance, silent) for seed in (0, 0, 1)]
    data = [course.values["w"].tobytes() for course in courses]
    assert data[0] == data[1] != data[2]


class Averaging(Bowl):
    """A student whose gradients are means over its samples."""

    def gradients(self, feed: Any, targets: Any, values: Any) -> tuple[float, float, Any]:
        apart = values["w"] - WANTED - 0.01 * feed["x"]
        loss = float(np.square(apart).sum(axis=1).mean())
        return loss, 0.0, {"w": 2 * apart.mean(axis=0).astype(np.float32)}


def test_parts_of_a_step_weigh_by_their_samples() -> None:
    values = {"w": np.zeros(4, np.float32)}
    whole = training(Averaging())
    step = next(iter(whole.pool.epoch(8, 8, np.random.default_rng(0))))
    (part,) = step
    parts = [
        type(part)({"x": part.feed["x"][rows]}, part.numbers[rows])
        for rows in (slice(0, 5), slice(5, 8))
    ]
    together, loss = whole._gradients(step, values)
    apart, same = whole._gradients(parts, values)
    assert loss == pytest.approx(same)
    assert together is not None
    assert apart is not None
    np.testing.assert_allclose(together["w"], apart["w"], rtol=1e-5)


def test_where_a_training_is_short_smaller_rates_are_trained_with_as_well() -> None:
    """What a rate is good for shows only at the end."""
    known: list[float] = []

    def judge(values: Any) -> float:
        known.append(distance(values))
        # the probes cannot tell rates apart, and at the end the largest does worst
        return 1.0 if len(known) <= 1 + len(RATES) else float(np.abs(values["w"]).max())

    single = trained(Bowl(), judge, steps=40)
    known.clear()
    several = trained(Bowl(), judge, steps=40, trainings=3)
    assert single.rate == RATES[-1]
    assert several.rate == RATES[-3]
    assert several.least < single.least
    again = trained(
        Bowl(),
        lambda values: float(not values["w"].any()),
        steps=40,
        rate=several.rate,
        until=several.best,
    )
    assert np.array_equal(again.values["w"], several.values["w"])


def test_a_training_that_is_stopped_is_the_last() -> None:
    steps: list[int] = []

    def progress(items: Iterable[Any], what: str, total: int) -> Iterator[Any]:
        for number, item in enumerate(items):
            if what == "fine-tuning":
                steps.append(number)
                if len(steps) == 60:
                    raise KeyboardInterrupt
            yield item

    course = trained(Bowl(), steps=40, trainings=3, progress=progress)
    assert len(steps) == 60
    assert course.stopped is not None
    assert course.best
