"""What a graph makes of a token id before it is looked up.

Exporters write more than `Gather(table, ids)`: frameworks that count from the end write
`Where(ids < 0, ids + rows, ids)`, others keep some rows for themselves and look up `ids + 2`. Such
arithmetic treats every id alike, so that it is known once it has been worked out for each id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

__all__ = ["MOVEMENTS", "Arithmetic", "arithmetic_of"]

MOVEMENTS = frozenset(
    {"Expand", "Flatten", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Ops that move ids and leave their values as they are."""

_FUNCTIONS: Mapping[tuple[str, int], Callable[..., Any]] = {
    ("Abs", 1): np.abs,
    ("Add", 2): np.add,
    ("And", 2): np.logical_and,
    ("Clip", 3): np.clip,
    ("Equal", 2): np.equal,
    ("Greater", 2): np.greater,
    ("GreaterOrEqual", 2): np.greater_equal,
    ("Identity", 1): np.asarray,
    ("Less", 2): np.less,
    ("LessOrEqual", 2): np.less_equal,
    ("Max", 2): np.maximum,
    ("Min", 2): np.minimum,
    ("Mul", 2): np.multiply,
    ("Not", 1): np.logical_not,
    ("Or", 2): np.logical_or,
    ("Sub", 2): np.subtract,
    ("Where", 3): np.where,
}
"""Op type and number of inputs -> what it computes."""


@dataclass(frozen=True)
class Arithmetic:
    """How a row number is worked out from an id.

    Attributes:
        nodes: that do it.
        shift: the row of id 0, where the row of every other id follows at its distance and ids
            below 0 have no meaning of their own; None for anything else.
        sizes: (node, input slot) of constants that are the number of rows, which ids below 0 are
            counted from.
    """

    nodes: frozenset[ir.Node]
    shift: int | None
    sizes: tuple[tuple[ir.Node, int], ...] = ()


def arithmetic_of(index: ir.Value, ids: ir.Value, rows: int) -> Arithmetic | None:
    """Work out which row of a table every id leads to.

    Args:
        index: what the table is looked up with.
        ids: the input with the ids.
        rows: of the table.

    Returns:
        None when the index is made of other things than these ids and constant numbers.
    """
    trial = _Work(ids, np.arange(-rows, rows))
    trial.of(index)
    outside = {one + step for one in trial.constants for step in (-1, 0, 1)} - {*range(-rows, rows)}
    numbers = np.array([*range(-rows, rows), *sorted(outside)])
    work = _Work(ids, numbers)
    found = work.of(index)
    if found is None or found.order is None:
        return None
    made = np.broadcast_to(found.numbers, numbers.shape).astype(np.int64)
    nodes = frozenset(work.nodes)
    shift = int(made[rows])
    if 0 <= shift < rows and (made == numbers + shift).all():
        return Arithmetic(nodes, shift)
    if (made == np.where(numbers < 0, numbers + rows, numbers)).all():
        return Arithmetic(nodes, 0, tuple(_constants_of_value(work.nodes, rows)))
    return Arithmetic(nodes, None)


def _one_number(value: ir.Value | None) -> NDArray[Any] | None:
    """The constant number that a value is; None for everything else."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor.numpy().reshape(()) if tensor is not None and tensor.size == 1 else None


@dataclass(frozen=True)
class _Worked:
    """What a tensor holds for every id.

    Attributes:
        numbers: one for each id, or one for all.
        order: the nodes that moved the ids; None for a constant.
    """

    numbers: NDArray[Any]
    order: tuple[ir.Node, ...] | None


class _Work:
    """Works tensors out from ids, and notes nodes and whole constants on the way."""

    def __init__(self, ids: ir.Value, numbers: NDArray[np.int64]) -> None:
        self.nodes: dict[ir.Node, None] = {}
        self.constants: set[int] = set()
        self._known: dict[ir.Value, _Worked | None] = {ids: _Worked(numbers, ())}

    def of(self, value: ir.Value) -> _Worked | None:
        """What a tensor holds; None when that is not known."""
        if value not in self._known:
            constant = _one_number(value)
            node = value.producer()
            if constant is not None:
                self.constants |= {int(constant)} if np.isfinite(constant) else set()
                self._known[value] = _Worked(constant, None)
            else:
                self._known[value] = self._made(node) if node is not None else None
        return self._known[value]

    def _made(self, node: ir.Node) -> _Worked | None:
        given = [value for value in node.inputs if value is not None]
        if node.domain != "" or not given or len(given) < len(node.inputs):
            return None
        if node.op_type in MOVEMENTS:
            moved = self.of(given[0])
            if moved is None or moved.order is None:
                return moved
            self.nodes[node] = None
            return _Worked(moved.numbers, (*moved.order, node))
        compute = _cast(node) if node.op_type == "Cast" else _FUNCTIONS.get(_form(node))
        if compute is None:
            return None
        operands = [self.of(value) for value in given]
        known = [one for one in operands if one is not None]
        orders = {one.order for one in known if one.order is not None}
        if len(known) < len(operands) or len(orders) > 1:
            return None
        self.nodes[node] = None
        order = orders.pop() if orders else None
        return _Worked(compute(*(one.numbers for one in known)), order)


def _form(node: ir.Node) -> tuple[str, int]:
    return node.op_type, len(node.inputs)


def _cast(node: ir.Node) -> Callable[..., Any]:
    dtype = ir.DataType(node.attributes.get_int("to", ir.DataType.INT64)).numpy()
    return lambda numbers: numbers.astype(dtype)


def _constants_of_value(nodes: Mapping[ir.Node, None], wanted: int) -> list[tuple[ir.Node, int]]:
    """Where nodes add a constant number."""
    return [
        (node, slot)
        for node in nodes
        if node.op_type == "Add"
        for slot, value in enumerate(node.inputs)
        if _one_number(value) is not None and _one_number(value) == wanted
    ]
