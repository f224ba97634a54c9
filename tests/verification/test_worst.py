"""Which samples two models disagree on most."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.verification.comparison import WorstSamples


def worst(before, after, numbers=None):
    found = WorstSamples()
    before, after = np.float32(before), np.float32(after)
    numbers = np.arange(len(before)) if numbers is None else np.array(numbers)
    found.add(numbers, before, after)
    return found.worst()


def test_another_answer_is_worse_than_any_error():
    one, other = worst([[1.0, 0.9], [3.0, 1.0], [1.0, 0.0]], [[0.9, 1.0], [9.0, 1.0], [1.0, 0.0]])
    assert (one.index, one.answers, one.differing) == (0, (0, 1), 1.0)
    assert (other.index, other.answers, other.differing) == (1, (0, 0), 0.0)
    assert other.relative_error == pytest.approx(6 / np.sqrt(10))
    assert one.original == pytest.approx((1.0, 0.9))
    assert one.result == pytest.approx((0.9, 1.0))


def test_samples_keep_the_numbers_they_have_in_the_source():
    (one,) = worst([[1.0, 2.0]], [[1.0, 3.0]], numbers=[41])
    assert one.index == 41


def test_one_value_for_each_sample_has_an_error_and_no_answer():
    (one,) = worst([[2.0], [1.0]], [[1.0], [1.0]])
    assert (one.answers, one.differing, one.relative_error) == (None, None, 0.5)


def test_several_answers_for_each_sample_are_counted():
    before = [[[1.0, 0.0], [0.0, 1.0]]]
    after = [[[1.0, 0.0], [1.0, 0.0]]]
    (one,) = worst(before, after)
    assert (one.answers, one.differing) == (None, 0.5)


def test_few_are_kept_over_all_batches():
    found = WorstSamples()
    for start in range(0, 100, 10):
        numbers = np.arange(start, start + 10)
        before = np.ones((10, 1), np.float32)
        found.add(numbers, before, before + numbers[:, None].astype(np.float32))
    kept = [one.index for one in found.worst()]
    assert kept == sorted(range(100), reverse=True)[: len(kept)]
    assert 1 < len(kept) < 20


def test_a_batch_that_is_no_row_of_samples_counts_as_one():
    (one,) = worst([1.0, 2.0, 3.0], [1.0, 2.0, 4.0], numbers=[7])
    assert (one.index, one.answers) == (7, (2, 2))


def test_what_is_not_finite_is_worst_of_all():
    one, other = worst([[1.0], [1.0]], [[2.0], [np.nan]])
    assert (one.index, one.relative_error) == (1, np.inf)
    assert other.index == 0
