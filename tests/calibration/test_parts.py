"""Samples divided into those that are fitted and those kept out."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import CalibrationError
from onnxprune.calibration.samples import read_samples
from onnxprune.calibration.streams import divide
from onnxprune.model.inputs import InputSpec

FREE = (InputSpec("x", np.dtype(np.float32), ("n", 2)),)
FIXED = (InputSpec("x", np.dtype(np.float32), (1, 2)),)


def rows(count):
    return np.arange(count * 2, dtype=np.float32).reshape(count, 2)


def gone_through(samples, size):
    """Numbers of samples and the first entry of each row."""
    found = list(samples.numbered(size))
    numbers = np.concatenate([places for places, _ in found])
    return numbers.tolist(), np.concatenate([feed["x"][:, 0] for _, feed in found]).tolist()


@pytest.mark.parametrize("size", [1, 3, 32])
@pytest.mark.parametrize("specs", [FREE, FIXED])
def test_every_fourth_sample_is_kept_out_and_knows_its_number(size, specs):
    fitted, held = divide(read_samples({"x": rows(10)}, specs))
    assert gone_through(held, size) == ([3, 7], [6.0, 14.0])
    others = [0, 1, 2, 4, 5, 6, 8, 9]
    assert gone_through(fitted, size) == (others, [2.0 * one for one in others])


def test_rows_of_whole_feeds_are_divided_too():
    feeds = [{"x": rows(10)[:3]}, {"x": rows(10)[3:]}]
    _, held = divide(read_samples(feeds, FREE))
    assert gone_through(held, 5) == ([3, 7], [6.0, 14.0])


def test_feeds_without_a_common_first_axis_stay_whole():
    specs = (FREE[0], InputSpec("y", np.dtype(np.float32), ("m",)))
    feeds = [{"x": rows(3) + one, "y": np.zeros(one + 1, np.float32)} for one in range(4)]
    fitted, held = divide(read_samples(feeds, specs))
    assert [len(feed["y"]) for feed in fitted.batches(1)] == [1, 2, 3]
    assert [len(feed["y"]) for feed in held.batches(1)] == [4]


def test_both_parts_know_how_many_they_are():
    fitted, held = divide(read_samples({"x": rows(11)}, FREE))
    assert (fitted.count, held.count) == (9, 2)
    assert len(fitted.take(100)["x"]) == 9


def test_too_few_samples_are_refused():
    with pytest.raises(CalibrationError, match="too few samples"):
        divide(read_samples({"x": rows(3)}, FREE))


def test_a_part_is_divided_by_its_own_places_and_keeps_its_numbers():
    fitted, _ = divide(read_samples({"x": rows(16)}, FREE))
    first, second = divide(fitted)
    numbers = [
        np.concatenate([n for n, _ in part.numbered(3)]).tolist() for part in (first, second)
    ]
    assert numbers == [[0, 1, 2, 5, 6, 8, 10, 12, 13], [4, 9, 14]]
    assert (first.count, second.count) == (9, 3)
