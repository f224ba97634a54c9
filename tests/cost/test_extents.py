"""Costs state the sizes of dynamic axes they refer to."""

from __future__ import annotations

import numpy as np

from onnxprune.cost.figures import dynamic_extents
from onnxprune.model.inputs import InputSpec

FLOAT = np.dtype(np.float32)


def test_the_batch_comes_first_and_other_open_axes_by_name() -> None:
    specs = [
        InputSpec("ids", FLOAT, ("N", "length")),
        InputSpec("mask", FLOAT, ("N", "length", None)),
        InputSpec("table", FLOAT, (7, "N", 3)),
    ]
    feed = {"ids": np.zeros((2, 8)), "mask": np.zeros((2, 8, 5)), "table": np.zeros((7, 2, 3))}
    assert dynamic_extents(specs, feed) == {"batch": 2, "length": 8, "mask[2]": 5}


def test_a_fixed_batch_is_stated_too() -> None:
    feed = {"x": np.zeros((4, 3))}
    assert dynamic_extents([InputSpec("x", FLOAT, (4, 3))], feed) == {"batch": 4}


def test_an_undeclared_rank_and_a_scalar() -> None:
    assert dynamic_extents([InputSpec("x", FLOAT, None)], {"x": np.zeros((4, 3))}) == {
        "batch": 4,
        "x[1]": 3,
    }
    assert dynamic_extents([InputSpec("x", FLOAT, ())], {"x": np.zeros(())}) == {"batch": 1}


def test_the_batch_lies_where_samples_do() -> None:
    specs = [
        InputSpec("sr", FLOAT, ()),
        InputSpec("state", FLOAT, (2, "N", 4)),
        InputSpec("x", FLOAT, ("time", "N", 3)),
    ]
    feed = {"sr": np.zeros(()), "state": np.zeros((2, 5, 4)), "x": np.zeros((9, 5, 3))}
    assert dynamic_extents(specs, feed) == {"batch": 5, "time": 9}
