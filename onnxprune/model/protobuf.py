"""Between protobuf messages, their bytes and onnx-ir models.

onnx-ir knows no map types, which scikit-learn models return; such a type passes through as bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError

from onnxprune.model.tensors import initializers, swapped

# Marks a graph input or output whose type onnx-ir cannot hold. Copied by clone(), never serialised.
_TYPE = "onnxprune.type"

LARGEST_MESSAGE = 2**31 - 1
"""Bytes a protobuf message can have."""

_SMALL_TENSOR = 1024


def parse(data: bytes) -> onnx.ModelProto:
    """Read a model.

    Raises:
        ValueError: when the bytes are no protobuf message of this kind.
    """
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    return proto


def serialise(proto: onnx.ModelProto) -> bytes:
    """Write a model; equal messages give equal bytes.

    Raises:
        ValueError: when the message is too large.
    """
    try:
        data: bytes = proto.SerializeToString(deterministic=True)
    except EncodeError as error:
        raise ValueError(str(error)) from error
    return data


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """Deserialise a model; the message is not changed."""
    interface = (*proto.graph.input, *proto.graph.output)
    foreign = {info.name: info.type for info in interface if has_map(info.type)}
    if not foreign:
        return _with_read_tensors(ir.from_proto(proto))
    stripped = onnx.ModelProto()
    stripped.CopyFrom(proto)
    for info in (*stripped.graph.input, *stripped.graph.output):
        if info.name in foreign:
            info.ClearField("type")
    kept = [info for info in proto.graph.value_info if not has_map(info.type)]
    del stripped.graph.value_info[:]
    stripped.graph.value_info.extend(kept)
    model = ir.from_proto(stripped)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name in foreign:
            value.meta[_TYPE] = foreign[value.name].SerializeToString()
    return _with_read_tensors(model)


class _ReadTensor(ir.TensorProtoTensor):
    """A tensor of a message that knows its shape and type without asking the message each time."""

    __slots__ = ("_read_bytes", "_read_dtype", "_read_shape")

    def __init__(self, proto: onnx.TensorProto) -> None:
        super().__init__(proto)
        self._read_shape: ir.Shape = super().shape
        self._read_dtype: ir.DataType = super().dtype
        self._read_bytes: int = super().nbytes

    @property
    def shape(self) -> ir.Shape:  # type: ignore[override]
        return self._read_shape

    @property
    def dtype(self) -> ir.DataType:  # type: ignore[override]
        return self._read_dtype

    @property
    def nbytes(self) -> int:
        return self._read_bytes


def _with_read_tensors(model: ir.Model) -> ir.Model:
    for value in initializers(model):
        if type(value.const_value) is ir.TensorProtoTensor:
            value.const_value = _ReadTensor(value.const_value.raw)
    return model


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Serialise a model."""
    proto = ir.to_proto(model)
    values = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    for info in (*proto.graph.input, *proto.graph.output):
        value = values.get(info.name)
        if value is not None and _TYPE in value.meta:
            info.type.ParseFromString(value.meta[_TYPE])
    for tensor in proto.graph.initializer:
        if tensor.metadata_props:
            _drop_repeated(tensor)
    return proto


def write_part(
    proto: onnx.GraphProto,
    nodes: Sequence[ir.Node],
    read: Sequence[ir.Value],
    made: Sequence[ir.Value],
) -> None:
    """Serialise some nodes of a graph as a graph of their own, without copying them first.

    Nothing is declared of the values in between, and no shape of the outputs.

    Args:
        proto: an empty graph.
        nodes: in graph order.
        read: values that the nodes read and do not make; initializers among them carry their
            tensors, the others become inputs.
        made: values that the nodes make and that become outputs.
    """
    for value in read:
        if not value.is_initializer():
            _declare(proto.input.add(), value, value.shape)
        elif value.const_value is not None:
            tensor = proto.initializer.add()
            ir.serde.serialize_tensor_into(tensor, value.const_value)
            tensor.name = value.name or ""
    for node in nodes:
        ir.serde.serialize_node_into(proto.node.add(), node)
    for value in made:
        _declare(proto.output.add(), value, None)


def declare(
    info: onnx.ValueInfoProto, kind: ir.TypeProtocol | None, shape: ir.Shape | None
) -> None:
    """Say what is known of a value, and nothing else: its type, and its shape if it has a type."""
    info.ClearField("type")
    if kind is not None:
        ir.serde.serialize_type_into(info.type, kind)
        if shape is not None:
            ir.serde.serialize_shape_into(info.type, shape)


def _declare(info: onnx.ValueInfoProto, value: ir.Value, shape: ir.Shape | None) -> None:
    info.name = value.name or ""
    declare(info, value.type, shape)
    if _TYPE in value.meta:
        info.type.ParseFromString(value.meta[_TYPE])


def skeleton(model: ir.Model, *, bodies: bool = True) -> onnx.ModelProto:
    """Serialise a model without the data of its larger tensors.

    Args:
        model: unchanged.
        bodies: leave the data of tensors in bodies out as well.
    """
    values = list(initializers(model) if bodies else model.graph.initializers.values())
    tensors = [value.const_value for value in values]
    pairs = zip(values, tensors, strict=True)
    large = [value for value, tensor in pairs if tensor is not None and is_large(tensor)]
    with swapped({value: hollow(value) for value in large}):
        return to_proto(model)


def hollow(value: ir.Value) -> ir.ExternalTensor:
    """What stands for an initializer in a message without its data."""
    tensor = value.const_value
    assert tensor is not None
    return ir.ExternalTensor(
        "",
        0,
        tensor.nbytes,
        ir.DataType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        name=value.name or "",
    )


def is_large(tensor: ir.TensorProtocol) -> bool:
    """Say whether a tensor is inline and too large to be handled together with the graph."""
    return (
        not isinstance(tensor, ir.ExternalTensor)
        and tensor.dtype != ir.DataType.STRING
        and tensor.nbytes > _SMALL_TENSOR
    )


def _drop_repeated(tensor: onnx.TensorProto) -> None:
    """Undo that onnx-ir writes the metadata of a tensor it copies a second time."""
    entries = {entry.key: entry.value for entry in tensor.metadata_props}
    del tensor.metadata_props[:]
    for key, value in sorted(entries.items()):
        tensor.metadata_props.add(key=key, value=value)


def has_map(type_proto: onnx.TypeProto) -> bool:
    """Say whether a type is a map, or holds one."""
    kind = type_proto.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        return has_map(getattr(type_proto, kind).elem_type)
    return bool(kind == "map_type")
