"""Redundancy: what a stronger unit does too goes first, and of equal units one stays."""

from __future__ import annotations

import time

import numpy as np
import pytest
from helpers.oracle import parse, traced
from numpy.typing import NDArray

from onnxprune.coupling.group_view import GroupView
from onnxprune.importance.criterion import Criterion
from onnxprune.importance.redundancy import Redundancy
from onnxprune.model.observe import ConstantValues

MLP = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 9] x) => (float[N, 4] y)
    { a = MatMul(x, w1) b = Add(a, b1) h = Relu(b) y = MatMul(h, w2) }"""

Weights = dict[str, NDArray[np.float32]]


def weights(**shapes: tuple[int, ...]) -> Weights:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(one).astype(np.float32) for name, one in shapes.items()}


def mlp(width: int = 6) -> Weights:
    return weights(w1=(9, width), b1=(width,), w2=(width, 4))


def scores(text: str, w: Weights) -> NDArray[np.float64]:
    subject = traced(parse(text, w))
    (group,) = subject.groups
    constants = ConstantValues(subject.model, subject.coupling.facts.constants)
    return Redundancy().score(GroupView(group, constants, {}), np.random.default_rng(0))


def test_it_is_a_criterion() -> None:
    assert isinstance(Redundancy(), Criterion)


def test_the_score_is_the_formula_of_the_docstring() -> None:
    w = mlp()
    rows = w["w1"].T / np.linalg.norm(w["w1"], axis=0)[:, np.newaxis]
    read = np.linalg.norm(w["w2"], axis=1)
    stronger = read[np.newaxis] > read[:, np.newaxis]
    nearest = np.max(np.where(stronger, rows @ rows.T, 0), axis=1)
    np.testing.assert_allclose(scores(MLP, w), read * (1 - nearest), rtol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_of_two_alike_the_one_that_is_read_less_goes_first(factor: float) -> None:
    w = mlp()
    w["w1"][:, 4] = factor * w["w1"][:, 1]
    w["w2"][1], w["w2"][4] = 2, 1
    found = scores(MLP, w)
    assert found.argmin() == 4
    assert found[4] < 1e-5 < found[1]


def test_equal_units_do_not_go_together() -> None:
    w = mlp()
    w["w1"][:, [1, 3, 5]] = w["w1"][:, [0]]
    w["w2"][[0, 1, 3, 5]] = 1
    assert (scores(MLP, w)[[0, 1, 3, 5]] < 1e-5).sum() == 3


def test_opposite_units_have_nothing_in_common() -> None:
    w = mlp(2)
    w["w1"][:, 1] = -w["w1"][:, 0]
    np.testing.assert_allclose(scores(MLP, w), np.linalg.norm(w["w2"], axis=1), rtol=1e-5)


def test_units_made_by_zeros_go_first() -> None:
    w = mlp()
    w["w1"][:, 2] = 0
    assert scores(MLP, w)[2] == 0


def test_a_unit_of_a_residual_stream_is_alike_if_all_that_make_it_are() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3, 5] x) => (float[N, 2, 5] y)
        { a = Conv(x, w1) b = Conv(x, w2) s = Add(a, b) h = Relu(s) y = Conv(h, w3) }"""
    w = weights(w1=(6, 3, 1), w2=(6, 3, 1), w3=(2, 6, 1))
    w["w1"][4] = w["w1"][1]
    w["w3"][:, 1], w["w3"][:, 4] = 2, 1
    assert scores(text, w)[4] > 1e-2
    w["w2"][4] = w["w2"][1]
    assert scores(text, w)[4] < 1e-5


def test_thousands_of_units_take_no_time() -> None:
    rng = np.random.default_rng(0)
    w = {"w1": rng.standard_normal((9, 4096)), "b1": np.zeros(4096)}
    w["w2"] = rng.standard_normal((4096, 4))
    started = time.perf_counter()
    found = scores(MLP, {name: one.astype(np.float32) for name, one in w.items()})
    assert len(found) == 4096
    assert time.perf_counter() - started < 10
