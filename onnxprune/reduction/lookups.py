"""Token ids: which inputs are looked up in tables of weights, and by which nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxprune.coupling.step import node_id
from onnxprune.surgery.integers import Editor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from onnxprune.model.observe import Facts

__all__ = ["IdInput", "find_id_inputs", "map_ids", "renumber_comparisons"]

_MOVEMENTS = frozenset(
    {"Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose"}
    | {"Unsqueeze"}
)
_TABLE_MOVEMENTS = frozenset({"Cast", "DequantizeLinear", "Identity", "Reshape", "Transpose"})
_SIZE_READERS = frozenset({"Shape", "Size"})


@dataclass
class IdInput:
    """An integer input and what is done with it.

    Attributes:
        name: of the input.
        lookups: nodes that look it up in a table of weights, with the table's number of rows.
        comparisons: nodes that compare it with one constant number, with that number's input slot.
        others: what else reads its values, as (node, input slot).
    """

    name: str
    lookups: list[tuple[ir.Node, int]] = field(default_factory=list)
    comparisons: list[tuple[ir.Node, int]] = field(default_factory=list)
    others: list[ir.Node] = field(default_factory=list)


def find_id_inputs(model: ir.Model, facts: Facts) -> list[IdInput]:
    """Follow every integer input, through what only moves its values, to what reads them."""
    found = []
    for value in model.graph.inputs:
        kind = facts.first.types.get(value.name or "")
        if kind in (ir.DataType.INT32, ir.DataType.INT64) and not value.is_initializer():
            one = IdInput(value.name or "")
            _follow(value, facts, one)
            found.append(one)
    return found


def map_ids(graph: ir.Graph, lookups: Iterable[ir.Node], table: NDArray[np.int64]) -> None:
    """Let nodes look up `table[id]` instead of the id: a Gather in front of their indices.

    Args:
        graph: changed in place.
        lookups: Gather nodes.
        table: new id of every old one, int64 [old ids].
    """
    editor = Editor(graph)
    mapped: dict[ir.Value, ir.Value] = {}
    literal: ir.Value | None = None
    for node in lookups:
        indices = node.inputs[1]
        assert indices is not None
        if indices not in mapped:
            if literal is None:
                literal = editor.add_initializer(f"{indices.name}/new_ids", table)
            gather = ir.Node("", "Gather", [literal, indices], num_outputs=1)
            gather.outputs[0].name = editor.unique_name(f"{indices.name}/renumbered")
            graph.insert_before(node, gather)
            mapped[indices] = gather.outputs[0]
        node.replace_input_with(1, mapped[indices])


def renumber_comparisons(
    graph: ir.Graph, comparisons: Sequence[tuple[ir.Node, int]], kept: NDArray[np.int64]
) -> None:
    """Compare with the new id of a number; -1, which no id is, for one that is gone."""
    editor = Editor(graph)
    for node, slot in comparisons:
        value = node.inputs[slot]
        tensor = ir.convenience.get_const_tensor(value) if value is not None else None
        assert tensor is not None
        old = tensor.numpy()
        editor.set_literal(node, slot, np.where(np.isin(old, kept), np.searchsorted(kept, old), -1))


def _follow(value: ir.Value, facts: Facts, found: IdInput) -> None:
    seen, waiting = {value}, [value]
    while waiting:
        one = waiting.pop()
        for node, slot in one.uses():
            rows = _table_rows(node, slot, facts)
            if rows is not None:
                found.lookups.append((node, rows))
            elif node.domain == "" and node.op_type in _SIZE_READERS:
                continue
            elif node.op_type == "Equal" and _is_one_number(node.inputs[1 - slot]):
                found.comparisons.append((node, 1 - slot))
            elif node.domain == "" and node.op_type in _MOVEMENTS and slot == 0:
                waiting += [output for output in node.outputs if output not in seen]
                seen |= set(node.outputs)
            else:
                found.others.append(node)
    found.lookups.sort(key=lambda pair: node_id(pair[0]))


def _table_rows(node: ir.Node, slot: int, facts: Facts) -> int | None:
    """Rows of the table of weights that a node looks an input up in; None where it does not."""
    plain = node.op_type == "Gather" and node.domain == "" and slot == 1
    if not plain or node.attributes.get_int("axis", 0) != 0:
        return None
    table = node.inputs[0]
    shape = facts.first.shapes.get(table.name or "", ()) if table is not None else ()
    while table is not None and table.name not in facts.constants:
        maker = table.producer()
        if maker is None or maker.op_type not in _TABLE_MOVEMENTS:
            return None
        table = maker.inputs[0]
    return shape[0] if table is not None and len(shape) > 1 else None


def _is_one_number(value: ir.Value | None) -> bool:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor is not None and tensor.size == 1
