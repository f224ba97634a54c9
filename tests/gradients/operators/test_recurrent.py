"""Layers that carry a state from step to step."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.differences import check_gradient

STEPS, BATCH, READ, HIDDEN = 4, 2, 3, 2
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
WAYS = {"forward": 1, "reverse": 1, "bidirectional": 2}


def weights(op: str, directions: int) -> dict[str, np.ndarray]:
    rng, gates = np.random.default_rng(2), GATES[op] * HIDDEN
    shapes = {
        "w": (directions, gates, READ),
        "r": (directions, gates, HIDDEN),
        "b": (directions, 2 * gates),
        "h": (directions, BATCH, HIDDEN),
    }
    return {name: rng.standard_normal(one).astype(np.float32) for name, one in shapes.items()}


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("way", WAYS)
def test_of_every_step(op: str, way: str) -> None:
    given = f'hidden_size = {HIDDEN}, direction = "{way}"'
    body = f"y = {op}<{given}>(x, w, r, b, , h)"
    shape = (STEPS, BATCH, READ)
    check_gradient(body, shape, weights(op, WAYS[way]), tuned="w r b h", by_runtime=True)


@pytest.mark.parametrize("way", WAYS)
def test_a_reset_behind_the_recurrent_product(way: str) -> None:
    given = f'hidden_size = {HIDDEN}, linear_before_reset = 1, direction = "{way}"'
    body, shape = f"y = GRU<{given}>(x, w, r, b)", (STEPS, BATCH, READ)
    check_gradient(body, shape, weights("GRU", WAYS[way]), tuned="w r b", by_runtime=True)


def test_states_of_an_lstm_that_are_tuned() -> None:
    given = weights("LSTM", 1)
    given["c"] = given["h"][..., ::-1].copy()
    body, shape = f"y = LSTM<hidden_size = {HIDDEN}>(x, w, r, b, , h, c)", (STEPS, BATCH, READ)
    check_gradient(body, shape, given, tuned="h c", by_runtime=True)


@pytest.mark.parametrize("op", GATES)
def test_of_the_last_state_alone(op: str) -> None:
    body = f"s, y = {op}<hidden_size = {HIDDEN}>(x, w, r)"
    check_gradient(body, (STEPS, BATCH, READ), weights(op, 1), tuned="w r", by_runtime=True)


def test_of_the_last_cell_state() -> None:
    body = f"s, h1, y = LSTM<hidden_size = {HIDDEN}>(x, w, r, b)"
    check_gradient(body, (STEPS, BATCH, READ), weights("LSTM", 1), by_runtime=True)


@pytest.mark.parametrize("op", GATES)
def test_of_the_first_state(op: str) -> None:
    given = weights(op, 1)
    given["z"] = np.ones((STEPS, BATCH, READ), np.float32)
    body = f"y = {op}<hidden_size = {HIDDEN}>(z, w, r, b, , x)"
    check_gradient(body, (1, BATCH, HIDDEN), given, by_runtime=True)
