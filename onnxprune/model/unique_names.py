"""Names of values that are unique in the whole model.

ONNX lets bodies that do not enclose each other use a name twice (the branches of an If, the loops
that an exporter unrolled from one cell). What is told of a tensor here is told by its name, so
those that come later get another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

__all__ = ["make_names_unique"]


def make_names_unique(model: ir.Model) -> None:
    """Rename values of bodies whose names occur in another graph as well.

    The names of the main graph, its interface among them, stay as they are.

    Args:
        model: changed in place.
    """
    bodies = list(model.graph.subgraphs())
    if not bodies:
        return
    values = [value for graph in bodies for value in _values(graph)]
    taken = {value.name for value in _values(model.graph)}
    reserved = taken | {value.name for value in values}
    for value in values:
        if value.name in taken:
            value.name = _free(value.name or "", reserved)
            reserved.add(value.name)
        taken.add(value.name)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Values with a name that a graph itself makes."""
    constants = list(graph.initializers.values())
    yield from dict.fromkeys(value for value in (*graph.inputs, *constants) if value.name)
    yield from (value for node in graph for value in node.outputs if value.name)


def _free(name: str, reserved: set[str | None]) -> str:
    number = 2
    while f"{name}_{number}" in reserved:
        number += 1
    return f"{name}_{number}"
