"""Some nodes of a graph as a model of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxprune.model.execution import _parsed, _reads
from onnxprune.model.runtime import open_session

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnxruntime as ort

    from onnxprune.model.runtime import Runtime

__all__ = ["node_reads", "open_piece"]


def node_reads(node: ir.Node) -> Iterator[ir.Value]:
    """Values of the node's own graph that it or its subgraphs read."""
    return _reads(node)


def open_piece(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    names: Sequence[str],
    types: dict[str, ir.TypeProtocol | None],
    runtime: Runtime,
) -> tuple[ort.InferenceSession, list[str]]:
    """Open a session of some nodes.

    Args:
        model: the model they are part of.
        nodes: in graph order.
        names: values they make that are wanted.
        types: types of values by name; those of the wanted ones are added.
        runtime: how to run them.

    Returns:
        the session and the names of its inputs.
    """
    read = dict.fromkeys(value for node in nodes for value in node_reads(node))
    made = dict.fromkeys(value for node in nodes for value in node.outputs)
    by_name = {value.name: value for value in made}
    inputs = [value for value in read if value not in made and not value.is_initializer()]
    view = ir.GraphView(
        inputs,
        [by_name[name] for name in names],
        nodes=nodes,
        initializers=[value for value in read if value.is_initializer()],
        opset_imports=model.graph.opset_imports,
        name=model.graph.name,
    )
    graph = view.clone()
    for value in graph.outputs:
        value.shape = None  # what was declared in between may be wrong
    for value in graph.inputs:
        if value.name and value.name in types:
            value.type, value.shape = types[value.name], None
    piece = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
    session = open_session(piece, runtime, arena=False)
    for output in session.get_outputs():
        types[output.name] = _parsed(output.type)
    return session, [value.name or "" for value in inputs]
