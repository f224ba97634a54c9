"""Lossless removal in the bodies of If and Loop: what counts is every run there was."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers.lossless import without
from helpers.oracle import ONE_THREAD, difference, outputs, parse, traced
from numpy.typing import NDArray

import onnxprune
from onnxprune.compensation.lossless.remove import remove_lossless
from onnxprune.surgery.editable_model import EditableModel

IF = """<ir_version: 8, opset_import: ["": 17]> net (float[N, 4] x) => (float[N, 3] y) {
    s = ReduceSum<keepdims=0>(x) f = Greater(s, zero) h = MatMul(x, a) r = Relu(h)
    y = If(f)<then_branch = one () => (float[N, 3] y1) {
        h1 = Gemm(r, k1, c1) r1 = Relu(h1) y1 = Gemm(r1, l1, d1)
    }, else_branch = two () => (float[N, 3] y2) {
        h2 = Gemm(r, k2, c2) r2 = Relu(h2) y2 = Gemm(r2, l2, d2)
    }>
}"""
LOOP = """<ir_version: 8, opset_import: ["": 17]> net (float[N, 4] x) => (float[N, 8] y) {
    h = MatMul(x, a)
    y = Loop(n, , h)<body = step (int64 i, bool c, float[N, 8] s) => (bool d, float[N, 8] t) {
        h1 = Gemm(s, k1, c1) r1 = Relu(h1) t = Gemm(r1, l1, d1) d = Identity(c)
    }>
}"""


def network(text: str, out: int = 3, **changed: NDArray[Any]) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 8), "k1": (8, 6), "c1": (6,), "l1": (6, out), "d1": (out,)}
    shapes |= {"k2": (8, 6), "c2": (6,), "l2": (6, out), "d2": (out,)} if "k2" in text else {}
    weights: dict[str, Any] = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    weights |= changed
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    return parse(text, {**arrays, "zero": np.array(0, np.float32), "n": np.array(3)})


def signed(sign: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Inputs that run one of the branches."""
    x = np.abs(np.random.default_rng(seed).standard_normal((8, 4))) * sign
    return {"x": x.astype(np.float32)}


def weights_of(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.mark.parametrize("signs", [(1,), (-1,), (1, -1)])
def test_no_branch_is_dead_because_it_did_not_run(signs: tuple[int, ...]) -> None:
    model = network(IF)
    samples = [signed(signs[n % len(signs)], n) for n in range(8)]
    result = onnxprune.prune(model, target={"params": 0.95}, calibration=samples)
    before, after = weights_of(model), weights_of(result.model)
    for sign, names in ((1, ("k1", "l1")), (-1, ("k2", "l2"))):
        if sign not in signs:
            assert all(np.array_equal(before[name], after[name]) for name in names)
            given = signed(sign, 99)
            assert difference(outputs(model, given), outputs(result.model, given)) < 1e-5
        assert min(min(after[name].shape) for name in names) >= 3


def test_dead_and_equal_units_of_a_branch_go_by_their_weights() -> None:
    """Unit 2 of the second branch is read with zeros; units 0 and 1 hold the same."""
    k, c, l2 = np.random.default_rng(1).standard_normal((8, 6)), np.ones(6), np.ones((6, 3))
    k[:, 1], l2[2] = k[:, 0], 0
    model = network(IF, k2=k, c2=c, l2=l2)
    found, small = without(model)
    assert found["k2[1]"].dead == [2]
    assert found["k2[1]"].merged == {1: 0} or found["k2[1]"].merged == {0: 1}
    assert weights_of(small)["k2"].shape == (8, 4)
    for sign in (1, -1):
        given = signed(sign, 7)
        assert difference(outputs(model, given), outputs(small, given)) < 1e-5


@pytest.mark.parametrize("sign", [1, -1])
def test_a_constant_unit_of_a_branch_needs_a_run_of_it(sign: int) -> None:
    """Unit 3 of the second branch is its bias; only a run of that branch gives its value."""
    k, c = np.random.default_rng(1).standard_normal((8, 6)), np.ones(6)
    k[:, 3] = 0
    subject = traced(network(IF, k2=k, c2=c))
    full = EditableModel(subject.model.clone(), subject.coupling)
    feeds = [signed(sign)]
    found = remove_lossless(full, subject.groups, ONE_THREAD, feeds).groups
    assert {name: units.constant for name, units in found.items()} == (
        {"k2[1]": [3]} if sign < 0 else {}
    )


def test_a_constant_unit_of_a_loop_goes_into_the_bias() -> None:
    k, c = np.random.default_rng(1).standard_normal((8, 6)), np.full(6, 0.5)
    k[:, 4] = 0
    model = network(LOOP, 8, k1=k / 4, c1=c)
    found, small = without(model, {"x": np.random.default_rng(3).random((8, 4), np.float32)})
    assert 4 in found["k1[1]"].constant
    assert weights_of(small)["k1"].shape[1] < 6
