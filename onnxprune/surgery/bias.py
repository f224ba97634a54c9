"""Adding a vector to the output of a linear node: into its bias, or a new one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxprune.coupling.labels import Layer, TensorLabels, rename
from onnxprune.surgery.integers import add_initializer, drop_if_unused, unique_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnxprune.coupling.trace import Coupling

__all__ = ["FullSize"]


class FullSize:
    """The original at full size while it is being compensated, with its coupling kept up to date.

    Attributes:
        model: changed in place.
        coupling: labels that also cover the constants and tensors added here.
    """

    def __init__(self, model: ir.Model, coupling: Coupling) -> None:
        self.model = model
        self.coupling = coupling
        self.nodes = {
            value.name: node for node in model.graph for value in node.outputs if value.name
        }

    def add_to_output(self, node: ir.Node, delta: NDArray[np.float64]) -> None:
        """Add `delta` (broadcast against the output) to what a linear node computes."""
        vector = delta.reshape(-1)
        name = node.outputs[0].name or ""
        channel = 1 if node.op_type in ("Conv", "ConvTranspose", "Gemm") else delta.ndim - 1
        one_axis = len(vector) == delta.shape[channel]
        if one_axis and node.op_type in ("Conv", "ConvTranspose") and self._into_slot(node, vector):
            return
        if one_axis and node.op_type == "Gemm" and self._into_gemm(node, vector):
            return
        if one_axis and channel == delta.ndim - 1 and self._into_following_add(node, vector):
            return
        self.add_constant(name, delta)

    def add_constant(self, name: str, delta: NDArray[np.float64]) -> None:
        """Put an Add of a constant behind a tensor; the sum takes over its name."""
        trimmed = delta.reshape(
            delta.shape[next((i for i, e in enumerate(delta.shape) if e > 1), -1) :]
        )
        value = self._new_constant(name, trimmed, len(delta.shape))
        self.add_value(name, value)

    def add_value(self, name: str, value: ir.Value) -> None:
        """Put an Add of another tensor, made before it, behind a tensor; the sum takes its name."""
        graph = self.model.graph
        node = self.nodes[name]
        output = next(one for one in node.outputs if one.name == name)
        add = ir.Node("", "Add", [output, value], num_outputs=1)
        total = add.outputs[0]
        total.type, total.shape = output.type, output.shape
        graph.insert_after(node, add)
        output.replace_all_uses_with(total, replace_graph_outputs=True)
        add.replace_input_with(0, output)
        inner = unique_name(graph, f"{name}/before_bias")
        output.name = inner
        total.name = name
        self.nodes[name] = add
        labels = self.coupling.tensors[name]
        self._register(inner, TensorLabels(inner, labels.shape, labels.layers), None, like=name)

    def register_constant(self, value: ir.Value, layers: tuple[Layer, ...]) -> None:
        """Tell the coupling of a constant added to the graph."""
        tensor = value.const_value
        assert tensor is not None
        assert value.name
        shape = tuple(tensor.shape.numpy())
        self._register(value.name, TensorLabels(value.name, shape, layers, True), tensor)

    def _into_slot(self, node: ir.Node, vector: NDArray[np.float64]) -> bool:
        """Conv, ConvTranspose: input 2 is the bias, [O]."""
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            return self._add_in_place(node, 2, vector)
        value = self._new_constant(node.outputs[0].name or "", vector, 2, channel=1)
        node.resize_inputs(3)
        node.replace_input_with(2, value)
        return True

    def _into_gemm(self, node: ir.Node, vector: NDArray[np.float64]) -> bool:
        """Gemm: input 2 times beta is added."""
        beta = node.attributes.get("beta")
        scale = beta.as_float() if beta is not None else 1.0
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is None:
            value = self._new_constant(node.outputs[0].name or "", vector / (scale or 1.0), 2)
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
        graph = self.model.graph
        labels = self.coupling.tensors[old.name]
        if len(old.uses()) == 1 and old.is_initializer() and not old.is_graph_output():
            changed = ir.tensor(total, dtype=tensor.dtype, name=old.name)
            old.const_value = changed
            self._register(old.name, labels, changed)
            return True
        value = add_initializer(graph, f"{old.name}/{node.outputs[0].name}", total)
        node.replace_input_with(slot, value)
        self.register_constant(value, labels.layers)
        drop_if_unused(graph, old)
        return True

    def _new_constant(
        self, output: str, array: NDArray[np.float64], rank: int, channel: int | None = None
    ) -> ir.Value:
        """A constant that is added to an output: labelled like the output's axes it covers."""
        dtype = self._dtype_of(output)
        value = add_initializer(self.model.graph, f"{output}/bias", array.astype(dtype))
        shift = rank - array.ndim if channel is None else channel
        covered = {axis + shift: axis for axis, extent in enumerate(array.shape) if extent > 1}
        layers = [
            layer
            for layer in self.coupling.tensors[output].layers
            if set(layer.axes) <= covered.keys()
        ]
        self.register_constant(value, rename(layers, covered))
        return value

    def _dtype_of(self, output: str) -> np.dtype[Any]:
        """Element type of a linear node's output: that of its constant inputs."""
        for value in self.nodes[output].inputs:
            if value is not None and value.name and value.name in self.coupling.facts.constants:
                return self.coupling.facts.constants[value.name].dtype.numpy()
        return np.dtype(np.float32)

    def _register(
        self, name: str, labels: TensorLabels, tensor: ir.TensorProtocol | None, like: str = ""
    ) -> None:
        facts = self.coupling.facts
        runs = []
        for run in (facts.first, facts.second):
            shape = tuple(tensor.shape.numpy()) if tensor is not None else run.shapes[like]
            runs.append(replace(run, shapes={**run.shapes, name: shape}))
        constants = dict(facts.constants)
        if tensor is not None:
            constants[name] = tensor
        facts = replace(facts, first=runs[0], second=runs[1], constants=constants)
        tensors = {**self.coupling.tensors, name: labels}
        self.coupling = replace(self.coupling, tensors=tensors, facts=facts)
