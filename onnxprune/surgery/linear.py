"""Linear nodes that read pruned channels: run one alone, move its weights, restore constants.

Removed channels that are constant have contributed a constant to the reader's output. It goes into
a bias, or, where zero padding makes the border differ, into a convolution over ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.coupling.groups import Reading
from onnxprune.coupling.labels import AxisLabel
from onnxprune.model.execution import open_session, run
from onnxprune.model.runtime import Runtime
from onnxprune.surgery.editable_model import ADDED_TO, EditableModel

LINEAR_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})
"""Ops of the default domain that multiply an activation with a weight."""

SMALL_MAP = 16_384
"""Elements of a constant map that may always be added, whatever it saves."""

Shapes: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape of a tensor at the first and at the second traced size."""


def linear_node(nodes: Mapping[str, ir.Node], name: str) -> ir.Node | None:
    """Node that makes a tensor, behind terms which compensation has added to it.

    Args:
        nodes: node by the name of what it makes.
        name: id of the node when the model was traced: the sum has taken over its first output.
    """
    node = nodes.get(name)
    while node is not None and node.op_type == "Add" and node.inputs[0] is not None:
        inner = node.inputs[0].name or ""
        if not inner.startswith(f"{name}{ADDED_TO}"):
            break
        node = nodes.get(inner)
    return node


def apply_linear(
    node: ir.Node, opset: int, data: NDArray[Any], weight: NDArray[Any], slot: int
) -> NDArray[np.float64]:
    """Run a node alone, without its bias, in onnxruntime: every attribute means what it means.

    Args:
        node: a node of `LINEAR_OPS`.
        opset: version of the default domain.
        data: the activation.
        weight: the weight.
        slot: input slot of the weight, 0 or 1.

    Returns:
        The node's output without bias.
    """
    proto = ir.to_proto(node)
    del proto.input[:], proto.output[:]
    proto.input.extend(["weight", "data"] if slot == 0 else ["data", "weight"])
    proto.output.append("result")
    feed = {"data": data.astype(np.float32), "weight": weight.astype(np.float32)}
    if node.op_type == "Gemm":  # required before opset 11
        proto.input.append("bias")
        feed["bias"] = np.zeros(1, np.float32)
    graph = onnx.helper.make_graph(
        [proto],
        "linear",
        [onnx.helper.make_tensor_value_info(n, 1, v.shape) for n, v in feed.items()],
        [onnx.ValueInfoProto(name="result")],
    )
    imports = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)
    session = open_session(model, Runtime(threads=1), optimise=False)
    return run(session, feed)["result"].astype(np.float64)


def axes_of_weight(node: ir.Node, slot: int, weight_shape: tuple[int, ...], rank: int) -> list[int]:
    """Output axes whose positions the weight makes: a bias may differ along these only.

    Args:
        node: a node of `LINEAR_OPS`.
        slot: input slot of the weight.
        weight_shape: its shape.
        rank: rank of the output.
    """
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        return [1]
    if node.op_type == "Einsum":
        inputs, arrow, output = (
            node.attributes["equation"].as_string().replace(" ", "").partition("->")
        )
        if not arrow:
            output = "".join(sorted(c for c in set(inputs) - {","} if inputs.count(c) == 1))
        letters = inputs.split(",")[slot]
        return [axis for axis, letter in enumerate(output) if letter in letters]
    if len(weight_shape) == 1:
        return []
    made = rank - 1 if slot else rank - 2
    batch = [
        rank - len(weight_shape) + i for i, extent in enumerate(weight_shape[:-2]) if extent > 1
    ]
    return [*batch, made]


def is_linear(target: EditableModel, reading: Reading) -> bool:
    """Whether a reader multiplies the group with a fixed weight, as a node of `LINEAR_OPS`."""
    node, weight = target.nodes.get(reading.consumer.node), reading.consumer.weight
    known = node is not None and not node.domain and node.op_type in LINEAR_OPS
    return known and weight is not None and _follows_from_constants(target, weight)


def _follows_from_constants(target: EditableModel, name: str) -> bool:
    """Some weights are picked from a constant by what the input says (experts)."""
    waiting, seen = [name], set()
    while waiting:
        tensor = waiting.pop()
        if tensor in seen or tensor in target.coupling.facts.constants:
            continue
        seen.add(tensor)
        if tensor not in target.nodes:
            return False
        waiting += [value.name for value in target.nodes[tensor].inputs if value and value.name]
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
        source, goal = (np.flatnonzero(reading.units == index) for index in (unit, kept))
        columns[goal] += factor * columns[source]
        columns[source] = 0
    target.replace_constant(consumer.weight, array.astype(tensor.dtype.numpy()))


