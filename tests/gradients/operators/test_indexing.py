from __future__ import annotations

import numpy as np
import pytest
from helpers.differences import check_gradient


def integers(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def test_gather_nd_adds_up_what_it_took_twice() -> None:
    places = {"k": np.array([[0, 1], [1, 4], [0, 1]], np.int64)}
    check_gradient("y = GatherND(x, k)", (2, 5, 3), places)


def test_gather_elements_adds_up_what_it_took_twice() -> None:
    places = {"k": np.array([[0, 0, 4], [2, 1, 2]], np.int64)}
    check_gradient("y = GatherElements<axis = 1>(x, k)", (2, 5), places)


@pytest.mark.parametrize("reduction", ["none", "add"])
@pytest.mark.parametrize("operands", ["x, k, w", "w, k, x"])
def test_scatter_nd(reduction: str, operands: str) -> None:
    mine, other = ((4, 3), (2, 3)) if operands == "x, k, w" else ((2, 3), (4, 3))
    weights = {"k": np.array([[3], [1]], np.int64), "w": weight(*other)}
    body = f'y = ScatterND<reduction = "{reduction}">({operands})'
    check_gradient(body, mine, weights)


@pytest.mark.parametrize("operands", ["x, k, w", "w, k, x"])
def test_scatter_elements(operands: str) -> None:
    mine, other = ((2, 5), (2, 2)) if operands == "x, k, w" else ((2, 2), (2, 5))
    weights = {"k": np.array([[0, 3], [4, 2]], np.int64), "w": weight(*other)}
    check_gradient(f"y = ScatterElements<axis = 1>({operands})", mine, weights)


@pytest.mark.parametrize("reduction", ["max", "min"])
@pytest.mark.parametrize("operands", ["x, k, w", "w, k, x"])
def test_entries_that_compete_share_the_gradient(reduction: str, operands: str) -> None:
    mine, other = ((4, 3), (5, 3)) if operands == "x, k, w" else ((5, 3), (4, 3))
    places = np.array([[3], [1], [1], [0], [3]], np.int64)
    weights = {"w": 0.3 * weight(*other)}
    body = f'y = ScatterND<reduction = "{reduction}">({operands})'
    check_gradient(body, mine, weights | {"k": places}, opset=18)
    weights["k"] = np.repeat(places, 3, axis=1)
    body = f'y = ScatterElements<axis = 0, reduction = "{reduction}">({operands})'
    check_gradient(body, mine, weights, opset=18)


@pytest.mark.parametrize("largest", [0, 1])
def test_the_largest_entries(largest: int) -> None:
    body = f"t, i = TopK<axis = 1, largest = {largest}>(x, k) y = Mul(t, t)"
    check_gradient(body, (2, 5, 3), {"k": integers(2)})


def test_copies_add_up() -> None:
    check_gradient("y = Tile(x, k)", (2, 1, 3), {"k": integers(1, 4, 2)})


@pytest.mark.parametrize("given", ["", "<reverse = 1>", "<exclusive = 1>"])
def test_running_sums(given: str) -> None:
    check_gradient(f"y = CumSum{given}(x, axis)", (2, 5), {"axis": np.array(1)})


@pytest.mark.parametrize("upper", [0, 1])
def test_a_triangle(upper: int) -> None:
    check_gradient(f"y = Trilu<upper = {upper}>(x)", (2, 4, 4))


def test_sequences_turned_around() -> None:
    body = "y = ReverseSequence<batch_axis = 0, time_axis = 1>(x, lengths)"
    check_gradient(body, (2, 5, 3), {"lengths": integers(3, 5)}, by_runtime=True)


@pytest.mark.parametrize("mode", ["reflect", "edge", "constant"])
def test_padding_that_repeats_or_is_computed(mode: str) -> None:
    weights = {"half": np.array([0, 1, 0, 0], np.int64), "other": np.array([0, 0, 0, 2], np.int64)}
    body = f'p = Add(half, other) y = Pad<mode = "{mode}">(x, p)'
    check_gradient(body, (2, 4), weights)


def test_padding_that_cuts_off() -> None:
    check_gradient("y = Pad(x, p)", (2, 4), {"p": integers(0, -1, 0, 2)}, by_runtime=True)
