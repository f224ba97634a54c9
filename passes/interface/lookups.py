"""Token ids: the tables they are looked up in, the arithmetic on the way, and new ids for old.

Exporters write more than `Gather(table, ids)`: frameworks that count from the end write
`Where(ids < 0, ids + rows, ids)`, others reserve some rows and look up `ids + 2`. Such arithmetic
is elementwise, so it is known once it has been evaluated for every id.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.model.bodies import node_id, subgraphs
from onnxprune.model.observe import Facts, constant_array
from onnxprune.surgery.editor import Editor

_MOVEMENTS = frozenset(
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
    """How a row number is computed from an id.

    Attributes:
        nodes: that compute it.
        shift: the row of id 0, where the row of every other id follows at its distance and ids
            below 0 have no meaning of their own; None for anything else.
        sizes: (node, input slot) of constants that are the number of rows, from which ids below 0
            count.
    """

    nodes: frozenset[ir.Node]
    shift: int | None
    sizes: tuple[tuple[ir.Node, int], ...] = ()


def arithmetic_of(index: ir.Value, ids: ir.Value, rows: int) -> Arithmetic | None:
    """Evaluate which row of a table every id leads to.

    Args:
        index: what the table is looked up with.
        ids: the input with the ids.
        rows: of the table.

    Returns:
        None when the index depends on anything but these ids and constant numbers.
    """
    trial = _Evaluation(ids, np.arange(-rows, rows))
    trial.of(index)
    near = {number + step for number in trial.constants for step in (-1, 0, 1)}
    numbers = np.array([*range(-rows, rows), *sorted(near - {*range(-rows, rows)})])
    evaluation = _Evaluation(ids, numbers)
    result = evaluation.of(index)
    if result is None or result.order is None:
        return None
    row = np.broadcast_to(result.numbers, numbers.shape).astype(np.int64)
    nodes = frozenset(evaluation.nodes)
    shift = int(row[rows])
    if 0 <= shift < rows and (row == numbers + shift).all():
        return Arithmetic(nodes, shift)
    if (row == np.where(numbers < 0, numbers + rows, numbers)).all():
        return Arithmetic(nodes, 0, tuple(_added_constants(evaluation.nodes, rows)))
    return Arithmetic(nodes, None)


def _one_number(value: ir.Value | None) -> NDArray[Any] | None:
    """The constant number that a value is; None for everything else."""
    array = constant_array(value)
    return array.reshape(()) if array is not None and array.size == 1 else None


@dataclass(frozen=True)
class _Result:
    """What a tensor holds for every id.

    Attributes:
        numbers: one for each id, or one for all.
        order: the nodes that moved the ids; None for a constant.
    """

    numbers: NDArray[Any]
    order: tuple[ir.Node, ...] | None


class _Evaluation:
    """Evaluates tensors for ids, and notes nodes and whole constants on the way."""

    def __init__(self, ids: ir.Value, numbers: NDArray[np.int64]) -> None:
        self.nodes: dict[ir.Node, None] = {}
        self.constants: set[int] = set()
        self._known: dict[ir.Value, _Result | None] = {ids: _Result(numbers, ())}

    def of(self, value: ir.Value) -> _Result | None:
        """What a tensor holds; None when that is not known."""
        if value not in self._known:
            constant = _one_number(value)
            node = value.producer()
            if constant is not None:
                self.constants |= {int(constant)} if np.isfinite(constant) else set()
                self._known[value] = _Result(constant, None)
            else:
                self._known[value] = self._computed(node) if node is not None else None
        return self._known[value]

    def _computed(self, node: ir.Node) -> _Result | None:
        inputs = [value for value in node.inputs if value is not None]
        if node.domain != "" or not inputs or len(inputs) < len(node.inputs):
            return None
        if node.op_type in _MOVEMENTS:
            moved = self.of(inputs[0])
            if moved is None or moved.order is None:
                return moved
            self.nodes[node] = None
            return _Result(moved.numbers, (*moved.order, node))
        signature = node.op_type, len(node.inputs)
        compute = _cast(node) if node.op_type == "Cast" else _FUNCTIONS.get(signature)
        if compute is None:
            return None
        operands = [operand for value in inputs if (operand := self.of(value)) is not None]
        orders = {operand.order for operand in operands if operand.order is not None}
        if len(operands) < len(inputs) or len(orders) > 1:
            return None
        self.nodes[node] = None
        order = orders.pop() if orders else None
        return _Result(compute(*(operand.numbers for operand in operands)), order)


def _cast(node: ir.Node) -> Callable[..., Any]:
    dtype = ir.DataType(node.attributes.get_int("to", ir.DataType.INT64)).numpy()
    return lambda numbers: numbers.astype(dtype)


def _added_constants(nodes: Mapping[ir.Node, None], wanted: int) -> list[tuple[ir.Node, int]]:
    """Node and slot of the constants of a value that nodes add."""
    return [
        (node, slot)
        for node in nodes
        if node.op_type == "Add"
        for slot, value in enumerate(node.inputs)
        if _one_number(value) is not None and _one_number(value) == wanted
    ]


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
"""Comparisons and slots of the number that separate the ids up to the number from those above."""

_NO_ID = -(2**31)


@dataclass(frozen=True)
class Lookup:
    """A node that looks ids up in a table of weights.

    Attributes:
        node: the node.
        index_slot: input slot of the row numbers.
        table_slot: input slot of the table.
        rows: of the table.
        arithmetic: how a row number is computed from an id.
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
        ordered: whether a node depends on the order of the ids, as ArgMax does.
        others: what else uses its values, for messages.
    """

    name: str
    lookups: tuple[Lookup, ...]
    comparisons: tuple[tuple[ir.Node, int], ...]
    ordered: bool
    others: tuple[str, ...]


def find_id_inputs(model: ir.Model, facts: Facts) -> list[IdInput]:
    """Follow every integer input to the tables it is looked up in, and to its other consumers."""
    return [
        _followed(value, model.graph, facts)
        for value in model.graph.inputs
        if facts.first.types.get(value.name or "") in (ir.DataType.INT32, ir.DataType.INT64)
        and not value.is_initializer()
    ]


def map_ids(graph: ir.Graph, lookups: Iterable[Lookup], table: NDArray[np.int64]) -> None:
    """Make nodes look up `table[row]` instead of the row: a Gather before their indices.

    Args:
        graph: changed in place.
        lookups: the nodes that look up.
        table: new row of every old one, int64 [old rows].
    """
    editor = Editor(graph)
    mapped: dict[ir.Value, ir.Value] = {}
    for lookup in lookups:
        index = lookup.node.inputs[lookup.index_slot]
        assert index is not None
        if index not in mapped:
            # EmbedLayerNormalization takes int32 only
            dtype = np.int64 if lookup.op == "Gather" else np.int32
            literal = editor.add_initializer(f"{index.name}/new_rows", table.astype(dtype))
            gather = ir.Node("", "Gather", [literal, index], num_outputs=1)
            gather.outputs[0].name = editor.unique_name(f"{index.name}/renumbered")
            graph.insert_before(lookup.node, gather)
            mapped[index] = gather.outputs[0]
        lookup.node.replace_input_with(lookup.index_slot, mapped[index])


def renumber(
    graph: ir.Graph, inputs: Iterable[IdInput], kept: NDArray[np.int64], size: int
) -> None:
    """Renumber the constants that ids are compared with or counted from.

    New ids are in the order of the old ones, so a comparison gives the same result with the nearest
    kept id, and one for equality with the new id of the number or, where that is removed, with a
    number that is no id. Ids below 0 count from the new number of rows.

    Args:
        graph: changed in place.
        inputs: the ids.
        kept: ids that stay, ascending.
        size: how many there were.
    """
    editor = Editor(graph)
    for ids in inputs:
        for node, slot in ids.comparisons:
            old = constant_array(node.inputs[slot])
            assert old is not None
            editor.set_literal(node, slot, _compared(node.op_type, slot, old, kept, size))
        sizes = (place for lookup in ids.lookups for place in lookup.arithmetic.sizes)
        for node, slot in dict.fromkeys(sizes):
            old = constant_array(node.inputs[slot])
            assert old is not None
            editor.set_literal(node, slot, np.full(old.shape, len(kept)))


def _compared(
    op: str, slot: int, old: NDArray[Any], kept: NDArray[np.int64], size: int
) -> NDArray[Any]:
    """What new ids are compared with, for the numbers that old ids were compared with."""
    if op == "Equal":
        new = np.where(np.isin(old, kept), np.searchsorted(kept, old), _NO_ID)
    elif (op, slot) in _FROM_ABOVE:
        new = np.searchsorted(kept, old, side="right") - 1
    else:
        new = np.searchsorted(kept, old, side="left")
    return np.where((old >= 0) & (old < size), new, old)


def _followed(ids: ir.Value, graph: ir.Graph, facts: Facts) -> IdInput:
    lookups = tuple(_lookups(ids, graph, facts))
    arithmetic = frozenset().union(*(lookup.arithmetic.nodes for lookup in lookups))
    indices = {(lookup.node, lookup.index_slot) for lookup in lookups}
    comparisons, others, ordered = [], [], False
    seen, waiting = {ids}, [ids]
    while waiting:
        value = waiting.pop()
        if value.is_graph_output():
            others.append(f"output {value.name!r}")
        for node, slot in value.uses():
            plain = node.domain == ""
            if (node, slot) in indices or (plain and node.op_type in _SIZE_READERS):
                continue
            if plain and node.op_type in _ORDER_READERS:
                ordered = True
            elif node in arithmetic or (plain and slot == 0 and _only_moves(node)):
                waiting += [output for output in node.outputs if output not in seen]
                seen |= set(node.outputs)
            elif node.op_type in _COMPARISONS and constant_array(node.inputs[1 - slot]) is not None:
                comparisons.append((node, 1 - slot))
            else:
                others.append(f"{node.op_type} {node.name or node_id(node)}")
    return IdInput(ids.name or "", lookups, tuple(comparisons), ordered, tuple(others))


def _only_moves(node: ir.Node) -> bool:
    return node.op_type in _MOVEMENTS | {"Cast", "Identity"}


def _lookups(ids: ir.Value, graph: ir.Graph, facts: Facts) -> Iterator[Lookup]:
    """Nodes whose row numbers depend on an input alone."""
    weights = _constant_names(graph, facts)
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
    # a list of whole numbers describes ids, it is no weight
    kind = facts.first.types.get(name, ir.DataType.UNDEFINED)
    describes_ids = len(shape) == 1 and not kind.is_floating_point()
    return None if describes_ids or name not in weights else shape[0]


def _constant_names(graph: ir.Graph, facts: Facts) -> frozenset[str]:
    """Names of constants, and of what is computed from them alone."""
    names = set(facts.constants)
    for node in graph:
        inputs = [value.name for value in node.inputs if value is not None]
        if inputs and names.issuperset(inputs) and not subgraphs(node):
            names |= {value.name for value in node.outputs if value.name}
    return frozenset(names)
