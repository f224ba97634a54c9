"""A copy of a model that gradients can be written for: operator set, precision, simpler nodes.

Gradients overflow and vanish in half precision, so the copy computes in single precision:

onnxruntime has no kernels in double precision for several of the operators a gradient needs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx import version_converter

from onnxprune.gradients.decompositions import decomposition_of
from onnxprune.gradients.decompositions.fused import Decomposition
from onnxprune.gradients.step import NoGradient
from onnxprune.model.bodies import node_id
from onnxprune.model.execution import is_heavy
from onnxprune.model.observe import Observation
from onnxprune.model.protobuf import from_proto, to_proto

_OLDEST, _WANTED = 11, 13

_ADDING = 16
_TAKING = {"GatherND", "GatherElements"}
"""Operators whose gradients add up at places that were taken twice, which takes operator set 16."""


def upgraded(model: ir.Model, weights: Collection[str] = ()) -> ir.Model:
    """The same model, or a copy in a later operator set where gradients need that.

    It is 13 for models older than 11, as before Slice takes no computed places and Equal no floats,
    and 16 where something is taken from computed places, or from a table whose gradient is asked
    for. What the converter cannot convert, or is too large for it, stays as it is.

    Args:
        model: changed if it is converted.
        weights: names of initializers whose gradient is asked for.
    """
    opset = model.opset_imports.get("", _WANTED)
    takes = any(_takes(node, weights) for node in model.graph if not node.domain)
    if takes and opset < _ADDING:
        wanted = _ADDING
    elif opset < _OLDEST:
        wanted = _WANTED
    else:
        return model
    if is_heavy(model):
        return model
    try:
        return from_proto(version_converter.convert_version(to_proto(model), wanted))
    except RuntimeError:
        return model


def _takes(node: ir.Node, weights: Collection[str]) -> bool:
    if node.op_type == "Gather" and node.inputs[0] is not None:
        return node.inputs[0].name in weights
    return node.op_type in _TAKING


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
    value.type = deepcopy(value.type)  # a clone shares it with the model
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


_PREFIX = "onnxprune/part"


@dataclass(frozen=True)
class Expansion:
    """What was put in the place of nodes.

    Attributes:
        owners: by id of each new node, the id of the node it is a part of.
        whole: by id of a node that stayed whole though its operator has a body, why.
    """

    owners: dict[str, str] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)


def expand(model: ir.Model, seen: Observation) -> Expansion:
    """Replace the fused nodes of the main graph by what they are made of, in place.

    The outputs keep their names.

    Args:
        model: changed.
        seen: a run of it, for ranks and element types.
    """
    made = Expansion()
    for node in list(model.graph):
        owner = node_id(node)
        try:
            body = decomposition_of(node, seen, model.opset_imports.get("", 1))
        except NoGradient as error:
            made.whole[owner] = str(error)
            continue
        if body is None:
            continue
        parts = _parts(node, body, f"{_PREFIX}/{len(made.owners)}")
        made.owners.update({node_id(part): owner for part in parts})
        model.graph.insert_before(node, parts)
        outputs = {value.name: value for part in parts for value in part.outputs}
        for value in node.outputs:
            name = value.name or ""
            if name in outputs:
                _take_place(model.graph, value, outputs[name])
        model.graph.remove(node, safe=True)
    return made


def _take_place(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    name = old.name
    new.type = old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = f"{_PREFIX}/replaced/{name}"
    new.name = name


def _parts(node: ir.Node, body: Decomposition, prefix: str) -> list[ir.Node]:
    """The nodes of a decomposition, reading what the node reads."""
    values = dict(zip(body.inputs, node.inputs, strict=False))
    names = {
        inner: value.name
        for inner, value in zip(body.outputs, node.outputs, strict=False)
        if value.name and inner
    }
    parts = []
    for number, proto in enumerate(body.nodes):
        part = _part(proto, values)
        for place, (inner, value) in enumerate(zip(proto.output, part.outputs, strict=True)):
            value.name = names.get(inner) or f"{prefix}/{number}/{place}"
            values[inner] = value
        parts.append(part)
    return parts


def _part(proto: onnx.NodeProto, values: Mapping[str, ir.Value | None]) -> ir.Node:
    return ir.Node(
        proto.domain,
        proto.op_type,
        [values.get(name) for name in proto.input],
        [ir.from_proto(attribute) for attribute in proto.attribute],
        num_outputs=len(proto.output),
    )
