"""Putting simpler nodes in the place of fused ones, so that gradients find a rule for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

from onnxprune.coupling.step import node_id
from onnxprune.gradients.decompositions import decomposition_of
from onnxprune.gradients.decompositions.fused import Decomposition
from onnxprune.gradients.step import NoGradient
from onnxprune.model.observe import Observation

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
