"""Constants that are added to the output of a linear layer: they go into its bias."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.surgery.editable_model import EditableModel
from onnxprune.surgery.linear import LINEAR_OPS


def fold_added_constants(target: EditableModel, names: Iterable[str]) -> list[str]:
    """Fold the constants of additions `x + c` into what makes x: a layer, or another such addition.

    Args:
        target: changed in place.
        names: outputs of such additions.

    Returns:
        the names of those that could be folded; their additions are removed, and `x` has taken
        over their names.
    """
    folded = []
    wanted = set(names)
    additions = [node for node in target.model.graph if node.outputs[0].name in wanted]
    for add in additions:
        name = add.outputs[0].name or ""
        slot = 0 if _constant(add.inputs[0]) is not None else 1
        value, constant = add.inputs[1 - slot], _constant(add.inputs[slot])
        if value is None or constant is None or not value.name:
            continue
        if _join_constants(target, add, value, constant):
            folded.append(name)
            continue
        layer = _single_linear_layer(value)
        if layer is None or _is_spread(target, layer, add):
            continue
        rank = len(target.coupling.tensors[layer.outputs[0].name or ""].shape)
        delta = constant.reshape([1] * (rank - constant.ndim) + list(constant.shape))
        kind = constant.dtype
        _bypass(target, add, value)
        target.add_to_output(layer, delta.astype(np.float64), kind)
        folded.append(name)
    return folded


def _join_constants(
    target: EditableModel, add: ir.Node, value: ir.Value, constant: NDArray[np.floating]
) -> bool:
    """Make one addition of two constants of one shape; say whether there were two."""
    before = value.producer()
    if before is None or before.op_type != "Add" or len(value.uses()) != 1:
        return False
    for slot, operand in enumerate(before.inputs):
        other = _constant(operand)
        if other is not None and other.shape == constant.shape and not value.is_graph_output():
            _bypass(target, add, value)
            added = target.editor.add_initializer(f"{value.name}/constant", other + constant)
            before.replace_input_with(slot, added)
            target.register_constant(added, ())
            if operand is not None:
                target.editor.drop_if_unused(operand)
            return True
    return False


def _single_linear_layer(value: ir.Value) -> ir.Node | None:
    """The first linear layer whose output reaches a tensor, through additions, and nothing else."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if len(value.uses()) != 1 or value.is_graph_output() or node is None or node.domain:
            continue
        if node.op_type in LINEAR_OPS:
            return node
        if node.op_type == "Add":
            terms = [term for term in node.inputs if term is not None and _constant(term) is None]
            waiting += reversed(terms)
    return None


def _is_spread(target: EditableModel, layer: ir.Node, add: ir.Node) -> bool:
    """Whether an addition has another shape than the layer's output."""
    shapes = target.coupling.facts.first.shapes
    return shapes.get(layer.outputs[0].name or "") != shapes.get(add.outputs[0].name or "")


def _bypass(target: EditableModel, add: ir.Node, value: ir.Value) -> None:
    """Take an addition out; the other operand gets its name."""
    total = add.outputs[0]
    name, inner, node = total.name or "", value.name or "", value.producer()
    assert node is not None
    constants = [other for other in add.inputs if other is not None and other is not value]
    total.replace_all_uses_with(value, replace_graph_outputs=True)
    value.type = total.type if value.type is None else value.type
    value.shape = total.shape if value.is_graph_output() else value.shape
    target.model.graph.remove(add, safe=True)
    for constant in constants:
        target.editor.drop_if_unused(constant)
    value.name = name
    target.nodes.pop(inner, None)
    target.nodes[name] = node


def _constant(value: ir.Value | None) -> NDArray[np.floating] | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor.numpy() if tensor is not None else None
