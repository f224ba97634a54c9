"""What a re-solved layer should compute: the original's values, less what others already give.

A layer's output is followed through the additions behind it. With s the other terms of the sum::

    target = (y + s of the original) - (s of the pruned model)

so a branch makes up for what the residual stream has lost before it (the stream-corrected
target of Kwon et al. 2022).
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxprune.model.observe import constant_array


@dataclass(frozen=True)
class Sum:
    """The sum that a layer's output enters.

    Attributes:
        last: the node that ends it: the layer itself, or the last Add.
        others: names of the other terms that are activations.
        constants: the other terms that are constants, each the same in every row.
    """

    last: ir.Node
    others: tuple[str, ...]
    constants: tuple[ir.Value, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        """Name of the sum."""
        return self.last.outputs[0].name or ""


def sum_behind(
    layer: ir.Node,
    known: Container[str],
    rank: int,
    shapes: Mapping[str, Sequence[int]] | None = None,
    axes: Collection[int] | None = None,
) -> Sum:
    """Follow the output of a layer through additions that do not spread it over more rows.

    A constant that differs between rows (an embedding of positions) ends the sum: as a part of the
    target the layer would learn it, and it would be added once more.

    Args:
        layer: the layer.
        known: activations that were computed before the layer.
        rank: rank of the layer's output.
        shapes: traced shapes by name; without them sums of any shape are followed.
        axes: axes of the layer's output along which constants may differ; None for all.
    """
    last, others, constants = layer, [], []
    own = _shape(layer, shapes)
    while True:
        output = last.outputs[0]
        use = _only_use(output)
        if use is None:
            break
        add, slot = use
        if add.op_type != "Add" or add.domain or add.graph is not layer.graph:
            break
        if _shape(add, shapes) != own:
            break
        other = add.inputs[1 - slot]
        if other is None or not other.name:
            break
        if other.is_initializer() or _is_constant(other):
            if other.shape is not None and not _fits(other.shape, rank, axes):
                break
            constants.append(other)
        elif other.name in known:
            others.append(other.name)
        else:
            break
        last = add
    return Sum(last, tuple(others), tuple(constants))


def _fits(shape: ir.Shape, rank: int, axes: Collection[int] | None) -> bool:
    """Whether a constant adds the same to every row."""
    first = rank - len(shape)
    long = {first + axis for axis, extent in enumerate(shape) if extent != 1}
    return first >= 0 and (axes is None or long <= set(axes))


def _shape(node: ir.Node, shapes: Mapping[str, Sequence[int]] | None) -> list[int]:
    return list((shapes or {}).get(node.outputs[0].name or "", ()))


def _only_use(value: ir.Value) -> tuple[ir.Node, int] | None:
    """The node and input slot that read a value, if nothing else does."""
    uses = list(value.uses())
    return (uses[0].node, uses[0].idx) if len(uses) == 1 and not value.is_graph_output() else None


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
    use = _only_use(tensor)
    if use is None:
        return None
    node, slot = use
    if slot or node.domain:
        return None
    if node.op_type == "Relu":
        return FlatParts(0.0, np.inf)
    if node.op_type == "Clip":
        low, high = (_bound(node, i + 1, key) for i, key in enumerate(("min", "max")))
        if low is not None or high is not None:
            return FlatParts(-np.inf if low is None else low, np.inf if high is None else high)
    return None


def _bound(node: ir.Node, slot: int, key: str) -> float | None:
    if key in node.attributes:
        return node.attributes[key].as_float()
    value = node.inputs[slot] if slot < len(node.inputs) else None
    constant = constant_array(value)
    return float(constant.item()) if constant is not None else None
