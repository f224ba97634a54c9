from __future__ import annotations

import numpy as np
import pytest
from helpers.differences import check_gradient


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


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


@pytest.mark.parametrize(("start", "stop"), [(-99, 2), (2, 99), (-3, -1), (0, 5)])
def test_slice_wherever_it_begins_and_ends(start: int, stop: int) -> None:
    weights = {"start": integers(start), "stop": integers(stop), "axes": integers(-1)}
    check_gradient("y = Slice(x, start, stop, axes)", (2, 3, 5), weights)


def test_slice_from_a_computed_place() -> None:
    weights = {"whole": integers(2, 3, 5), "at": integers(2), "stop": integers(9)}
    weights |= {"axes": integers(2), "less": integers(3)}
    body = (
        """s = Shape(x) n = Gather(s, axes) start = Sub(n, less) y = Slice(x, start, stop, axes)"""
    )
    check_gradient(body, (2, 3, 5), weights)


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("v = Transpose(w)", (4, 3)),
        ("v = Reshape(w, s)", (6, 2)),
        ("v = Expand(w, s)", (1, 4)),
        ("v = Concat<axis = 0>(w, half, w)", (1, 4)),
        ("v = Slice(w, two, nine)", (5, 4)),
        ("v = Slice(w, nine, back, zero, back)", (3, 4)),
        ("v = Unsqueeze(w, zero)", (4,)),
        ("v = Squeeze(w, zero)", (1, 3, 4)),
        ("a, v = Split<axis = 0, num_outputs = 2>(w)", (6, 4)),
        ("v = Pad(w, edges)", (1, 4)),
        ("v = Gather(w, places)", (2, 4)),
        ("v = Gather<axis = 1>(w, corners)", (3, 5)),
        ("t = Tile(w, three) v = Identity(t)", (1, 4)),
        ("a = Add(w, w) v = Mul(a, w)", (3, 4)),
    ],
)
def test_a_weight_that_is_moved_before_it_is_used(body: str, shape: tuple[int, ...]) -> None:
    weights = {"w": weight(*shape), "half": weight(1, 4), "s": integers(3, 4)}
    weights |= {"two": integers(2), "nine": integers(9), "back": integers(-1)}
    weights |= {"zero": integers(0), "edges": integers(2, 0, 0, 0), "three": integers(3, 1)}
    weights |= {"places": integers(1, -1, 1), "corners": integers(0, 3, 3, -1)}
    if "back, zero" in body:
        weights["back"] = integers(-9)
        body = body.replace("zero, back)", "zero, down)")
        weights["down"] = integers(-1)
    check_gradient(f"{body} y = Mul(x, v)", (2, 3, 4), weights, tuned="w")


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


@pytest.mark.parametrize("opset", [13, 16])
@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_gather_from_a_table_that_is_tuned(opset: int, kind: type) -> None:
    places = np.array([[0, 4, 4], [-1, 2, 0]], kind)
    body = "e = Gather(w, k) h = Tanh(e) y = Mul(x, h)"
    weights = {"w": weight(5, 4), "k": places}
    check_gradient(body, (2, 3, 4), weights, tuned="w", opset=opset)


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
