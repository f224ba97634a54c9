"""The original at full size while it is being compensated: new biases, new weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.coupling.cut import Cut
from onnxprune.coupling.groups import Group
from onnxprune.coupling.labels import AxisLabel, TensorLabels, rename
from onnxprune.coupling.trace import Coupling
from onnxprune.model.bodies import places
from onnxprune.model.observe import ConstantValues, constants_of
from onnxprune.surgery.editor import Editor
from onnxprune.surgery.slicing import zero_removed

ADDED_TO = "/before_bias"
"""What the name of a tensor is followed by once something is added to it under its own name."""


class EditableModel:
    """The original at full size while it is being compensated, with its coupling kept up to date.

    Attributes:
        model: changed in place.
        coupling: labels that also cover the constants and tensors added here.
    """

    def __init__(self, model: ir.Model, coupling: Coupling) -> None:
        self.model = model
        facts = coupling.facts
        self._tensors, self._constants = dict(coupling.tensors), dict(facts.constants)
        self._shapes = (dict(facts.first.shapes), dict(facts.second.shapes))
        runs = (facts.first, facts.second)
        first, second = (
            replace(run, shapes=own) for run, own in zip(runs, self._shapes, strict=True)
        )
        grown = replace(facts, first=first, second=second, constants=self._constants)
        self.coupling = replace(coupling, tensors=self._tensors, facts=grown)
        self.editor = Editor(model.graph)
        self.nodes = {
            value.name: node
            for node in self.coupling.nodes(model.graph)
            for value in node.outputs
            if value.name
        }

    def add_to_output(
        self, node: ir.Node, delta: NDArray[np.float64], dtype: np.dtype[Any]
    ) -> None:
        """Add to what a linear node computes.

        Args:
            node: Conv, ConvTranspose, Gemm, MatMul or Einsum.
            delta: of the output's rank, broadcast against it.
            dtype: the node's element type.
        """
        vector = delta.reshape(-1)
        name = node.outputs[0].name or ""
        channel = 1 if node.op_type in ("Conv", "ConvTranspose", "Gemm") else delta.ndim - 1
        one_axis = len(vector) == delta.shape[channel]
        into = {"Conv": self._into_slot, "ConvTranspose": self._into_slot, "Gemm": self._into_gemm}
        if one_axis and node.op_type in into and into[node.op_type](node, vector, dtype):
            return
        if one_axis and channel == delta.ndim - 1 and self._into_following_add(node, vector):
            return
        self.add_constant(name, delta, dtype)

    def mask(self, cut: Cut) -> None:
        """Set what is going to be removed to zero, in the graph and in what the coupling knows."""
        zero_removed(self.model, cut)
        for name, tensor in self._constants_in_graphs().items():
            if cut.touches(name):
                shape = tuple(tensor.shape.numpy())
                self.register_tensor(
                    name, (shape, shape), self.coupling.tensors[name].axis_labels, tensor
                )

    def set_weight(self, node: ir.Node, slot: int, array: NDArray[Any]) -> None:
        """Give a node another constant in place of one that it alone reads.

        Args:
            node: the reader.
            slot: its input slot.
            array: the new value, of the shape and dtype of the old one.
        """
        old = node.inputs[slot]
        assert old is not None
        assert old.name
        axis_labels = self.coupling.tensors[old.name].axis_labels
        if old.is_initializer() and not old.is_graph_output():
            tensor = ir.tensor(array, name=old.name)
            old.const_value = tensor
            self.register_tensor(old.name, (array.shape, array.shape), axis_labels, tensor)
            return
        value = self.editor.add_initializer(f"{node.outputs[0].name}/weight", array)
        node.replace_input_with(slot, value)
        if not old.is_graph_output():
            # readers are known by the names of their weights
            old.name, value.name = value.name, old.name
        self.register_constant(value, axis_labels)
        self._drop_chain(old)

    def _drop_chain(self, value: ir.Value) -> None:
        """Remove a constant that nothing reads any more, and what only it was made from."""
        producer = value.producer()
        unused = not value.uses() and not value.is_graph_output()
        if producer is not None and unused and len(producer.outputs) == 1:
            sources = [value for value in producer.inputs if value is not None]
            graph = producer.graph
            assert isinstance(graph, ir.Graph)
            graph.remove(producer, safe=True)
            for source in sources:
                self._drop_chain(source)
        else:
            self.editor.drop_if_unused(value)

    def add_constant(self, name: str, delta: NDArray[np.float64], dtype: np.dtype[Any]) -> None:
        """Put an Add of a constant behind a tensor; the sum takes over its name."""
        trimmed = delta.reshape(
            delta.shape[next((i for i, e in enumerate(delta.shape) if e > 1), -1) :]
        )
        value = self._new_constant(name, trimmed.astype(dtype), len(delta.shape))
        self.add_value(name, value)

    def add_value(self, name: str, value: ir.Value) -> None:
        """Put an Add of another tensor, made before it, behind a tensor; the sum takes its name."""
        node, facts = self.nodes[name], self.coupling.facts
        output = next(made for made in node.outputs if made.name == name)
        total = self.editor.insert_behind(output, "Add", [value], suffix=ADDED_TO)
        total.type, total.shape = output.type, output.shape
        inner, add = output.name or "", total.producer()
        assert add is not None
        self.nodes[name], self.nodes[inner] = add, node
        shapes = facts.first.shapes[name], facts.second.shapes[name]
        self.register_tensor(inner, shapes, self.coupling.tensors[name].axis_labels)

    def register_constant(self, value: ir.Value, axis_labels: tuple[AxisLabel, ...]) -> None:
        """Record a constant added to the graph in the coupling."""
        tensor = value.const_value
        assert tensor is not None
        assert value.name
        shape = tuple(tensor.shape.numpy())
        self.register_tensor(value.name, (shape, shape), axis_labels, tensor)

    def register_tensor(
        self,
        name: str,
        shapes: tuple[tuple[int, ...], tuple[int, ...]],
        axis_labels: Iterable[AxisLabel] = (),
        tensor: ir.TensorProtocol | None = None,
    ) -> None:
        """Record a tensor added to the graph, or a constant's new value, in the coupling.

        Args:
            name: its name.
            shapes: its shape at the first and at the second traced size.
            axis_labels: its labels.
            tensor: the value of a constant.
        """
        for known, shape in zip(self._shapes, shapes, strict=True):
            known[name] = shape
        if tensor is not None:
            self._constants[name] = tensor
        self._tensors[name] = TensorLabels(name, shapes[0], tuple(axis_labels), tensor is not None)

    def replace_constant(self, name: str, array: NDArray[Any]) -> None:
        """Give a constant another value of its shape and dtype."""
        old = self.coupling.facts.constants[name]
        tensor = ir.Tensor(array, dtype=old.dtype, name=old.name, doc_string=old.doc_string)
        tensor.metadata_props.update(old.metadata_props)
        shape = tuple(tensor.shape.numpy())
        for graph in self._graphs():
            if name in graph.initializers:
                graph.initializers[name].const_value = tensor
                break
        else:
            node = self.nodes[name]
            node.attributes.clear()
            node.attributes["value"] = ir.AttrTensor("value", tensor)
            node.outputs[0].const_value = None
        self.register_tensor(name, (shape, shape), self.coupling.tensors[name].axis_labels, tensor)

    def blank(self, group: Group, units: Sequence[int]) -> None:
        """Set everything that some units own to zero, so that nothing downstream sees them.

        Constants that divide, and integers, stay as they are; the masked model sees to them.

        Args:
            group: the group of the units.
            units: their indices in the group.
        """
        for owned in group.owned:
            tensor = self.coupling.facts.constants[owned.tensor]
            removed = np.isin(owned.units, np.asarray(units, np.int64))
            if not removed.any() or not tensor.dtype.is_floating_point():
                continue
            if owned.tensor not in self.coupling.divisors:
                array = tensor.numpy().copy()
                np.moveaxis(array, owned.axes, range(len(owned.axes)))[removed] = 0
                self.replace_constant(owned.tensor, array)

    def constants(self) -> ConstantValues:
        """Values of the constants as they are now."""
        return ConstantValues(self.model, self.coupling.facts.constants)

    def _graphs(self) -> list[ir.Graph]:
        """The main graph, and the bodies that are looked into."""
        inner = places(self.model.graph, self.coupling.closed).values()
        return [self.model.graph, *(place.graph for place in inner)]

    def _constants_in_graphs(self) -> dict[str, ir.TensorProtocol]:
        """Initializers and outputs of Constant nodes, those of bodies included, by name."""
        found: dict[str, ir.TensorProtocol] = {}
        for graph in self._graphs():
            found |= constants_of(graph)
        return found

    def _into_slot(self, node: ir.Node, vector: NDArray[np.float64], dtype: np.dtype[Any]) -> bool:
        """Conv, ConvTranspose: input 2 is the bias, [O]."""
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            return self._add_in_place(node, 2, vector)
        value = self._new_constant(node.outputs[0].name or "", vector.astype(dtype), 2, 1)
        node.resize_inputs(3)
        node.replace_input_with(2, value)
        return True

    def _into_gemm(self, node: ir.Node, vector: NDArray[np.float64], dtype: np.dtype[Any]) -> bool:
        """Gemm: input 2 times beta is added."""
        beta = node.attributes.get("beta")
        scale = beta.as_float() if beta is not None else 1.0
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is None:
            wanted = (vector / (scale or 1.0)).astype(dtype)
            value = self._new_constant(node.outputs[0].name or "", wanted, 2)
            node.resize_inputs(3)
            node.replace_input_with(2, value)
            if not scale:
                node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
            return True
        return bool(scale) and self._add_in_place(node, 2, vector / scale)

    def _into_following_add(self, node: ir.Node, vector: NDArray[np.float64]) -> bool:
        """MatMul, Einsum: the only reader is an Add of a constant vector."""
        output = node.outputs[0]
        uses = list(output.uses())
        if len(uses) != 1 or output.is_graph_output():
            return False
        add, slot = uses[0].node, uses[0].idx
        if add.op_type != "Add" or add.domain or add.graph is not node.graph:
            return False
        return self._add_in_place(add, 1 - slot, vector)

    def _add_in_place(self, node: ir.Node, slot: int, vector: NDArray[np.float64]) -> bool:
        """Add to a constant vector along its last axis; a shared one is copied first."""
        old = node.inputs[slot]
        if old is None or not old.name or old.name not in self.coupling.facts.constants:
            return False
        tensor = self.coupling.facts.constants[old.name]
        shape = tuple(tensor.shape.numpy())
        if not shape or shape[-1] != len(vector) or tensor.size != len(vector):
            return False
        total = (tensor.numpy().astype(np.float64) + vector.reshape(shape)).astype(
            tensor.dtype.numpy()
        )
        labels = self.coupling.tensors[old.name]
        if len(old.uses()) == 1 and old.is_initializer() and not old.is_graph_output():
            changed = ir.tensor(total, dtype=tensor.dtype, name=old.name)
            old.const_value = changed
            self.register_tensor(old.name, (shape, shape), labels.axis_labels, changed)
            return True
        value = self.editor.add_initializer(f"{old.name}/{node.outputs[0].name}", total)
        node.replace_input_with(slot, value)
        self.register_constant(value, labels.axis_labels)
        self.editor.drop_if_unused(old)
        return True

    def _new_constant(
        self, output: str, array: NDArray[Any], rank: int, channel: int | None = None
    ) -> ir.Value:
        """A constant that is added to an output: labelled like the output's axes it covers."""
        value = self.editor.add_initializer(f"{output}/bias", array)
        shift = rank - array.ndim if channel is None else channel
        covered = {axis + shift: axis for axis, extent in enumerate(array.shape) if extent > 1}
        axis_labels = [
            label
            for label in self.coupling.tensors[output].axis_labels
            if set(label.axes) <= covered.keys()
        ]
        self.register_constant(value, rename(axis_labels, covered))
        return value
