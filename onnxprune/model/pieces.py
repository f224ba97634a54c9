"""Some nodes of a graph as a model of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxprune.model.runtime import element_type, open_session

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Set

    import onnxruntime as ort

    from onnxprune.model.runtime import Runtime

__all__ = ["node_reads", "open_piece"]


def node_reads(node: ir.Node) -> Iterator[ir.Value]:
    """Values of the node's own graph that it or its subgraphs read."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        for graph in _graphs(attribute):
            inner = ir.traversal.RecursiveGraphIterator(graph)
            captured = [value for one in inner for value in one.inputs if value is not None]
            for value in (*captured, *_returned(graph)):
                if value.graph is node.graph:
                    yield value


def open_piece(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    names: Sequence[str],
    types: dict[str, ir.TypeProtocol | None],
    runtime: Runtime,
    *,
    shapes: dict[str, ir.Shape | None] | None = None,
    optimise: bool = True,
    brief: bool = False,
) -> tuple[ort.InferenceSession, list[str]]:
    """Open a session of some nodes.

    Args:
        model: the model they are part of.
        nodes: in graph order.
        names: values they make that are wanted.
        types: types of values by name; those of the wanted ones are added.
        runtime: how to run them.
        shapes: the same for shapes, as far as onnxruntime knows them; without them the layout
            optimisation of large pieces takes quadratic time.
        optimise: False runs the nodes exactly as written.
        brief: for a session that runs a few times: weights stay mapped, memory is not planned.

    Returns:
        the session and the names of its inputs.

    Raises:
        RuntimeFailure: when onnxruntime refuses them.
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
    for node in graph:
        for value in node.outputs:
            value.shape = None  # what was declared in between may be wrong
    known = shapes if shapes is not None else {}
    for value in graph.inputs:
        if value.name and value.name in types:
            value.type, value.shape = types[value.name], known.get(value.name)
    piece = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
    session = open_session(
        piece, runtime, optimise=optimise, arena=False, prepack=not brief, plan=not brief
    )
    symbols = {dim for value in model.graph.inputs for dim in _named(value.shape)}
    for output in session.get_outputs():
        types[output.name] = _parsed(output.type)
        tensor = output.type.startswith("tensor")
        known[output.name] = _shape(output.name, output.shape, symbols) if tensor else None
    return session, [value.name or "" for value in inputs]


def _returned(graph: ir.Graph) -> Iterator[ir.Value]:
    """Outputs of a graph and of the graphs within."""
    yield from graph.outputs
    yield from (value for inner in graph.subgraphs() for value in inner.outputs)


def _graphs(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []


def _named(shape: ir.Shape | None) -> list[str]:
    dims = () if shape is None else shape.dims
    return [dim.value for dim in dims if isinstance(dim, ir.SymbolicDim) and dim.value]


def _shape(name: str, inferred: Sequence[Any], symbols: Set[str]) -> ir.Shape | None:
    """The shape onnxruntime inferred.

    Names it made up are those of one session, where another piece means something else by them.
    """
    dims = [
        dim if isinstance(dim, int) or dim in symbols else f"{name}/{axis}"
        for axis, dim in enumerate(inferred)
    ]
    # no dimensions are those of a scalar, or unknown
    return ir.Shape(dims) if dims else None


def _parsed(text: str) -> ir.TypeProtocol | None:
    """Turn onnxruntime's "seq(tensor(float))" into a type; None for maps."""
    kind, _, rest = text.partition("(")
    inner = rest.removesuffix(")")
    if kind == "tensor":
        return ir.TensorType(element_type(text))
    kinds = {"seq": ir.SequenceType, "optional": ir.OptionalType}
    element = _parsed(inner) if kind in kinds else None
    return None if element is None else kinds[kind](element)
