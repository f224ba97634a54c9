"""Which rows of an activation are looked at."""

from __future__ import annotations

import numpy as np

from onnxprune.calibration.batches import drawn_rows


def test_few_rows_are_all_looked_at() -> None:
    drawn = drawn_rows([3, 5], 100, [0])
    assert [ids.tolist() for ids in drawn] == [[0, 1, 2], [0, 1, 2, 3, 4]]


def test_of_many_rows_every_batch_gives_the_same_share_in_order() -> None:
    drawn = drawn_rows([1000, 3000], 400, [0])
    assert [len(ids) for ids in drawn] == [100, 300]
    for ids, count in zip(drawn, (1000, 3000), strict=True):
        assert (np.diff(ids) > 0).all()
        assert ids[0] >= 0
        assert ids[-1] < count


def test_every_batch_gives_one_at_least() -> None:
    assert [len(ids) for ids in drawn_rows([1, 10_000], 10, [0])] == [1, 9]


def test_the_seed_and_the_batch_decide() -> None:
    first, again, other = (drawn_rows([1000, 1000], 200, [seed]) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0], first[1])
