"""Batches for a walk: as many as fit, from all over the set, never none."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from helpers.oracle import ONE_THREAD, parse

from onnxprune.calibration.batches import (
    fitted_part,
    held_out_part,
    load_held_batches,
    spread_batches,
    spread_pairs,
    widest_cut,
)
from onnxprune.calibration.samples import read_samples
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import load
from onnxprune.model.observe import Observation, observe

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
CHAIN = f"""{HEAD} g (float[N, 8] x) => (float[N, 8] y)
    {{ a = MatMul(x, w)  b = Relu(a)  c = MatMul(b, v)  y = Relu(c) }}"""
WIDEST = 4 * (100 + 100)
"""Bytes of one sample: `a` and `b` at once."""


def chain(batch: str = "N") -> tuple[ir.Model, Observation]:
    weights = {"w": np.ones((8, 100), np.float32), "v": np.ones((100, 8), np.float32)}
    model = load(parse(CHAIN.replace("float[N", f"float[{batch}"), weights)).model
    return model, observe(model, ONE_THREAD, np.random.default_rng(0)).first


def taken(source: Any, largest: int, batch: str = "N", inputs: int = 0) -> list[list[int]]:
    """Numbers of the samples in each batch; samples hold their number."""
    model, observed = chain(batch)
    samples = read_samples(source, input_specs(model))
    feeds = load_held_batches(samples, model, observed, largest=largest, inputs=inputs)
    return [feed["x"][:, 0].astype(int).tolist() for feed in feeds]


def numbered(count: int) -> Any:
    return {"x": np.arange(count, dtype=np.float32)[:, None] * np.ones((1, 8), np.float32)}


def room_for(samples: int) -> int:
    return samples * 2 * WIDEST


def test_the_widest_cut() -> None:
    model, observed = chain()
    batch = observed.feed["x"].shape[0]
    assert widest_cut(model.graph, observed.shapes) == batch * WIDEST


def test_a_residual_stream_lies_across_a_branch() -> None:
    body = f"""{HEAD} g (float[2, 8] x) => (float[2, 8] y)
        {{ a = MatMul(x, w)  b = MatMul(a, v)  y = Add(b, x) }}"""
    weights = {"w": np.ones((8, 100), np.float32), "v": np.ones((100, 8), np.float32)}
    model = load(parse(body, weights)).model
    shapes = {"x": (2, 8), "a": (2, 100), "b": (2, 8)}
    assert widest_cut(model.graph, shapes) == 2 * 4 * (8 + 100 + 8)


@pytest.mark.parametrize("count", [4, 7, 8, 33, 256, 1000])
def test_all_samples_where_they_fit_in_at_least_four_batches(count: int) -> None:
    found = taken(numbered(count), room_for(10_000))
    assert [one for batch in found for one in batch] == list(range(count))
    assert len(found) >= 4
    assert max(map(len, found)) <= 64


@pytest.mark.parametrize("room", [1, 3, 10, 64, 100, 300, 999])
def test_no_more_than_fit(room: int) -> None:
    found = taken(numbered(1000), room_for(room))
    count = sum(map(len, found))
    assert room * 0.7 <= count <= room
    assert len(found) >= min(4, room)


def test_samples_sorted_by_class_are_taken_from_all_classes() -> None:
    """100 of 1000: not the first 100."""
    found = [one for batch in taken(numbered(1000), room_for(100)) for one in batch]
    assert len({one // 250 for one in found}) == 4
    assert found == sorted(set(found))


def test_more_are_kept_for_later_than_fit_at_the_widest_place() -> None:
    """Up to four times as many, in an order in which the first ones are from all over the set."""
    batches = taken(numbered(1000), room_for(100), inputs=10**9)
    found = [one for batch in batches for one in batch]
    assert 300 <= len(found) <= 400
    assert len(set(found)) == len(found)
    assert found != sorted(found)
    assert len({one // 250 for one in found[:100]}) == 4


def test_no_more_are_kept_for_later_than_their_inputs_may_take() -> None:
    one = 8 * 4
    assert sum(map(len, taken(numbered(1000), room_for(100), inputs=200 * one))) <= 200
    assert sum(map(len, taken(numbered(1000), room_for(100), inputs=one))) <= 100


@pytest.mark.parametrize("source", [numbered(5), [numbered(5)], [numbered(3), numbered(2)]])
def test_at_least_one_batch_even_if_it_does_not_fit(source: Any) -> None:
    found = taken(source, 1)
    assert len(found) == 1
    assert found[0][0] == 0


def test_whole_feeds_stay_whole() -> None:
    feeds = [numbered(6) for _ in range(5)]
    assert [len(one) for one in taken(feeds, room_for(1000))] == [6] * 5
    assert [len(one) for one in taken(feeds, room_for(13))] == [6, 6]


def test_a_model_that_fixes_its_batch() -> None:
    found = taken(numbered(12), room_for(1000), batch="3")
    assert [len(one) for one in found] == [3, 3, 3, 3]
    assert len(taken(numbered(12), room_for(7), batch="3")) == 2


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("total", [1, 2, 5, 8, 9, 23, 64])
@pytest.mark.parametrize("choose", [spread_batches, spread_pairs])
def test_a_batch_that_was_held_out_stays_held_out(choose: Any, total: int, count: int) -> None:
    numbers = list(range(total))
    chosen = choose(numbers, count)
    assert len(chosen) == min(total, count)
    assert len(set(chosen)) == len(chosen)
    assert set(fitted_part(chosen)) <= set(fitted_part(numbers))
    assert set(held_out_part(chosen)) <= set(held_out_part(numbers))
    assert max(chosen) >= total - 2 * -(-total // count) - 1


def test_which_batches_are_chosen() -> None:
    assert spread_batches(range(10), 4) == [0, 3, 6, 7]
    assert spread_pairs(range(10), 4) == [0, 1, 4, 5]
    assert held_out_part([7]) == [7]
