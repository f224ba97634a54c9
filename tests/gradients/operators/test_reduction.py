from __future__ import annotations

import numpy as np
import pytest
from helpers.differences import check_gradient

REDUCTIONS = ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2"]


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("keep", [0, 1])
def test_over_some_axes(op: str, keep: int) -> None:
    body = f"y = {op}<keepdims = {keep}>(x, axes)"
    check_gradient(body, (2, 3, 4), {"axes": np.array([-1, 1])})


@pytest.mark.parametrize("op", REDUCTIONS)
def test_over_all_axes(op: str) -> None:
    check_gradient(f"y = {op}(x)", (2, 3))


@pytest.mark.parametrize("keep", [0, 1])
def test_axes_as_attribute(keep: int) -> None:
    check_gradient(f"y = ReduceMean<axes = [1], keepdims = {keep}>(x)", (2, 3, 4), opset=12)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
def test_over_the_whole_map(op: str) -> None:
    check_gradient(f"y = {op}(x)", (2, 3, 4, 5))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "given",
    [
        "strides = [1, 1]",
        "strides = [2, 2]",
        "strides = [2, 1], pads = [1, 0, 1, 1]",
        "strides = [2, 2], ceil_mode = 1",
        'auto_pad = "SAME_UPPER", strides = [2, 2]',
    ],
)
def test_over_windows(op: str, given: str) -> None:
    check_gradient(f"y = {op}<kernel_shape = [3, 2], {given}>(x)", (2, 3, 6, 5))


def test_an_average_that_counts_padding() -> None:
    given = "kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1"
    check_gradient(f"y = AveragePool<{given}>(x)", (2, 3, 6, 5))


def test_a_maximum_of_dilated_windows() -> None:
    check_gradient("y = MaxPool<kernel_shape = [3], dilations = [2]>(x)", (2, 3, 8))
