"""Multiply-accumulates and parameters against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from oracle import Traced, parse, random_removal, traced

from onnxprune.cost.macs import count_parameters, node_costs, node_macs
from onnxprune.cost.shapes import CutCost

MODELS = Path(__file__).parents[2] / "models"


def macs(node: str, weights: dict[str, tuple[int, ...]], inputs: str, output: str) -> int:
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g ({inputs}) => ({output} y) {{ y = {node} }}"""
    values: dict[str, NDArray[Any]] = {
        name: np.ones(shape, np.float32) for name, shape in weights.items()
    }
    subject = traced(parse(text, values))
    shapes = subject.coupling.facts.first.shapes
    return node_macs(next(iter(subject.model.graph)), shapes.__getitem__)


IMAGE = "float[2, 6, 8, 8] x"
MAP = "float[a, b, c, d]"


@pytest.mark.parametrize(
    ("node", "weight", "wanted"),
    [
        ("Conv(x, w)", (4, 6, 3, 3), 2 * 4 * 6 * 6 * (6 * 9)),
        ("Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w)", (4, 6, 3, 3), 2 * 4 * 4 * 4 * 54),
        ("Conv<dilations = [2, 2]>(x, w)", (4, 6, 3, 3), 2 * 4 * 4 * 4 * 54),
        ("Conv<group = 2>(x, w)", (4, 3, 1, 1), 2 * 4 * 8 * 8 * 3),
        ("Conv<group = 6>(x, w)", (6, 1, 3, 3), 2 * 6 * 6 * 6 * 9),
        ("ConvTranspose(x, w)", (6, 4, 3, 3), 2 * 6 * 8 * 8 * (4 * 9)),
        ("ConvTranspose<strides = [2, 2]>(x, w)", (6, 4, 2, 2), 2 * 6 * 8 * 8 * (4 * 4)),
        ("ConvTranspose<group = 2>(x, w)", (6, 2, 1, 1), 2 * 6 * 8 * 8 * 2),
        ("MatMul(x, w)", (8, 5), 2 * 6 * 8 * 5 * 8),
        ("MatMul(w, x)", (5, 8), 2 * 6 * 5 * 8 * 8),
        ('Einsum<equation = "abcd,de->abce">(x, w)', (8, 5), 2 * 6 * 8 * 8 * 5),
        ('Einsum<equation = "abcd,bk->acdk">(x, w)', (6, 3), 2 * 6 * 8 * 8 * 3),
    ],
)
def test_macs_of_a_node(node: str, weight: tuple[int, ...], wanted: int) -> None:
    assert macs(node, {"w": weight}, IMAGE, MAP) == wanted


@pytest.mark.parametrize(
    ("node", "shape", "weight"),
    [
        ("Gemm(x, w)", "7, 3", (3, 5)),
        ("Gemm<transA = 1>(x, w)", "3, 7", (3, 5)),
        ("Gemm<transB = 1>(x, w)", "7, 3", (5, 3)),
        ("Gemm<transA = 1, transB = 1>(x, w)", "3, 7", (5, 3)),
    ],
)
def test_macs_of_gemm(node: str, shape: str, weight: tuple[int, ...]) -> None:
    assert macs(node, {"w": weight}, f"float[{shape}] x", "float[a, b]") == 7 * 5 * 3


def test_products_with_a_vector() -> None:
    assert macs("MatMul(x, w)", {"w": (8,)}, "float[4, 8] x", "float[a]") == 4 * 8
    assert macs("MatMul(w, x)", {"w": (4,)}, "float[4, 8] x", "float[a]") == 8 * 4


def test_everything_else_is_free() -> None:
    assert macs("Mul(x, w)", {"w": (8,)}, IMAGE, MAP) == 0
    custom = ir.Node("their.domain", "Conv", [ir.Value(name="x"), ir.Value(name="w")])
    assert node_macs(custom, {"x": (1, 2, 3), "w": (1, 2, 3)}.__getitem__) == 0


def test_a_node_of_unknown_shape_counts_nothing() -> None:
    node = ir.Node("", "MatMul", [ir.Value(name="x"), ir.Value(name="w")])
    assert node_macs(node, {"x": (2, 3)}.__getitem__) == 0


def shapes_of(subject: Traced) -> dict[str, tuple[int, ...]]:
    return dict(subject.coupling.facts.first.shapes)


SHARED = """<ir_version: 8, opset_import: ["": 17]>
    g (float[2, 4] x) => (float[2, 4] y)
    { a = MatMul(x, w)
      b = Add(a, b1)
      c = Relu(b)
      y = MatMul(c, w) }"""


def test_a_shared_weight_is_multiplied_twice_and_stored_once() -> None:
    subject = traced(
        parse(SHARED, {"w": np.ones((4, 4), np.float32), "b1": np.ones(4, np.float32)})
    )
    costs = node_costs(subject.model.graph, shapes_of(subject).__getitem__, ["w", "b1"])
    assert [(c.op_type, c.macs, c.parameters) for c in costs] == [
        ("MatMul", 32, 16),
        ("Add", 0, 4),
        ("MatMul", 32, 0),
    ]
    assert count_parameters(shapes_of(subject).__getitem__, ["w", "b1"]) == 20


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
    assert found == {"params": parameters, "macs": batch_macs}


@pytest.mark.parametrize(
    "name", ["digits_mlp", "digits_resnet", "digits_resnet_bn", "digits_transformer"]
)
@pytest.mark.parametrize("seed", range(2))
def test_the_forecast_of_a_cut_is_the_cost_of_its_result(name: str, seed: int) -> None:
    subject = traced(onnx.load(MODELS / f"{name}.onnx"))
    dead = random_removal(subject, 0.5, seed)
    small = traced(subject.sliced(dead))
    cost = CutCost(subject.model.graph, subject.coupling)
    forecast, real = cost.after(dead), CutCost(small.model.graph, small.coupling).after(())
    assert forecast == real
    assert all(forecast[kind] < cost.after(())[kind] for kind in forecast)


def test_what_one_group_saves_is_what_the_model_saves_by_it() -> None:
    subject = traced(onnx.load(MODELS / "digits_resnet_bn.onnx"))
    cost = CutCost(subject.model.graph, subject.coupling)
    full = cost.after(())
    for group in subject.groups:
        dead = group.units[: group.size // 2].tolist()
        after = cost.after(dead)
        assert cost.saved_by(group, dead) == {kind: full[kind] - after[kind] for kind in full}
