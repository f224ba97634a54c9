"""The forecast of a cut is what its result costs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.oracle import parse, random_removal, traced
from helpers.paths import MODELS

from onnxprune.cost.cut_cost import CutCost
from onnxprune.importance.removal_order import removal_order

NAMES = ["digits_mlp", "digits_resnet", "digits_resnet_bn", "digits_transformer"]
EXACT = ("params", "macs", "activations")


@pytest.mark.parametrize(
    ("name", "parameters", "batch_macs"),
    [
        ("spirals_mlp", 2 * 50 + 50 + 50 * 50 + 50 + 50 * 2 + 2, 2 * (100 + 2500 + 100)),
        ("digits_mlp", 64 * 64 + 64 + 64 * 64 + 64 + 640 + 10, 2 * (4096 + 4096 + 640)),
    ],
)
def test_the_models_of_the_repository(name: str, parameters: int, batch_macs: int) -> None:
    subject = traced(onnx.load(MODELS / f"{name}.onnx"))
    found = CutCost(subject.model.graph, subject.coupling).after(())
    assert (found["params"], found["macs"]) == (parameters, batch_macs)
    assert found["memory"] == found["weights"] + found["activations"]
    assert set(found) == {"params", "macs", "weights", "size", "activations", "memory"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(2))
def test_the_forecast_of_a_cut_is_the_cost_of_its_result(name: str, seed: int) -> None:
    subject = traced(onnx.load(MODELS / f"{name}.onnx"))
    dead = random_removal(subject, 0.5, seed)
    small = traced(subject.sliced(dead))
    cost = CutCost(subject.model.graph, subject.coupling)
    forecast, real = cost.after(dead), CutCost(small.model.graph, small.coupling).after(())
    assert {kind: forecast[kind] for kind in EXACT} == {kind: real[kind] for kind in EXACT}
    assert all(forecast[kind] < cost.after(())[kind] for kind in forecast)


@pytest.mark.parametrize("name", NAMES)
def test_what_one_group_saves_is_what_the_model_saves_by_it(name: str) -> None:
    subject = traced(onnx.load(MODELS / f"{name}.onnx"))
    cost = CutCost(subject.model.graph, subject.coupling)
    full = cost.after(())
    for group in subject.groups:
        steps = removal_order(group, np.arange(group.size, dtype=np.float64), 0.5)
        dead = [one for step in steps for one in step.units]
        after, saved = cost.after(dead), cost.saved_by(group, dead)
        for kind in ("params", "macs", "weights", "size"):
            assert saved[kind] == full[kind] - after[kind] > 0


def test_arrays_of_classes_are_classes() -> None:
    subject = traced(onnx.load(MODELS / "digits_resnet.onnx"))
    cost = CutCost(subject.model.graph, subject.coupling)
    dead = random_removal(subject, 0.5, 0)
    assert dict(cost.after(np.array(dead, np.int32))) == dict(cost.after(dead))


def test_a_kind_of_ones_own_is_summed_over_the_nodes() -> None:
    """Elements of the outputs of Relu: the cost of a node may depend on any of its shapes."""
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[2, 4] x) => (float[2, 3] y)
        { a = MatMul(x, w) b = Relu(a) c = MatMul(b, u) d = Relu(c) y = MatMul(d, v) }"""
    shapes = {"w": (4, 8), "u": (8, 6), "v": (6, 3)}
    subject = traced(parse(text, {n: np.ones(s, np.float32) for n, s in shapes.items()}))

    def rectified(node, shape_of):
        return float(np.prod(shape_of(node.outputs[0].name))) * (node.op_type == "Relu")

    cost = CutCost(subject.model.graph, subject.coupling, {"rectified": rectified})
    assert cost.after(())["rectified"] == 2 * (8 + 6)
    group = next(one for one in subject.groups if one.name == "w[1]")
    dead = group.units[:3].tolist()
    assert cost.after(dead)["rectified"] == 2 * (5 + 6)
    assert cost.touched(group, dead)["rectified"] == 2 * 5


def test_constants_in_a_closed_body_stay() -> None:
    """A loop whose state grows is not looked into."""
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[2, 4] x) => (float[M, 4] y)
        { h = MatMul(x, w)
          y = Loop(n, flag, h) <body = b (int64 i, bool c, float[K, 4] s) =>
            (bool d, float[L, 4] t)
            { k = Constant<value = float[4] {1, 2, 3, 4}>() u = Add(s, k)
              j = Constant<value = float[1] {5}>() v = Mul(s, j)
              t = Concat<axis = 0>(u, v) d = Identity(c) }> }"""
    values = {"w": np.ones((4, 4), np.float32), "flag": np.array(True), "n": np.array(1)}
    subject = traced(parse(text, values))
    assert subject.coupling.closed, "otherwise this tests nothing"
    cost = CutCost(subject.model.graph, subject.coupling).after(())
    assert (cost["params"], cost["weights"]) == (16 + 4 + 1, 64 + 1 + 8 + 16 + 4)
