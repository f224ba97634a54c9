"""Token ids: which inputs are looked up in tables of weights, and by which nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxprune.coupling.bodies import subgraphs
from onnxprune.coupling.step import node_id
from onnxprune.reduction.id_arithmetic import MOVEMENTS, arithmetic_of
from onnxprune.surgery.integers import Editor

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from onnxprune.model.observe import Facts
    from onnxprune.reduction.id_arithmetic import Arithmetic

__all__ = ["IdInput", "Lookup", "find_id_inputs", "map_ids", "renumber"]

_TABLES: Mapping[tuple[str, str], Mapping[int, int]] = {
    ("", "Gather"): {1: 0},
    ("com.microsoft", "EmbedLayerNormalization"): {0: 2, 1: 4, 8: 3},
    ("com.microsoft", "QEmbedLayerNormalization"): {0: 2, 1: 4},
}
"""(domain, op type) -> input slot of the ids -> input slot of the table they are looked up in."""

_SIZE_READERS = frozenset({"Shape", "Size"})
_ORDER_READERS = frozenset({"ArgMax", "ArgMin"})
_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_FROM_ABOVE = frozenset({("Greater", 1), ("LessOrEqual", 1), ("Less", 0), ("GreaterOrEqual", 0)})
"""Comparisons, with the slot of the number, that part the ids up to the number from those above."""

_NO_ID = -(2**31)


@dataclass(frozen=True)
class Lookup:
    """A node that looks ids up in a table of weights.

    Attributes:
        node: the node.
        index_slot: input slot of the row numbers.
        table_slot: input slot of the table.
        rows: of the table.
        arithmetic: how a row number is worked out from an id.
    """

    node: ir.Node
    index_slot: int
    table_slot: int
    rows: int
    arithmetic: Arithmetic

    @property
    def op(self) -> str:
        """Op type of the node."""
        return self.node.op_type

    @property
    def table(self) -> str:
        """Name of the table."""
        value = self.node.inputs[self.table_slot]
        return (value.name or "") if value is not None else ""


@dataclass(frozen=True)
class IdInput:
    """An integer input and what is done with it.

    Attributes:
        name: of the input.
        lookups: nodes that look it up.
        comparisons: nodes that compare it with constant numbers, with the input slot of these.
        ordered: whether something reads which ids are above which.
        others: what else uses its values, in words.
    """

    name: str
    lookups: tuple[Lookup, ...]
    comparisons: tuple[tuple[ir.Node, int], ...]
    ordered: bool
    others: tuple[str, ...]


def find_id_inputs(model: ir.Model, facts: Facts) -> list[IdInput]:
    """Follow every integer input to the tables it is looked up in, and to its other readers."""
    return [
        _followed(value, model.graph, facts)
        for value in model.graph.inputs
        if facts.first.types.get(value.name or "") in (ir.DataType.INT32, ir.DataType.INT64)
        and not value.is_initializer()
    ]


def map_ids(graph: ir.Graph, lookups: Iterable[Lookup], table: NDArray[np.int64]) -> None:
    """Let nodes look up `table[row]` instead of the row: a Gather in front of their indices.

    Args:
        graph: changed in place.
        lookups: what looks up.
        table: new row of every old one, int64 [old rows].
    """
    editor = Editor(graph)
    mapped: dict[ir.Value, ir.Value] = {}
    for one in lookups:
        index = one.node.inputs[one.index_slot]
        assert index is not None
        if index not in mapped:
            # EmbedLayerNormalization takes int32 alone
            dtype = np.int64 if one.op == "Gather" else np.int32
            literal = editor.add_initializer(f"{index.name}/new_rows", table.astype(dtype))
            gather = ir.Node("", "Gather", [literal, index], num_outputs=1)
            gather.outputs[0].name = editor.unique_name(f"{index.name}/renumbered")
            graph.insert_before(one.node, gather)
            mapped[index] = gather.outputs[0]
        one.node.replace_input_with(one.index_slot, mapped[index])


def renumber(
    graph: ir.Graph, inputs: Iterable[IdInput], kept: NDArray[np.int64], size: int
) -> None:
    """Give constants that ids meet the numbers they have among the ids that are kept.

    New ids are in the order of the old ones. So a comparison comes out as before when it is with
    the nearest kept id, and one for equality when it is with the new id of a number; where that
    is gone, with a number that no id is. Ids below 0 count from the new number of rows.

    Args:
        graph: changed in place.
        inputs: the ids.
        kept: ids that stay, ascending.
        size: how many there were.
    """
    editor = Editor(graph)
    for one in inputs:
        for node, slot in one.comparisons:
            old = _constant(node.inputs[slot])
            assert old is not None
            editor.set_literal(node, slot, _compared(node.op_type, slot, old, kept, size))
        for node, slot in dict.fromkeys(
            pair for each in one.lookups for pair in each.arithmetic.sizes
        ):
            old = _constant(node.inputs[slot])
            assert old is not None
            editor.set_literal(node, slot, np.full(old.shape, len(kept)))


def _compared(
    op: str, slot: int, old: NDArray[Any], kept: NDArray[np.int64], size: int
) -> NDArray[Any]:
    """What new ids are to be compared with, in place of the numbers that the old ones were."""
    if op == "Equal":
        new = np.where(np.isin(old, kept), np.searchsorted(kept, old), _NO_ID)
    elif (op, slot) in _FROM_ABOVE:
        new = np.searchsorted(kept, old, side="right") - 1
    else:
        new = np.searchsorted(kept, old, side="left")
    return np.where((old >= 0) & (old < size), new, old)


def _followed(ids: ir.Value, graph: ir.Graph, facts: Facts) -> IdInput:
    lookups = tuple(_lookups(ids, graph, facts))
    working = frozenset().union(*(one.arithmetic.nodes for one in lookups))
    looking_up = {(one.node, one.index_slot) for one in lookups}
    comparisons, others, ordered = [], [], False
    seen, waiting = {ids}, [ids]
    while waiting:
        value = waiting.pop()
        if value.is_graph_output():
            others.append(f"output {value.name!r}")
        for node, slot in value.uses():
            plain = node.domain == ""
            if (node, slot) in looking_up or (plain and node.op_type in _SIZE_READERS):
                continue
            if plain and node.op_type in _ORDER_READERS:
                ordered = True
            elif node in working or (plain and slot == 0 and _only_moves(node)):
                waiting += [output for output in node.outputs if output not in seen]
                seen |= set(node.outputs)
            elif node.op_type in _COMPARISONS and _constant(node.inputs[1 - slot]) is not None:
                comparisons.append((node, 1 - slot))
            else:
                others.append(f"{node.op_type} {node.name or node_id(node)}")
    return IdInput(ids.name or "", lookups, tuple(comparisons), ordered, tuple(others))


def _only_moves(node: ir.Node) -> bool:
    return node.op_type in MOVEMENTS | {"Cast", "Identity"}


def _lookups(ids: ir.Value, graph: ir.Graph, facts: Facts) -> Iterator[Lookup]:
    """Nodes whose row numbers are worked out from an input alone."""
    weights = _worked_out(graph, facts)
    for node in graph:
        for index_slot, table_slot in _TABLES.get((node.domain, node.op_type), {}).items():
            index = node.inputs[index_slot] if index_slot < len(node.inputs) else None
            rows = _table_rows(node, table_slot, weights, facts)
            if index is None or rows is None:
                continue
            arithmetic = arithmetic_of(index, ids, rows)
            if arithmetic is not None:
                yield Lookup(node, index_slot, table_slot, rows, arithmetic)


def _table_rows(node: ir.Node, slot: int, weights: Container[str], facts: Facts) -> int | None:
    """Rows of the table of weights at an input slot; None where there is no such table."""
    table = node.inputs[slot] if slot < len(node.inputs) else None
    name = table.name or "" if table is not None else ""
    shape = facts.first.shapes.get(name, ())
    if table is None or not shape or node.attributes.get_int("axis", 0) % len(shape) != 0:
        return None
    # a list of whole numbers says something about ids, it is no weight
    counted = len(shape) == 1 and not _is_real(name, facts)
    return None if counted or name not in weights else shape[0]


def _is_real(name: str, facts: Facts) -> bool:
    return facts.first.types.get(name, ir.DataType.UNDEFINED).is_floating_point()


def _worked_out(graph: ir.Graph, facts: Facts) -> frozenset[str]:
    """Constants, and what is worked out from them alone."""
    found = set(facts.constants)
    for node in graph:
        given = [value.name for value in node.inputs if value is not None]
        if given and found.issuperset(given) and not subgraphs(node):
            found |= {value.name for value in node.outputs if value.name}
    return frozenset(found)


def _constant(value: ir.Value | None) -> NDArray[Any] | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor.numpy() if tensor is not None else None
