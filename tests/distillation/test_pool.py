"""Samples in memory: each once in an epoch, in batches that the model takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.calibration.samples import read_samples
from onnxprune.calibration.streams import Samples, divide
from onnxprune.distillation.pool import Part, Pool
from onnxprune.model.inputs import InputSpec


def samples(source: Any, *shape: int | str) -> Samples:
    return read_samples(source, [InputSpec("x", np.dtype(np.float32), shape)])


def numbered(count: int, *shape: int) -> np.ndarray:
    """Samples whose entries all are their number."""
    numbers = np.arange(count, dtype=np.float32)
    return np.broadcast_to(numbers.reshape(-1, *[1] * len(shape)), (count, *shape)).copy()


def seen(parts: list[Part]) -> list[int]:
    return [int(number) for part in parts for number in part.feed["x"].reshape(part.rows, -1)[:, 0]]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("count", "rows", "most"), [(48, 8, 8), (50, 8, 8), (50, 8, 3), (5, 8, 8)])
def test_every_sample_is_drawn_once_in_an_epoch(count: int, rows: int, most: int) -> None:
    pool = Pool(samples({"x": numbered(count, 4)}, "N", 4))
    assert pool.count == count
    steps = list(pool.epoch(rows, most, rng()))
    assert sorted(number for step in steps for number in seen(step)) == list(range(count))
    assert all(seen([part]) == part.numbers.tolist() for step in steps for part in step)


def test_parts_of_a_step_are_about_as_large_as_asked_for() -> None:
    pool = Pool(samples({"x": numbered(96, 4)}, "N", 4))
    steps = list(pool.epoch(16, 4, rng()))
    assert [sum(part.rows for part in step) for step in steps] == [16] * 6
    assert {part.rows for step in steps for part in step} == {4}


def test_an_epoch_is_the_same_for_the_same_seed_and_another_each_time() -> None:
    pool = Pool(samples({"x": numbered(40, 4)}, "N", 4))
    same = rng(1)
    orders = [[seen(step) for step in pool.epoch(8, 8, each)] for each in (rng(1), same, same)]
    assert orders[0] == orders[1]
    assert orders[1] != orders[2]


def test_batches_that_the_model_fixes_stay_whole() -> None:
    pool = Pool(samples({"x": numbered(24, 4)}, 6, 4))
    steps = list(pool.epoch(12, 2, rng()))
    assert {part.feed["x"].shape for step in steps for part in step} == {(6, 4)}
    assert [len(step) for step in steps] == [2, 2]
    assert {part.feed["x"].shape for part in pool.batches(2)} == {(6, 4)}


def test_samples_of_several_shapes_are_drawn_with_their_like() -> None:
    feeds = [{"x": np.full((1, 3 + number % 2), number, np.float32)} for number in range(16)]
    pool = Pool(samples(feeds, "N", "length"))
    assert pool.count == 16
    steps = list(pool.epoch(4, 4, rng()))
    assert sorted(number for step in steps for number in seen(step)) == list(range(16))
    parts = [part for step in steps for part in step]
    assert {part.feed["x"].shape for part in parts} == {(4, 3), (4, 4)}
    assert all(len(set(np.array(seen([part])) % 2)) == 1 for part in parts)


def test_samples_keep_their_numbers_where_others_are_held_out() -> None:
    fitted, _ = divide(samples({"x": numbered(20, 4)}, "N", 4))
    pool = Pool(fitted)
    steps = [part for step in pool.epoch(5, 5, rng()) for part in step]
    assert all(seen([part]) == part.numbers.tolist() for part in steps)
    assert sorted(seen(steps)) == [number for number in range(20) if number % 4 != 3]


def test_batches_are_all_samples_in_order() -> None:
    pool = Pool(samples({"x": numbered(11, 4)}, "N", 4))
    assert [part.rows for part in pool.batches(4)] == [4, 4, 3]
    assert seen(pool.batches(4)) == list(range(11))


@pytest.mark.parametrize("count", [8, 100, 1000])
def test_some_are_from_all_over_the_set(count: int) -> None:
    pool = Pool(samples({"x": numbered(count, 4)}, "N", 4))
    found = seen(pool.some(64, 16))
    assert len(found) == len(set(found))
    assert min(64, count) <= len(found) < 64 + 16
    quarters = np.array(found) * 4 // count
    assert set(quarters.tolist()) == {0, 1, 2, 3}


def test_views_are_drawn_for_training_only() -> None:
    images = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    pool = Pool(samples({"x": images}, "N", 3, 8, 8))
    pool.views = ("flip",)
    parts = [part for step in pool.epoch(8, 8, rng()) for part in step]
    mirrored = 0
    for part in parts:
        for number, image in zip(part.numbers, part.feed["x"], strict=True):
            flipped = np.array_equal(image, images[number][..., ::-1])
            assert flipped or np.array_equal(image, images[number])
            mirrored += flipped
    assert 0 < mirrored < 16
    assert all(np.array_equal(part.feed["x"], images[part.numbers]) for part in pool.batches(8))
