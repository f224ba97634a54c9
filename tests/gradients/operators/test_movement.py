from __future__ import annotations

import numpy as np
import pytest
from helpers.differences import check_gradient


def integers(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize(
    ("body", "shape", "given"),
    [
        ("y = Reshape(x, s)", (2, 6), (0, 2, 3)),
        ("y = Unsqueeze(x, s)", (2, 4), (1, 3)),
        ("y = Squeeze(x, s)", (2, 1, 4), (1,)),
        ("y = Flatten(x)", (2, 3, 4), ()),
        ("y = Transpose(x)", (2, 3, 4), ()),
        ("y = Transpose<perm = [1, 2, 0]>(x)", (2, 3, 4), ()),
        ("y = Expand(x, s)", (2, 1, 3), (2, 2, 4, 3)),
    ],
)
def test_shapes(body: str, shape: tuple[int, ...], given: tuple[int, ...]) -> None:
    check_gradient(body, shape, {"s": integers(*given)} if given else {})


def test_concat_takes_its_pieces_back() -> None:
    weights = {"w": np.ones((2, 2), np.float32)}
    check_gradient("t = Tanh(x) y = Concat<axis = 1>(x, w, t)", (2, 3), weights)


def test_split_joins_its_parts() -> None:
    check_gradient("a, b = Split<axis = 1>(x, s) y = Mul(a, b)", (2, 4), {"s": integers(2, 2)})


def test_a_part_that_nothing_reads_has_no_gradient() -> None:
    check_gradient("a, y = Split<axis = -1>(x, s)", (2, 4), {"s": integers(3, 1)})


def test_slice_of_leading_axes() -> None:
    weights = {"start": integers(0, 1), "stop": integers(9, 4)}
    check_gradient("y = Slice(x, start, stop)", (2, 5, 3), weights)


def test_slice_backwards_in_steps() -> None:
    weights = {"start": integers(-1, 0), "stop": integers(-7, 2)}
    weights |= {"axes": integers(1, -1), "steps": integers(-2, 1)}
    check_gradient("y = Slice(x, start, stop, axes, steps)", (2, 7, 3), weights)


@pytest.mark.parametrize(
    ("axis", "indices"), [(1, [[0, 4, 4], [-1, 2, 0]]), (1, 2), (2, [1, 1]), (0, [1])]
)
def test_gather_adds_up_what_it_took_twice(axis: int, indices: list[int]) -> None:
    body = f"y = Gather<axis = {axis}>(x, k)"
    check_gradient(body, (2, 5, 3), {"k": np.array(indices, np.int64)})


def test_pad() -> None:
    check_gradient("y = Pad(x, p)", (2, 3), {"p": integers(0, 1, 0, 2)})


def test_pad_of_some_axes() -> None:
    weights = {"p": integers(1, 2), "v": np.array(2, np.float32), "axes": integers(1)}
    check_gradient("y = Pad(x, p, v, axes)", (2, 3), weights)


@pytest.mark.parametrize(
    "given",
    [
        'mode = "nearest"',
        'mode = "linear"',
        'mode = "cubic"',
        'mode = "linear", coordinate_transformation_mode = "align_corners"',
        'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"',
    ],
)
def test_resize(given: str) -> None:
    scales = {"scales": np.array([1, 1, 2, 1.5], np.float32)}
    check_gradient(f"y = Resize<{given}>(x, , scales)", (2, 2, 3, 4), scales)
    sizes = {"sizes": integers(2, 2, 5, 4)}
    check_gradient(f"y = Resize<{given}>(x, , , sizes)", (2, 2, 3, 4), sizes)


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        ("SpaceToDepth<blocksize = 2>", (2, 2, 4, 4)),
        ("DepthToSpace<blocksize = 2>", (2, 8, 2, 3)),
        ('DepthToSpace<blocksize = 2, mode = "CRD">', (2, 8, 2, 3)),
    ],
)
def test_blocks_and_channels(op: str, shape: tuple[int, ...]) -> None:
    check_gradient(f"y = {op}(x)", shape)
