"""The same model as older exporters write it."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray


def listed(proto: onnx.ModelProto, ir_version: int = 3) -> onnx.ModelProto:
    """A copy with all initializers among the inputs, as every file of IR version 3 has them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.ir_version = ir_version
    known = {value.name for value in copy.graph.input}
    copy.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in copy.graph.initializer
        if tensor.name not in known
    )
    return copy


def unlisted(proto: onnx.ModelProto, ir_version: int) -> onnx.ModelProto:
    """A copy whose inputs are those a caller has to give."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.ir_version = ir_version
    names = {tensor.name for tensor in copy.graph.initializer}
    true = [value for value in copy.graph.input if value.name not in names]
    del copy.graph.input[:]
    copy.graph.input.extend(true)
    return copy


def constants(proto: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    """Initializers by name."""
    return {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}


def declared_shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs that are initializers too."""
    names = {tensor.name for tensor in proto.graph.initializer}
    return {
        value.name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
        for value in proto.graph.input
        if value.name in names
    }
