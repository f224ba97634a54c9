"""Changing an integer input of one node: a literal, an attribute, or a computed value.

Exporters share one constant between unrelated nodes, so nothing is ever changed in place: a new
constant is made for each (node, slot).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "add_initializer",
    "drop_if_unused",
    "replace_computed",
    "set_attribute",
    "set_literal",
    "unique_name",
]


def unique_name(graph: ir.Graph, wanted: str) -> str:
    """Return a value name that nothing in the graph has yet."""
    taken = set(graph.initializers) | {value.name for value in graph.inputs}
    taken |= {value.name for node in graph for value in node.outputs}
    name, number = wanted, 1
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    return name


def add_initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Register a new initializer under a free name derived from `name`."""
    tensor = ir.tensor(array, name=unique_name(graph, name))
    value = ir.Value(
        name=tensor.name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def set_literal(
    graph: ir.Graph, node: ir.Node, slot: int, wanted: Sequence[int] | NDArray[Any]
) -> None:
    """Give an input slot a constant of its own, of the dtype it had (int64 when it was empty)."""
    old = node.inputs[slot] if slot < len(node.inputs) else None
    tensor = ir.convenience.get_const_tensor(old) if old is not None else None
    dtype = tensor.numpy().dtype if tensor is not None else np.dtype(np.int64)
    value = add_initializer(
        graph, f"{node.outputs[0].name}/input_{slot}", np.asarray(wanted, dtype)
    )
    if slot >= len(node.inputs):
        node.resize_inputs(slot + 1)
    node.replace_input_with(slot, value)
    if old is not None:
        drop_if_unused(graph, old)


def drop_if_unused(graph: ir.Graph, value: ir.Value) -> None:
    """Remove a constant that nothing reads any more."""
    if value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant":
        graph.remove(producer, safe=True)
    elif value.name and value.name in graph.initializers:
        del graph.initializers[value.name]


def set_attribute(node: ir.Node, name: str, value: int | Sequence[int]) -> None:
    """Set an integer or integer-list attribute."""
    if isinstance(value, int):
        node.attributes[name] = ir.AttrInt64(name, value)
    else:
        node.attributes[name] = ir.AttrInt64s(name, list(value))


def replace_computed(
    graph: ir.Graph, node: ir.Node, slot: int, wanted: NDArray[Any], wrong: NDArray[np.bool_]
) -> None:
    """Overrule some entries of a computed integer vector: Where(mask, literal, computed)."""
    computed = node.inputs[slot]
    base = f"{node.outputs[0].name}/input_{slot}"
    mask = add_initializer(graph, f"{base}_mask", wrong)
    literal = add_initializer(graph, f"{base}_literal", wanted)
    where = ir.Node("", "Where", [mask, literal, computed], num_outputs=1)
    where.outputs[0].name = unique_name(graph, base)
    graph.insert_before(node, where)
    node.replace_input_with(slot, where.outputs[0])