def add_border_exact_constant(
    target: EditableModel,
    node: ir.Node,
    constants: NDArray[np.float64],
    uniform: bool,
    contribution: NDArray[np.float64],
    weight: NDArray[Any],
    own_axes: list[int],
) -> None:
    """Add a contribution that differs from position to position.

    Args:
        target: the model at full size.
        node: the reader.
        constants: the reader's input with the constant values at removed channels, zero elsewhere.
        uniform: every channel of `constants` holds one value.
        contribution: what the reader makes of `constants`, batch axis 1.
        weight: the reader's weight.
        own_axes: output axes the weight makes.
    """
    name = node.outputs[0].name or ""
    facts = target.coupling.facts
    if uniform and node.op_type in ("Conv", "ConvTranspose"):
        levels = constants[0].reshape(constants.shape[1], -1)[:, 0]
        target.add_value(name, _convolved_ones(target, node, levels, weight))
    elif facts.first.shapes[name][1:] == facts.second.shapes[name][1:]:
        target.add_constant(name, contribution, weight.dtype)
    else:
        others = tuple(axis for axis in range(contribution.ndim) if axis not in own_axes)
        target.add_to_output(node, contribution.mean(axis=others, keepdims=True), weight.dtype)


def _convolved_ones(
    target: EditableModel, node: ir.Node, levels: NDArray[np.float64], weight: NDArray[Any]
) -> ir.Value:
    """The node's own convolution over a single channel of ones, with the constants in its taps."""
    editor, output = target.editor, node.outputs[0].name or ""
    transposed, group = node.op_type == "ConvTranspose", node.attributes.get_int("group", 1)
    taps = _summed_taps(levels, weight.astype(np.float64), group, transposed)
    value = editor.add_initializer(f"{output}/constant_taps", taps.astype(weight.dtype))
    axis_labels = target.coupling.tensors[output].axis_labels
    made = [label for label in axis_labels if label.axes == (1,)]
    axis = 1 if transposed else 0
    target.register_constant(value, tuple(AxisLabel((axis,), label.atoms) for label in made))
    attributes = {key: attribute for key, attribute in node.attributes.items() if key != "group"}
    inputs = [_ones(target, node, weight.dtype), value]
    name = f"{output}/constant_part"
    return editor.insert_before(node, node.op_type, inputs, attributes, name=name)


def _summed_taps(
    levels: NDArray[np.float64], weight: NDArray[np.float64], group: int, transposed: bool
) -> NDArray[np.float64]:
    """Sum over input channels of level times taps: [O, 1, *k], or [1, O, *k] transposed."""
    by_group = levels.reshape(group, -1)
    kernel = weight.shape[2:]
    if transposed:
        split = weight.reshape(group, -1, *weight.shape[1:])
        summed = np.einsum("gi,gio...->go...", by_group, split)
        return np.asarray(summed).reshape(1, -1, *kernel)
    split = weight.reshape(group, -1, *weight.shape[1:])
    summed = np.einsum("gi,goi...->go...", by_group, split)
    return np.asarray(summed).reshape(-1, 1, *kernel)


def _ones(target: EditableModel, node: ir.Node, dtype: np.dtype[Any]) -> ir.Value:
    """Ones [1, 1, *spatial] of the size of the node's input, whatever it is at run time."""
    editor, data = target.editor, node.inputs[0]
    assert data is not None
    assert data.name
    facts, output = target.coupling.facts, node.outputs[0].name or ""
    first, second = facts.first.shapes[data.name], facts.second.shapes[data.name]
    base, size = f"{output}/ones", len(first)

    def made(op_type: str, inputs: list[ir.Value], shape: Shapes, **attributes: Any) -> ir.Value:
        value = editor.insert_before(node, op_type, inputs, attributes, name=base)
        target.register_tensor(value.name or "", shape)
        return value

    if first[2:] == second[2:]:
        shape = editor.add_initializer(f"{output}/ones_shape", np.array([1, 1, *first[2:]]))
    else:
        axes = editor.add_initializer(f"{output}/spatial_axes", np.arange(2, size))
        leading = editor.add_initializer(f"{output}/ones_leading", np.array([1, 1]))
        whole = made("Shape", [data], ((size,), (size,)))
        spatial = made("Gather", [whole, axes], ((size - 2,), (size - 2,)))
        shape = made("Concat", [leading, spatial], ((size,), (size,)), axis=0)
    ones = (1, 1, *first[2:]), (1, 1, *second[2:])
    return made("ConstantOfShape", [shape], ones, value=ir.tensor(np.ones(1, dtype)))
