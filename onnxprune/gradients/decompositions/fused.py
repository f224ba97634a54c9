"""A fused node as the writer of its body sees it, and bodies: written here, or by the standard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx.defs
import onnx.parser
import onnx_ir as ir

from onnxprune.gradients.step import NoGradient
from onnxprune.model.node_view import NodeView
from onnxprune.model.observe import Observation

CONVOLUTION = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
"""Attributes of a convolution."""


@dataclass(frozen=True)
class Decomposition:
    """What a node is made of.

    Attributes:
        inputs: names of its inputs in the body, by slot.
        outputs: of its outputs.
        nodes: in the order in which they run.
    """

    inputs: Sequence[str]
    outputs: Sequence[str]
    nodes: Sequence[onnx.NodeProto]


@dataclass(frozen=True)
class Fused(NodeView):
    """A node that may be taken apart.

    Attributes:
        seen: a run of its model.
        opset: of the model.
    """

    seen: Observation
    opset: int

    def gives(self, slot: int) -> bool:
        """Whether the optional output `slot` is read."""
        if slot >= len(self.node.outputs):
            return False
        value = self.node.outputs[slot]
        return bool(value.uses()) or value.is_graph_output()

    def attributes(self, *names: str) -> str:
        """Attributes in ONNX text, those that the node has."""
        present = [name for name in names if name in self.node.attributes]
        texts = (f"{name} = {_text(self.attribute(name))}" for name in present)
        return f"<{', '.join(texts)}>" if present else ""

    def require(self, holds: bool, expected: str) -> None:
        """Refuse a form of the node that its body does not cover.

        Raises:
            NoGradient: saying what was expected.
        """
        if not holds:
            raise NoGradient(f"expected {expected}")


def body(inputs: str, outputs: str, text: str) -> Decomposition:
    """A body from ONNX text; names of inputs and outputs by slot, separated by commas."""
    function = onnx.parser.parse_function(
        f'<domain: "fused", opset_import: ["": 18]> f ({inputs}) => ({outputs}) {{ {text} }}'
    )
    return Decomposition(list(function.input), list(function.output), list(function.node))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_text, value))}]"
    return repr(value)


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
    known = {**defaults, **{attribute.name: attribute for attribute in proto.attribute}}
    nodes = [_filled_in(node, known) for node in function.node]
    return Decomposition(list(function.input), list(function.output), nodes)


def _runs_a_graph(node: onnx.NodeProto) -> bool:
    return any(each.type == onnx.AttributeProto.GRAPH for each in node.attribute)


def _function(schema: Any, fused: Fused, node: onnx.NodeProto) -> onnx.FunctionProto | None:
    # the stubs of onnx leave these attributes of a schema out
    function = onnx.FunctionProto()
    if schema.has_context_dependent_function:
        versions = schema.context_dependent_function_opset_versions
        fitting = [version for version in versions if version <= fused.opset]
        if not fitting:
            return None
        text = schema.get_context_dependent_function_with_opset_version(
            max(fitting), node.SerializeToString(), _types(fused)
        )
    elif schema.has_function:
        fitting = [version for version in schema.function_opset_versions if version <= fused.opset]
        if not fitting:
            return None
        text = schema.get_function_with_opset_version(max(fitting))
    else:
        return None
    function.ParseFromString(text)
    return function if function.node else None


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
    for attribute in node.attribute:
        name = attribute.ref_attr_name
        value = known.get(name) if name else attribute
        if value is not None:
            filled.attribute.add().CopyFrom(value)
            filled.attribute[-1].name = attribute.name
    return filled
