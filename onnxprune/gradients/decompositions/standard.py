"""Bodies that the ONNX standard gives for its composite operators."""

from __future__ import annotations

from typing import Any

import onnx
import onnx.defs
import onnx_ir as ir

from onnxprune.gradients.decompositions.fused import Decomposition, Fused


def standard_body(fused: Fused) -> Decomposition | None:
    """The body of a node of the standard domain; None where the standard has none.

    Nor of one that runs a subgraph (Range): no gradient goes through that.
    """
    try:
        schema = onnx.defs.get_schema(fused.node.op_type, fused.opset, fused.node.domain)
    except onnx.defs.SchemaError:
        return None
    proto = ir.to_proto(fused.node)
    function = _function(schema, fused, proto)
    if function is None or any(_runs_a_graph(node) for node in function.node):
        return None
    defaults = {
        name: attribute.default_value
        for name, attribute in schema.attributes.items()
        if attribute.default_value.name
    }
    known = {**defaults, **{one.name: one for one in proto.attribute}}
    nodes = [_filled_in(node, known) for node in function.node]
    return Decomposition(list(function.input), list(function.output), nodes)


def _runs_a_graph(node: onnx.NodeProto) -> bool:
    return any(one.type == onnx.AttributeProto.GRAPH for one in node.attribute)


def _function(schema: Any, fused: Fused, node: onnx.NodeProto) -> onnx.FunctionProto | None:
    # the stubs of onnx leave these attributes of a schema out
    found = onnx.FunctionProto()
    if schema.has_context_dependent_function:
        fitting = [
            one for one in schema.context_dependent_function_opset_versions if one <= fused.opset
        ]
        if not fitting:
            return None
        text = schema.get_context_dependent_function_with_opset_version(
            max(fitting), node.SerializeToString(), _types(fused)
        )
    elif schema.has_function:
        fitting = [one for one in schema.function_opset_versions if one <= fused.opset]
        if not fitting:
            return None
        text = schema.get_function_with_opset_version(max(fitting))
    else:
        return None
    found.ParseFromString(text)
    return found if found.node else None


def _types(fused: Fused) -> list[bytes]:
    """Type of every input, as the standard asks for it."""
    types = []
    for value in fused.node.inputs:
        name = (value.name or "") if value is not None else ""
        proto = onnx.TypeProto()
        if name in fused.seen.shapes:
            kind = fused.seen.types.get(name, ir.DataType.FLOAT)
            proto = onnx.helper.make_tensor_type_proto(int(kind), fused.seen.shapes[name])
        types.append(proto.SerializeToString())
    return types


def _filled_in(node: onnx.NodeProto, known: dict[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """A node whose references to attributes are replaced by their values."""
    filled = onnx.NodeProto()
    filled.CopyFrom(node)
    del filled.attribute[:]
    for one in node.attribute:
        given = known.get(one.ref_attr_name) if one.ref_attr_name else one
        if given is not None:
            filled.attribute.add().CopyFrom(given)
            filled.attribute[-1].name = one.name
    return filled
