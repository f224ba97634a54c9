"""Residual additions inside other nodes become nodes of their own, so that one rule finds all.

A `Sum` becomes a chain of Adds. Additions that onnxruntime's optimiser has fused with the
normalisation after them are separated.

Before (`com.microsoft`; so for SkipSimplifiedLayerNormalization, which has no beta)::

    y, -, -, s = SkipLayerNormalization(x, f, gamma, beta, b)

After::

    s = Add(x, Add(f, b)) -> y = LayerNormalization(s, gamma, beta)

so that a residual branch f ends at an Add here too, and layers are fitted to the sum they enter.
onnxruntime fuses both again when it loads the file. Where neither the operator set nor the model
has such a normalisation, it is written as elementary operators, which onnxruntime recognises too.

Conditions: nothing reads the mean or the deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.surgery.editor import Editor
from onnxprune.surgery.linear import LINEAR_OPS

_STANDARD_SINCE = 17
"""Operator set in which LayerNormalization has become an operator."""

_AXES_AS_INPUT = 18
"""Operator set in which the axes of ReduceMean have become an input."""

_EPSILON = 1e-12
"""Default of the fused operators."""

_TOTAL = 3
"""Output slot of the sum."""


@dataclass(frozen=True)
class _Form:
    """One fused operator.

    Attributes:
        op_type: of the normalisation.
        beta: slot of what is added after scaling; None for none.
        bias: slot of what is added to the sum.
        since: operator set that has the normalisation; None for none.
    """

    op_type: str
    beta: int | None
    bias: int
    since: int | None


_FORMS = {
    "SkipLayerNormalization": _Form("LayerNormalization", 3, 4, _STANDARD_SINCE),
    "SkipSimplifiedLayerNormalization": _Form("SimplifiedLayerNormalization", None, 3, None),
}


def separated_sums(model: ir.Model) -> ir.Model:
    """A copy of a model whose residual additions are nodes of their own; the model if they are.

    Sums keep their name, or else are named after the normalised tensor with "/sum".

    Args:
        model: unchanged.
    """
    if not any(_can_be_separated(node) for node in model.graph):
        return model
    result = model.clone()
    graph, opset = result.graph, result.opset_imports.get("", 1)
    editor = Editor(graph)
    known = {node.op_type for node in graph if not node.domain}
    for node in [node for node in graph if _can_be_separated(node)]:
        if node.op_type == "Sum":
            _chain_additions(editor, node)
            continue
        form = _FORMS[node.op_type]
        standard = form.op_type in known or (form.since is not None and opset >= form.since)
        _Separation(editor, node, form, opset, standard).replace_node()
    return result


def _can_be_separated(node: ir.Node) -> bool:
    if node.op_type == "Sum" and not node.domain:
        return len(node.inputs) > 1
    if node.domain != "com.microsoft" or node.op_type not in _FORMS:
        return False
    return not any(value.uses() or value.is_graph_output() for value in node.outputs[1:_TOTAL])


def _chain_additions(editor: Editor, node: ir.Node) -> None:
    """Replace a Sum by Adds, from the first operand to the last."""
    total, output = node.inputs[0], node.outputs[0]
    for value in node.inputs[1:]:
        add = ir.Node("", "Add", [total, value], num_outputs=1)
        total = add.outputs[0]
        total.name = editor.unique_name(f"{output.name}/part")
        total.type = output.type
        editor.graph.insert_before(node, add)
    if total is not None:
        _take_over(editor, output, total)
    editor.graph.remove(node, safe=True)


def _take_over(editor: Editor, old: ir.Value, new: ir.Value) -> None:
    """Replace a tensor by another, which takes its name and shape, and its node the node's name."""
    name, old_node, new_node = old.name, old.producer(), new.producer()
    if old_node is not None and new_node is not None and not old.index():
        new_node.name = old_node.name
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if name:
        old.name = editor.unique_name(f"{name}/fused")
        new.name = name


@dataclass(frozen=True)
class _Separation:
    """One fused node and what replaces it.

    Attributes:
        editor: of the graph.
        node: the fused node.
        form: its parts.
        opset: of the model.
        standard: the normalisation can be written as one node.
    """

    editor: Editor
    node: ir.Node
    form: _Form
    opset: int
    standard: bool

    def replace_node(self) -> None:
        """Replace the node by an addition and a normalisation."""
        total = self._sum()
        normalised = self._one_node(total) if self.standard else self._elementary(total)
        if len(self.node.outputs) > _TOTAL:
            _take_over(self.editor, self.node.outputs[_TOTAL], total)
        _take_over(self.editor, self.node.outputs[0], normalised)
        self.editor.graph.remove(self.node, safe=True)

    def _sum(self) -> ir.Value:
        terms = [self.node.inputs[slot] for slot in (0, 1)]
        bias = self._input(self.form.bias)
        if bias is not None:
            slot = 0 if _is_linear(terms[0]) or not _is_linear(terms[1]) else 1
            terms[slot] = self._op("Add", terms[slot], bias)
        total = self._op("Add", *terms)
        total.name = self.editor.unique_name(f"{self.node.outputs[0].name}/sum")
        return total

    def _one_node(self, total: ir.Value) -> ir.Value:
        beta = self._input(self.form.beta)
        inputs = [total, self._input(2), *([] if beta is None else [beta])]
        attributes = {"axis": -1, "epsilon": self._epsilon()}
        return self._op(self.form.op_type, *inputs, **attributes)

    def _elementary(self, total: ir.Value) -> ir.Value:
        """The normalisation in the form that onnxruntime's optimiser recognises."""
        beta, centred = self._input(self.form.beta), total
        if self.form.op_type == "LayerNormalization":
            centred = self._op("Sub", total, self._mean(total))
        square = self._op("Pow", centred, self._constant("two", 2.0))
        variance = self._op("Add", self._mean(square), self._constant("epsilon", self._epsilon()))
        scaled = self._op("Div", centred, self._op("Sqrt", variance))
        scaled = self._op("Mul", scaled, self._input(2))
        return scaled if beta is None else self._op("Add", scaled, beta)

    def _mean(self, value: ir.Value) -> ir.Value:
        if self.opset < _AXES_AS_INPUT:
            return self._op("ReduceMean", value, axes=[-1], keepdims=1)
        axes = self.editor.add_initializer(self._name("axes"), np.array([-1], np.int64))
        return self._op("ReduceMean", value, axes, keepdims=1)

    def _op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        converted = ir.convenience.convert_attributes(attributes)
        node = ir.Node("", op_type, inputs, converted, num_outputs=1)
        value = node.outputs[0]
        value.name = self.editor.unique_name(self._name(op_type.lower()))
        value.type = self.node.outputs[0].type
        self.editor.graph.insert_before(self.node, node)
        return value

    def _constant(self, name: str, number: float) -> ir.Value:
        scale = self._input(2)
        kind = scale.dtype if scale is not None and scale.dtype is not None else ir.DataType.FLOAT
        array: NDArray[Any] = np.array(number, kind.numpy())
        return self.editor.add_initializer(self._name(name), array)

    def _epsilon(self) -> float:
        return self.node.attributes.get_float("epsilon", _EPSILON)

    def _input(self, slot: int | None) -> ir.Value | None:
        if slot is None or slot >= len(self.node.inputs):
            return None
        return self.node.inputs[slot]

    def _name(self, suffix: str) -> str:
        return f"{self.node.outputs[0].name}/{suffix}"


def _is_linear(value: ir.Value | None) -> bool:
    """Whether a linear layer makes a tensor: a bias beside it is then the layer's."""
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type in LINEAR_OPS
