"""A graph that is being changed: names that are free, new constants and nodes.

Exporters share one constant between unrelated nodes, so nothing is ever changed in place: a new
constant is made for each (node, slot).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.model.bodies import subgraphs


class Editor:
    """A graph that is being changed, with the names that are taken in it.

    Args:
        graph: the graph; whatever is added to it while the editor is in use gets its name here.
        around: the editor of the graph around it, when it is the body of a node.
    """

    def __init__(self, graph: ir.Graph, around: Editor | None = None) -> None:
        self.graph = graph
        self._taken: set[str | None] = set(_names(graph)) if around is None else around._taken

    def unique_name(self, wanted: str) -> str:
        """Return a value name that nothing in the graph has yet, and take it."""
        name, number = wanted, 1
        while name in self._taken:
            name, number = f"{wanted}_{number}", number + 1
        self._taken.add(name)
        return name

    def add_initializer(self, name: str, array: NDArray[Any]) -> ir.Value:
        """Register a new initializer under a free name derived from `name`."""
        tensor = ir.tensor(array, name=self.unique_name(name))
        value = ir.Value(
            name=tensor.name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def insert_before(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        name: str,
    ) -> ir.Value:
        """Put a node of the default domain before another; return its output, named like `name`."""
        made = ir.node(op_type, inputs, attributes)
        made.outputs[0].name = self.unique_name(name)
        _graph_of(node).insert_before(node, made)
        return made.outputs[0]

    def insert_behind(
        self, output: ir.Value, op_type: str, others: Sequence[ir.Value], *, suffix: str
    ) -> ir.Value:
        """Put a node that also reads `others` behind an output.

        The result takes over the output's name and readers; the output is called name + suffix.
        """
        name, node = output.name or "", output.producer()
        assert node is not None
        made = ir.node(op_type, [output, *others])
        _graph_of(node).insert_after(node, made)
        output.replace_all_uses_with(made.outputs[0], replace_graph_outputs=True)
        made.replace_input_with(0, output)
        output.name = self.unique_name(f"{name}{suffix}")
        made.outputs[0].name = name
        return made.outputs[0]

    def set_literal(self, node: ir.Node, slot: int, wanted: Sequence[int] | NDArray[Any]) -> None:
        """Give an input slot a constant of its own, of the dtype it had (int64 when empty)."""
        old = node.inputs[slot] if slot < len(node.inputs) else None
        tensor = ir.convenience.get_const_tensor(old) if old is not None else None
        dtype = tensor.numpy().dtype if tensor is not None else np.dtype(np.int64)
        name = f"{node.outputs[0].name}/input_{slot}"
        value = self.add_initializer(name, np.asarray(wanted, dtype))
        if slot >= len(node.inputs):
            node.resize_inputs(slot + 1)
        node.replace_input_with(slot, value)
        if old is not None:
            self.drop_if_unused(old)

    def drop_if_unused(self, value: ir.Value) -> None:
        """Remove a constant that nothing reads any more."""
        if value.uses() or value.is_graph_output():
            return
        producer, owner = value.producer(), value.graph
        if not isinstance(owner, ir.Graph):
            return
        if producer is not None and producer.op_type == "Constant":
            owner.remove(producer, safe=True)
        elif value.name and value.name in owner.initializers:
            if value.is_graph_input():  # an override that nothing reads
                owner.inputs.remove(value)
            del owner.initializers[value.name]

    def replace_computed(
        self, node: ir.Node, slot: int, wanted: NDArray[Any], wrong: NDArray[np.bool_]
    ) -> None:
        """Overrule some entries of a computed integer vector: Where(mask, literal, computed)."""
        computed = node.inputs[slot]
        base = f"{node.outputs[0].name}/input_{slot}"
        mask = self.add_initializer(f"{base}_mask", wrong)
        literal = self.add_initializer(f"{base}_literal", wanted)
        corrected = self.insert_before(node, "Where", [mask, literal, computed], name=base)
        node.replace_input_with(slot, corrected)


def _graph_of(node: ir.Node) -> ir.Graph:
    """The graph a node is in: a body, where the editor is that of a graph around it."""
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def _names(graph: ir.Graph) -> Iterator[str | None]:
    """Names of values that a graph and the bodies in it make."""
    yield from graph.initializers
    yield from (value.name for value in graph.inputs)
    for node in graph:
        yield from (value.name for value in node.outputs)
        for body in subgraphs(node):
            yield from _names(body)
