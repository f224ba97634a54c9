"""What a re-solved layer should compute: the original's values, less what others already give.

A layer's output is followed through the additions behind it. With s the other terms of the sum::

    target = (y + s of the original) - (s of the pruned model)

so a branch makes up for what the residual stream has lost before it (METHODS.md 2.2, the
stream-corrected target of Kwon et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Container

    import onnx_ir as ir

__all__ = ["FlatParts", "Sum", "flat_parts", "sum_behind"]


@dataclass(frozen=True)
class Sum:
    """The sum that a layer's output enters.

    Attributes:
        last: the node that ends it: the layer itself, or the last Add.
        others: names of the other terms that are activations.
    """

    last: ir.Node
    others: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the sum."""
        return self.last.outputs[0].name or ""


def sum_behind(layer: ir.Node, known: Container[str], rank: int) -> Sum:
    """Follow the output of a layer through additions.

    Args:
        layer: the layer.
        known: activations that were computed before the layer.
        rank: rank of the layer's output.
    """
    last, others = layer, []
    while True:
        output = last.outputs[0]
        uses = output.uses()
        if len(uses) != 1 or output.is_graph_output():
            break
        add = uses[0].node
        if add.op_type != "Add" or add.domain or add.graph is not layer.graph:
            break
        other = add.inputs[1 - uses[0].idx]
        if other is None or other is output or not other.name:
            break
        if other.is_initializer() or _is_constant(other):
            if other.shape is not None and len(other.shape) > rank:
                break
        elif other.name in known:
            others.append(other.name)
        else:
            break
        last = add
    return Sum(last, tuple(others))


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "Constant"


@dataclass(frozen=True)
class FlatParts:
    """Where an activation function is constant: below `low`, and above `high`."""

    low: float
    high: float


def flat_parts(tensor: ir.Value) -> FlatParts | None:
    """Flat parts of the activation that is the only reader of a tensor; None when it has none."""
    uses = tensor.uses()
    if len(uses) != 1 or tensor.is_graph_output():
        return None
    node = uses[0].node
    if node.op_type == "Relu" and not node.domain:
        return FlatParts(0.0, np.inf)
    if node.op_type == "Clip" and not node.domain:
        low, high = (_bound(node, i + 1, key) for i, key in enumerate(("min", "max")))
        return FlatParts(-np.inf if low is None else low, np.inf if high is None else high)
    return None


def _bound(node: ir.Node, slot: int, key: str) -> float | None:
    if key in node.attributes:
        return node.attributes[key].as_float()
    value = node.inputs[slot] if slot < len(node.inputs) else None
    constant = value.const_value if value is not None else None
    return float(constant.numpy().item()) if constant is not None else None
