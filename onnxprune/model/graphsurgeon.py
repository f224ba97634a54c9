"""onnx-graphsurgeon graphs in and out.

onnx-graphsurgeon does not know node metadata, dimension denotations or initializers that are also
graph inputs, so those are lost in a graph that comes back; the computation is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from onnxprune.errors import InputError
from onnxprune.model.protobuf import from_proto, to_proto

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def graph_to_proto(graph: gs.Graph) -> onnx.ModelProto:
    """Export a graphsurgeon graph, all weights in memory.

    Raises:
        InputError: when graphsurgeon cannot export it.
    """
    import onnx_graphsurgeon as gs

    try:
        proto: onnx.ModelProto = gs.export_onnx(graph)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"onnx-graphsurgeon cannot export the graph: {reason}") from error
    for tensor in proto.graph.initializer:
        # graphsurgeon keeps the mark of a constant whose values it has already read
        if tensor.data_location == onnx.TensorProto.EXTERNAL and not tensor.external_data:
            tensor.data_location = onnx.TensorProto.DEFAULT
    return proto


def to_ir(graph: gs.Graph) -> ir.Model:
    """Turn a graphsurgeon graph into an onnx-ir model; the graph is not changed.

    Raises:
        InputError: when graphsurgeon cannot export it.
    """
    return from_proto(graph_to_proto(graph))


def from_ir(model: ir.Model) -> gs.Graph:
    """Turn an onnx-ir model into a graphsurgeon graph, all weights in memory."""
    import onnx_graphsurgeon as gs

    in_memory = ir.external_data.load_to_model(model.clone())
    return gs.import_onnx(to_proto(in_memory))
