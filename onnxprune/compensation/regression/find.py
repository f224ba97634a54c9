"""The layers of a graph that can be seen as regressions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.compensation.regression.contraction import Contraction
from onnxprune.compensation.regression.convolution import Convolution
from onnxprune.compensation.regression.layers import LinearLayer
from onnxprune.coupling.groups import Reading
from onnxprune.coupling.labels import AxisLabel
from onnxprune.coupling.trace import Coupling
from onnxprune.surgery.linear import LINEAR_OPS

WEIGHT_MOVEMENTS = frozenset({"Transpose", "Identity", "Reshape", "Cast", "Unsqueeze", "Squeeze"})
"""Ops a weight may come through and still be replaced."""


def linear_layer(node: ir.Node, coupling: Coupling, opset: int) -> LinearLayer | None:
    """Describe a node as a regression.

    Args:
        node: any node.
        coupling: labels and shapes of its tensors.
        opset: version of the default domain.

    Returns:
        None for other ops, for products of two activations, and for weights that differ along an
        axis of the rows (a stack of matrices).
    """
    if node.domain or node.op_type not in LINEAR_OPS or len(node.inputs) < 2:
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    constant: list[int] = []
    for slot, value in enumerate((*node.inputs[:2], node.outputs[0])):
        name = value.name or "" if value is not None else ""
        known = coupling.tensors.get(name)
        if known is None or name not in coupling.facts.first.shapes:
            return None
        shapes[name] = coupling.facts.first.shapes[name]
        if slot < 2 and known.constant:
            constant.append(slot)
    if len(constant) != 1:
        return None
    slot = constant[0]
    if node.op_type in ("Conv", "ConvTranspose"):
        return Convolution(node, shapes, opset) if slot == 1 else None
    try:
        return Contraction(node, slot, shapes)
    except ValueError:
        return None


def replaceable_layers(model: ir.Model, coupling: Coupling) -> list[LinearLayer]:
    """Layers whose float weight nothing else reads, in graph order."""
    opset = model.opset_imports.get("", 1)
    found = (linear_layer(node, coupling, opset) for node in model.graph)
    return [layer for layer in found if layer is not None and _owns_weight(layer)]


def reading_unknowns(layer: LinearLayer, reading: Reading) -> NDArray[Any] | None:
    """Unit of each unknown of a layer, -1 for none, [groups, unknowns]; None if rows differ."""
    return layer.unknowns(AxisLabel(reading.axes, reading.units.astype(np.int32)), reading.units)


def _owns_weight(layer: LinearLayer) -> bool:
    value = layer.node.inputs[layer.slot]
    while value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        producer = value.producer()
        if producer is None or producer.op_type == "Constant":
            tensor = ir.convenience.get_const_tensor(value)
            is_float = tensor is not None and tensor.dtype.is_floating_point()
            return is_float and not value.is_graph_input()
        if producer.op_type not in WEIGHT_MOVEMENTS or producer.domain:
            return False
        value = producer.inputs[0]
    return False
