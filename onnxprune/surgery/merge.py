"""Moving the weights with which one unit is read to another, and blanking units, at full size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.coupling.groups import Group, Reading
from onnxprune.model.observe import ConstantValues
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.surgery.linear import LINEAR_OPS


def is_linear(target: EditableModel, reading: Reading) -> bool:
    """Whether a reader multiplies the group with a fixed weight, as a node of `LINEAR_OPS`."""
    node, weight = target.nodes.get(reading.consumer.node), reading.consumer.weight
    known = node is not None and not node.domain and node.op_type in LINEAR_OPS
    return known and weight is not None and _follows_from_constants(target, weight)


def _follows_from_constants(target: EditableModel, name: str) -> bool:
    """Some weights are picked from a constant by what the input says (experts)."""
    waiting, seen = [name], set()
    while waiting:
        one = waiting.pop()
        if one in seen or one in target.coupling.facts.constants:
            continue
        seen.add(one)
        if one not in target.nodes:
            return False
        waiting += [value.name for value in target.nodes[one].inputs if value and value.name]
    return True


def is_mergeable(target: EditableModel, reading: Reading) -> bool:
    """Whether the weight of one unit can be added to that of another.

    It has to be a floating-point constant of the graph that only this reader uses, all groups of a
    convolution in one.
    """
    consumer = reading.consumer
    tensor = target.coupling.facts.constants.get(consumer.weight or "")
    if tensor is None or not tensor.dtype.is_floating_point() or not is_linear(target, reading):
        return False
    node = target.nodes[consumer.node]
    uses = [value for value in node.inputs if value is not None and value.name == consumer.weight]
    shared = len(uses) != 1 or len(uses[0].uses()) != 1 or uses[0].is_graph_output()
    return consumer.group == 1 and reading.axes == (consumer.axis,) and not shared


def move_weights(
    target: EditableModel, reading: Reading, merged: Sequence[tuple[int, int, float]]
) -> None:
    """Add the weights behind some units to those behind others, and leave zeros.

    Args:
        target: the model at full size.
        reading: one that `is_mergeable`.
        merged: (unit, unit it goes to, factor): W[:, kept] += factor * W[:, unit].
    """
    consumer = reading.consumer
    assert consumer.weight is not None
    tensor = target.coupling.facts.constants[consumer.weight]
    array = tensor.numpy().astype(np.float64)
    columns = np.moveaxis(array, consumer.weight_axis, 0)
    for unit, kept, factor in merged:
        source, goal = (np.flatnonzero(reading.units == one) for one in (unit, kept))
        columns[goal] += factor * columns[source]
        columns[source] = 0
    replace_constant(target, consumer.weight, array.astype(tensor.dtype.numpy()))


def blank(target: EditableModel, group: Group, units: Sequence[int]) -> None:
    """Set everything that units own to zero, so that whoever looks next no longer sees them.

    Constants that divide, and integers, stay as they are; the masked model sees to them.
    """
    for owned in group.owned:
        tensor = target.coupling.facts.constants[owned.tensor]
        gone = np.isin(owned.units, np.asarray(units, np.int64))
        if not gone.any() or not tensor.dtype.is_floating_point():
            continue
        if owned.tensor not in target.coupling.divisors:
            array = tensor.numpy().copy()
            np.moveaxis(array, owned.axes, range(len(owned.axes)))[gone] = 0
            replace_constant(target, owned.tensor, array)


def constants_of(target: EditableModel) -> ConstantValues:
    """Values of the constants as they are now."""
    return ConstantValues(target.model, target.coupling.facts.constants)


def replace_constant(target: EditableModel, name: str, array: NDArray[Any]) -> None:
    """Give a constant of the main graph another value of its shape and dtype."""
    old = target.coupling.facts.constants[name]
    tensor = ir.Tensor(array, dtype=old.dtype, name=old.name, doc_string=old.doc_string)
    tensor.metadata_props.update(old.metadata_props)
    shape = tuple(tensor.shape.numpy())
    if name in target.model.graph.initializers:
        target.model.graph.initializers[name].const_value = tensor
    else:
        node = target.nodes[name]
        node.attributes.clear()
        node.attributes["value"] = ir.AttrTensor("value", tensor)
        node.outputs[0].const_value = None
    target.register_tensor(name, (shape, shape), target.coupling.tensors[name].axis_labels, tensor)
