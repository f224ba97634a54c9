"""Quantisation as a pass, before and after pruning."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from oracle import ONE_THREAD, difference, outputs
from solving import HEAD, floats, images, mlp, parse

from onnxprune.calibration.samples import read_samples
from onnxprune.errors import InputError
from onnxprune.model.inputs import input_specs
from onnxprune.passes.quantize import Quantize
from onnxprune.pipelines.run import run_pipeline

CNN = f"""{HEAD} g (float[N, 8, 6, 6] x) => (float[N, 5] y) {{
    a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w1, b1)  h = Relu(a)
    p = GlobalAveragePool(h)  f = Flatten(p)  y = Gemm(f, w2, b2) }}"""
SIZES = {"w1": (16, 8, 3, 3), "b1": (16,), "w2": (16, 5), "b2": (5,)}
X = images(64, 8, 6, 6)


def cnn() -> onnx.ModelProto:
    return parse(CNN, floats(0, **SIZES))


def quantised(proto: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    return ir.to_proto(Quantize(**options)(ir.from_proto(proto)).model)


def kinds(proto: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in proto.graph.node}


def test_static_puts_8_bit_tensors_around_every_layer() -> None:
    samples = read_samples({"x": X}, input_specs(ir.from_proto(cnn())))
    made = quantised(cnn(), samples=samples)
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds(made)
    types = {one.data_type for one in made.graph.initializer if len(one.dims) > 1}
    assert types == {onnx.TensorProto.INT8}
    assert difference(outputs(cnn(), {"x": X}), outputs(made, {"x": X})) < 0.1


def test_dynamic_needs_no_samples() -> None:
    made = quantised(mlp())
    assert "DynamicQuantizeLinear" in kinds(made)
    x = images(32, 8)
    assert difference(outputs(mlp(), {"x": x}), outputs(made, {"x": x})) < 0.1


def test_refusals() -> None:
    with pytest.raises(InputError, match="static quantisation needs samples"):
        Quantize(mode="static")
    once = quantised(mlp())
    with pytest.raises(InputError, match="quantised already"):
        quantised(once)


def test_nodes_can_stay_as_they_are() -> None:
    proto = mlp()
    for number, node in enumerate(proto.graph.node):
        node.name = f"n{number}"
    made = quantised(proto, exclude=["n0", "n2", "n4"])
    assert "MatMulInteger" not in kinds(made)
    with pytest.raises(InputError, match="'m\\*' matches no node"):
        quantised(proto, exclude=["m*"])


@pytest.mark.parametrize(
    "passes",
    [
        [{"prune": {"target": {"macs": 0.6}}}, {"quantize": {"mode": "static"}}],
        [{"quantize": {"mode": "static"}}, {"prune": {"target": {"macs": 0.6}}}],
        ["sparsify-weights", "quantize"],
    ],
    ids=["prune then quantize", "quantize then prune", "sparsify then quantize"],
)
def test_in_a_pipeline(passes: list[Any]) -> None:
    result = run_pipeline(cnn(), passes, calibration={"x": X}, threads=1, measure_latency=False)
    assert "DequantizeLinear" in kinds(result.model)
    onnx.checker.check_model(result.model)
    macs = result.steps[-1].sizes.macs
    assert macs == result.original.macs or macs <= 0.6 * result.original.macs
    assert np.isfinite(outputs(result.model, {"x": X})["y"]).all()
    assert ONE_THREAD.threads == 1
