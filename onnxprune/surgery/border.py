"""Adding back exactly what constant channels gave a reader, zero-padded borders included."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.coupling.labels import AxisLabel
from onnxprune.coupling.step import Consumer
from onnxprune.surgery.editable_model import EditableModel

SMALL_MAP = 16_384
"""Elements of a constant map that may always be added, whatever it saves."""


def add_border_exact_constant(
    target: EditableModel,
    node: ir.Node,
    consumer: Consumer,
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
        consumer: its coupling record.
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
        target.add_value(name, _convolved_ones(target, node, levels, weight, consumer.group))
    elif facts.first.shapes[name][1:] == facts.second.shapes[name][1:]:
        target.add_constant(name, contribution, weight.dtype)
    else:
        others = tuple(axis for axis in range(contribution.ndim) if axis not in own_axes)
        target.add_to_output(node, contribution.mean(axis=others, keepdims=True), weight.dtype)


def _convolved_ones(
    target: EditableModel,
    node: ir.Node,
    levels: NDArray[np.float64],
    weight: NDArray[Any],
    group: int,
) -> ir.Value:
    """The node's own convolution over a single channel of ones, with the constants in its taps."""
    editor, output = target.editor, node.outputs[0].name or ""
    transposed = node.op_type == "ConvTranspose"
    taps = _summed_taps(levels, weight.astype(np.float64), group, transposed)
    value = editor.add_initializer(f"{output}/constant_taps", taps.astype(weight.dtype))
    made = [one for one in target.coupling.tensors[output].axis_labels if one.axes == (1,)]
    axis = 1 if transposed else 0
    target.register_constant(value, tuple(AxisLabel((axis,), one.atoms) for one in made))
    attributes = [a for key, a in node.attributes.items() if key != "group"]
    ones = _ones(target, node, weight.dtype)
    conv = ir.Node("", node.op_type, [ones, value], attributes, num_outputs=1)
    conv.outputs[0].name = editor.unique_name(f"{output}/constant_part")
    editor.graph.insert_before(node, conv)
    return conv.outputs[0]


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
    one = ir.tensor(np.ones(1, dtype))
    if first[2:] == second[2:]:
        shape = editor.add_initializer(f"{output}/ones_shape", np.array([1, 1, *first[2:]]))
        nodes: list[ir.Node] = []
    else:
        whole = ir.Node("", "Shape", [data], num_outputs=1)
        axes = editor.add_initializer(f"{output}/spatial_axes", np.arange(2, len(first)))
        spatial = ir.Node("", "Gather", [whole.outputs[0], axes], num_outputs=1)
        leading = editor.add_initializer(f"{output}/ones_leading", np.array([1, 1]))
        joined = ir.Node(
            "", "Concat", [leading, spatial.outputs[0]], [ir.AttrInt64("axis", 0)], num_outputs=1
        )
        nodes, shape = [whole, spatial, joined], joined.outputs[0]
    filled = ir.Node("", "ConstantOfShape", [shape], [ir.AttrTensor("value", one)], num_outputs=1)
    editor.graph.insert_before(node, [*nodes, filled])
    vectors = [((n,), (n,)) for n in (len(first), len(first) - 2, len(first))][: len(nodes)]
    shapes = [*vectors, ((1, 1, *first[2:]), (1, 1, *second[2:]))]
    for made, pair in zip([*nodes, filled], shapes, strict=True):
        made.outputs[0].name = editor.unique_name(f"{output}/ones")
        target.register_tensor(made.outputs[0].name, pair)
    return filled.outputs[0]
