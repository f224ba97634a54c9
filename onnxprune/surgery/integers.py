"""Changing an integer input of one node: a literal, an attribute, or a computed value.

Exporters share one constant between unrelated nodes, so nothing is ever changed in place: a new
constant is made for each (node, slot).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.coupling.cut import Cut, CutError
from onnxprune.coupling.subgraph_shapes import subgraphs
from onnxprune.surgery.arithmetic import IntegerValues


@dataclass(frozen=True)
class Site:
    """A node to be patched, with the cut and the integers it sees."""

    editor: Editor
    node: ir.Node
    opset: int
    cut: Cut
    integers: IntegerValues

    def input(self, slot: int) -> str:
        """Name of an input, empty when there is none."""
        value = self.node.inputs[slot] if slot < len(self.node.inputs) else None
        return (value.name or "") if value is not None else ""

    def output(self, slot: int = 0) -> str:
        """Name of an output."""
        return self.node.outputs[slot].name or ""

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute, or the default."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    def constant(self, slot: int) -> bool:
        """Whether an input is a constant of the original graph."""
        return self.input(slot) in self.cut.coupling.facts.constants

    def old_shape(self, name: str) -> tuple[int, ...]:
        """Shape before the cut, at the first size."""
        return self.cut.coupling.facts.first.shapes[name]

    def vector(self, slot: int, attribute: str) -> NDArray[np.int64] | None:
        """Integers of an input in the cut model, or of the attribute older opsets use."""
        if self.input(slot):
            value = self.integers.get(self.input(slot))
            if value is None:
                raise CutError(self.output(), f"{self.input(slot)} is only known at run time")
            return np.atleast_1d(value).astype(np.int64)
        value = self.attribute(attribute)
        return None if value is None else np.atleast_1d(np.asarray(value, np.int64))

    def put(self, slot: int, attribute: str, wanted: NDArray[np.int64]) -> None:
        """Write integers to where they come from: attribute, literal, or computed input."""
        if not self.input(slot):
            set_attribute(self.node, attribute, wanted.tolist())
        elif self.constant(slot):
            self.editor.set_literal(self.node, slot, wanted)
        else:
            self.overrule(slot, wanted, wanted)

    def overrule(self, slot: int, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        """Correct the wrong entries of a computed input that do not depend on the input's size."""
        name = self.input(slot)
        computed = [self.integers.get(name, second=which) for which in (False, True)]
        if computed[0] is None or computed[1] is None:
            raise CutError(self.output(), f"{name} is only known at run time")
        wrong = (computed[0] != first) | (computed[1] != second)
        if (first != second)[wrong].any():
            raise CutError(self.output(), f"{name} depends on the batch and on what is removed")
        dtype = computed[0].dtype
        self.editor.replace_computed(self.node, slot, first.astype(dtype), np.asarray(wrong))


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
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            return
        producer, owner = value.producer(), value.graph
        if not isinstance(owner, ir.Graph):
            return
        if producer is not None and producer.op_type == "Constant":
            owner.remove(producer, safe=True)
        elif value.name and value.name in owner.initializers:
            del owner.initializers[value.name]

    def replace_computed(
        self, node: ir.Node, slot: int, wanted: NDArray[Any], wrong: NDArray[np.bool_]
    ) -> None:
        """Overrule some entries of a computed integer vector: Where(mask, literal, computed)."""
        computed = node.inputs[slot]
        base = f"{node.outputs[0].name}/input_{slot}"
        mask = self.add_initializer(f"{base}_mask", wrong)
        literal = self.add_initializer(f"{base}_literal", wanted)
        where = ir.Node("", "Where", [mask, literal, computed], num_outputs=1)
        where.outputs[0].name = self.unique_name(base)
        self.graph.insert_before(node, where)
        node.replace_input_with(slot, where.outputs[0])


def _names(graph: ir.Graph) -> Iterator[str | None]:
    """Names of values that a graph and the bodies in it make."""
    yield from graph.initializers
    yield from (value.name for value in graph.inputs)
    for node in graph:
        yield from (value.name for value in node.outputs)
        for body in subgraphs(node):
            yield from _names(body)


def set_attribute(node: ir.Node, name: str, value: int | Sequence[int]) -> None:
    """Set an integer or integer-list attribute."""
    if isinstance(value, int):
        node.attributes[name] = ir.AttrInt64(name, value)
    else:
        node.attributes[name] = ir.AttrInt64s(name, list(value))
