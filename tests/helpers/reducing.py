"""How the tests cut interfaces: a graph in ONNX text, a pass, and what it makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from helpers.oracle import parse
from onnxprune.model.load import load

Weights = Mapping[str, NDArray[np.generic]]


def weights(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, NDArray[np.generic]]:
    """Normally distributed float32 weights of some shapes."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def graph(signature: str, body: str, values: Weights, opset: int = 17) -> onnx.ModelProto:
    """A model of a signature such as "(float[N, 4] x) => (float[N, 3] y)" and nodes."""
    fused = ', "com.microsoft": 1' if "com.microsoft" in body else ""
    text = f'<ir_version: 8, opset_import: ["": {opset}{fused}]> net {signature} {{ {body} }}'
    return parse(text, values)


def changed(pass_: ir.passes.PassBase, proto: onnx.ModelProto) -> onnx.ModelProto:
    """What a pass makes of a model; the checker agrees."""
    result = ir.to_proto(pass_(load(proto).model).model)
    onnx.checker.check_model(result, full_check=True)
    return result


def shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of the initializers by name."""
    return {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}


def declared(proto: onnx.ModelProto) -> dict[str, list[Any]]:
    """Declared shapes of the outputs: numbers, and names of dynamic axes."""
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in proto.graph.output
    }


def metadata(proto: onnx.ModelProto) -> dict[str, str]:
    """Metadata of a model."""
    return {entry.key: entry.value for entry in proto.metadata_props}
