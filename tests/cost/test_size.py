"""Bytes of tensors, and of all that is no constant."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.oracle import parse, random_removal, traced
from helpers.paths import MODELS

from onnxprune.cost.cut_cost import CutCost
from onnxprune.cost.memory import all_constants, rest_bytes, tensor_bytes
from onnxprune.model.load import load
from onnxprune.model.save import model_bytes

NAMES = ["spirals_mlp", "digits_mlp", "digits_resnet", "digits_resnet_bn", "digits_transformer"]


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [("FLOAT", 60), ("FLOAT16", 30), ("DOUBLE", 120), ("BOOL", 15), ("INT4", 8), ("STRING", 0)],
)
def test_bytes_of_a_tensor(kind: str, wanted: int) -> None:
    assert tensor_bytes((3, 5), ir.DataType[kind]) == wanted
    assert tensor_bytes((3, 0), ir.DataType[kind]) == 0


def test_the_rest_does_not_depend_on_the_size_of_the_weights() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 50] x) => (float[N, M] y)
        { k = Constant<value = float[2] {1, 2}>() y = MatMul(x, w) }"""
    small, large = (
        load(parse(text, {"w": np.ones((50, width), np.float32)})).model for width in (60, 100)
    )
    assert rest_bytes(small.graph) == rest_bytes(large.graph) < 200
    assert model_bytes(large) - model_bytes(small) == pytest.approx(50 * 40 * 4, abs=4)
    assert [tensor.nbytes for tensor in all_constants(small.graph)] == [50 * 60 * 4, 8]
    assert small.graph.initializers["w"].const_value is not None
    assert small.graph.initializers["w"].const_value.shape.numpy() == (50, 60), "put back"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(2))
def test_the_forecast_is_the_size_of_the_file_within_a_few_percent(name: str, seed: int) -> None:
    subject = traced(onnx.load(MODELS / f"{name}.onnx"))
    cost = CutCost(subject.model.graph, subject.coupling)
    dead = random_removal(subject, 0.5, seed)
    before, after = model_bytes(subject.model), subject.sliced(dead).ByteSize()
    assert after < 0.95 * before
    assert cost.after(())["size"] == pytest.approx(before, rel=0.01)
    assert cost.after(dead)["size"] == pytest.approx(after, rel=0.025)
