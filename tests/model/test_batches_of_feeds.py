"""Feeds of another number of rows, and models that fix theirs."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import InputError
from onnxprune.model.inputs import InputSpec, check_batch, resized_batch

FLOAT = np.dtype(np.float32)
FREE = (
    InputSpec("x", FLOAT, ("N", 3)),
    InputSpec("state", FLOAT, (2, "N", 4)),
    InputSpec("rate", FLOAT, ()),
)
FEED = {
    "x": np.arange(6, dtype=np.float32).reshape(2, 3),
    "state": np.zeros((2, 2, 4), np.float32),
    "rate": np.array(16_000, np.float32),
}


def test_rows_come_again_on_every_axis_of_the_batch() -> None:
    feed = resized_batch(FREE, FEED, 5)
    assert {name: array.shape for name, array in feed.items()} == {
        "x": (5, 3),
        "state": (2, 5, 4),
        "rate": (),
    }
    np.testing.assert_array_equal(feed["x"][:, 0], [0, 3, 0, 3, 0])
    assert resized_batch(FREE, FEED, 1)["x"].shape == (1, 3)


def test_without_a_number_the_feed_stays_as_it_is() -> None:
    feed = resized_batch(FREE, FEED, None)
    assert all(feed[name] is array for name, array in FEED.items())


def test_a_model_that_fixes_its_batch_takes_no_other() -> None:
    fixed = (InputSpec("x", FLOAT, (4, 3)),)
    check_batch(fixed, None)
    check_batch(fixed, 4)
    check_batch(FREE, 7)
    with pytest.raises(InputError, match="batch 8: the model takes batches of 4 only; leave --bat"):
        check_batch(fixed, 8)
