"""Bodies of If, Loop and Scan: how they are connected to their nodes, and what they read.

A body is known by a key, the id of its node and the name of the attribute it is in; that of the
main graph is the empty text. Keys stay the same in copies of a model.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Body:
    """How the body of a Loop or Scan is connected to its node, by slots.

    Attributes:
        graph: the body.
        states: (input slot, formal input, body output, output slot) of each carried state.
        slices: (input slot, formal input, axis) of each tensor a Scan walks along.
        stacked: (body output, output slot, axis) of what is collected over the iterations.
        alone: formal inputs without a tensor outside: iteration number and condition of a Loop.
    """

    graph: ir.Graph
    states: tuple[tuple[int, int, int, int], ...]
    slices: tuple[tuple[int, int, int], ...]
    stacked: tuple[tuple[int, int, int], ...]
    alone: tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where a body is.

    Attributes:
        node: the node it belongs to.
        attribute: the attribute it is in.
        graph: the body.
        around: key of the graph the node is in.
    """

    node: ir.Node
    attribute: str
    graph: ir.Graph
    around: str

    def __str__(self) -> str:
        name = self.node.name or node_id(self.node)
        return f"the {self.attribute} of {self.node.op_type} {name}"


def node_id(node: ir.Node) -> str:
    """Name a node by its first output: unique, and stable when nodes are added around it."""
    return next((value.name for value in node.outputs if value.name), node.name or "") or ""


def body_of(node: ir.Node) -> Body:
    """Connections of a Loop, or of a Scan from opset 9 on."""
    graph = node.attributes["body"].as_graph()
    if node.op_type == "Loop":
        states = len(node.inputs) - 2
        return Body(
            graph,
            tuple((2 + i, 2 + i, 1 + i, i) for i in range(states)),
            (),
            tuple((1 + i, i, 0) for i in range(states, len(graph.outputs) - 1)),
            (0, 1),
        )
    states = len(node.inputs) - node.attributes["num_scan_inputs"].as_int()
    given, made = (
        node.attributes[name].as_ints() if name in node.attributes else [0] * len(node.inputs)
        for name in ("scan_input_axes", "scan_output_axes")
    )
    made = [*made, *[0] * len(graph.outputs)]
    return Body(
        graph,
        tuple((i, i, i, i) for i in range(states)),
        tuple((i, i, given[i - states]) for i in range(states, len(node.inputs))),
        tuple((i, i, made[i - states]) for i in range(states, len(graph.outputs))),
        (),
    )


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """Graphs in the attributes of a node."""
    return [graph for _, graph in _named_subgraphs(node)] if node.attributes else []


def places(graph: ir.Graph, closed: Container[str] = ()) -> dict[str, Place]:
    """All bodies in a graph by key, each behind those within it.

    Args:
        graph: the main graph.
        closed: ids of nodes whose bodies are left out.
    """
    return dict(_places(graph, "", closed))


def nodes_within(graph: ir.Graph, closed: Container[str] = ()) -> Iterator[ir.Node]:
    """Nodes of a graph and of all bodies in it, each behind those of its own bodies.

    Args:
        graph: the graph.
        closed: ids of nodes whose bodies are left out.
    """
    for node in graph:
        if subgraphs(node) and node_id(node) not in closed:
            for body in subgraphs(node):
                yield from nodes_within(body, closed)
        yield node


def captured(node: ir.Node) -> Iterator[str]:
    """Names that the subgraphs of a node read, those from outside among them."""
    for graph in subgraphs(node):
        for inner in graph:
            yield from (value.name for value in inner.inputs if value and value.name)
            yield from captured(inner)
        yield from (value.name for value in graph.outputs if value.name)


def read_from_outside(graph: ir.Graph) -> dict[str, ir.Value]:
    """Values that a body, bodies inside it included, reads from around it."""
    own = {id(value) for value in (*graph.inputs, *graph.initializers.values())}
    own |= {id(value) for node in graph for value in node.outputs}
    read = [value for node in graph for value in node.inputs if value is not None]
    read += list(graph.outputs)
    for node in graph:
        for inner in subgraphs(node):
            read += read_from_outside(inner).values()
    return {value.name: value for value in read if value.name and id(value) not in own}


def _named_subgraphs(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    for name, attribute in node.attributes.items():
        if attribute.type is ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()
        elif attribute.type is ir.AttributeType.GRAPHS:
            for number, graph in enumerate(attribute.as_graphs()):
                yield f"{name}[{number}]", graph


def _places(graph: ir.Graph, around: str, closed: Container[str]) -> Iterator[tuple[str, Place]]:
    for node in graph:
        if node_id(node) in closed:
            continue
        for attribute, body in _named_subgraphs(node):
            key = f"{node_id(node)}/{attribute}"
            yield from _places(body, key, closed)
            yield key, Place(node, attribute, body, around)
