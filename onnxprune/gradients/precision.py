"""A model in single precision: gradients overflow and vanish in half precision.

onnxruntime has no kernels in double precision for several of the operators a gradient needs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx import version_converter

from onnxprune.model.execution import is_heavy
from onnxprune.model.protobuf import from_proto, to_proto

_OLDEST = 11
_WANTED = 13


def upgraded(model: ir.Model) -> ir.Model:
    """The same model, or a copy in operator set 13 where it is older than 11.

    Before 11 Slice takes no computed places and Equal no floats. What the converter cannot convert,
    or is too large for it, stays as it is.
    """
    if model.opset_imports.get("", _WANTED) >= _OLDEST or is_heavy(model):
        return model
    try:
        return from_proto(version_converter.convert_version(to_proto(model), _WANTED))
    except RuntimeError:
        return model


_OTHER = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


def to_single_precision(model: ir.Model) -> bool:
    """Change a model of other floating-point types to float32, in place.

    Inputs and outputs change as well; what the model declares about tensors inside it is dropped.

    Returns:
        whether anything was changed.
    """
    changed = False
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None and value.dtype in _OTHER:
                value.const_value = _Single(value.const_value)
                changed |= _retype(value)
        for value in (*graph.inputs, *graph.outputs):
            changed |= _retype(value)
        for node in graph:
            changed |= _retype_attributes(node)
            for value in node.outputs:
                _retype(value)
    return changed


class _Single(ir.LazyTensor):
    """A tensor of another type, converted when it is read.

    Args:
        tensor: the original.
    """

    def __init__(self, tensor: ir.TensorProtocol) -> None:
        super().__init__(
            lambda: ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name),
            dtype=ir.DataType.FLOAT,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name,
        )


def _retype(value: ir.Value) -> bool:
    if value.dtype not in _OTHER:
        return False
    value.dtype = ir.DataType.FLOAT
    return True


def _retype_attributes(node: ir.Node) -> bool:
    new = list(_single_attributes(node))
    for attribute in new:
        node.attributes[attribute.name] = attribute
    return bool(new)


def _single_attributes(node: ir.Node) -> Iterator[ir.Attr]:
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in _OTHER:
            yield ir.AttrTensor(name, _Single(attribute.value))
        elif name in _TYPE_ATTRIBUTES and attribute.value in set(map(int, _OTHER)):
            yield ir.AttrInt64(name, int(ir.DataType.FLOAT))
