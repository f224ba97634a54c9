"""How many batches walks hold: as many as fit, more where activations are narrow and rows short."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from helpers.oracle import ONE_THREAD, parse

from onnxprune.calibration.batches import BatchBudget
from onnxprune.model.load import load
from onnxprune.model.observe import Observation, observe

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
FUNNEL = f"""{HEAD} g (float[N, 8] x) => (float[N, 2] y)
    {{ a = MatMul(x, w)  b = Relu(a)  c = MatMul(b, v)  d = Relu(c)  y = MatMul(d, u) }}"""
WIDE, NARROW = 4 * (100 + 100), 4 * (4 + 4)
"""Bytes of one sample at the Relu in front and at that behind."""


def funnel() -> tuple[ir.Model, Observation]:
    shapes = {"w": (8, 100), "v": (100, 4), "u": (4, 2)}
    weights = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    model = load(parse(FUNNEL, weights)).model
    return model, observe(model, ONE_THREAD, np.random.default_rng(0)).first


def batches(count: int, rows: int = 5) -> list[dict[str, Any]]:
    return [{"x": np.zeros((rows, 8), np.float32)} for _ in range(count)]


def node_of(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.outputs[0].name == name)


def admission(largest: int, count: int = 100, walks: int = 2) -> tuple[ir.Model, BatchBudget]:
    model, observed = funnel()
    return model, BatchBudget(model.graph, observed, batches(count), walks, largest)


def test_at_the_start_as_many_as_fit_at_the_widest_place() -> None:
    """Batches of five, in two walks or in one."""
    assert admission(7 * 2 * 5 * WIDE)[1].at_start == 7
    assert admission(7 * 2 * 5 * WIDE, walks=1)[1].at_start == 14
    assert admission(10**9)[1].at_start == 100
    assert admission(1)[1].at_start == 1


def test_behind_the_widest_place_more_fit() -> None:
    model, one = admission(7 * 2 * 5 * WIDE)
    wanted = {"rows": 35, "unknowns": 10**6, "wanted": 10**9}
    assert one.at(node_of(model, "b"), 7, **wanted) == 7
    assert one.at(node_of(model, "d"), 7, **wanted) == 100
    model, one = admission(20 * 2 * 5 * NARROW)
    assert one.at(node_of(model, "d"), 1, **wanted | {"rows": 5}) == 20


def test_no_more_than_give_ten_rows_for_each_unknown_or_are_of_use() -> None:
    model, one = admission(7 * 2 * 5 * WIDE)
    last = node_of(model, "y")
    assert one.at(last, 7, rows=35, unknowns=6, wanted=10**9) == 12
    assert one.at(last, 7, rows=35, unknowns=5, wanted=10**9) == 7
    assert one.at(last, 7, rows=35, unknowns=1000, wanted=100) == 20


def test_a_few_more_are_not_worth_the_way() -> None:
    model, one = admission(7 * 2 * 5 * WIDE)
    assert one.at(node_of(model, "y"), 40, rows=200, unknowns=29, wanted=10**9) == 40
    assert one.at(node_of(model, "y"), 40, rows=200, unknowns=30, wanted=10**9) == 60
