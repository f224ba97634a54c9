"""Nodes that read all entries of an axis at once: Softmax, ReduceMax, ArgMax and their like."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.coupling.cut import Cut
from onnxprune.coupling.cuttable_interface import (
    picks_among,
    reads_all,
    reduces_among,
    suppresses_among,
)
from onnxprune.coupling.step import Step
from onnxprune.errors import NothingPrunable
from onnxprune.model.observe import Facts, constant_array
from onnxprune.surgery.editor import Editor
from onnxprune.surgery.linear import LINEAR_OPS

_SUPPRESSION = "NonMaxSuppression"
_PICKERS = frozenset({"ArgMax", "ArgMin", "TopK", _SUPPRESSION})
_EXTREMES = frozenset({"ReduceMax", "ReduceMin"})
_NORMALISERS = frozenset({"Softmax", "LogSoftmax", "Hardmax"})
_WEIGHING = LINEAR_OPS | {"Attention", "GRU", "LSTM", "RNN", "MatMulInteger", "QLinearMatMul"}


def whole_axis_readers(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes that may run over the rest of an axis without changing the meaning of their result.

    ArgMax and its like always may; Softmax, also as sum of exponentials, and ReduceMax may where
    nothing after them multiplies their results with weights: the shares would be others.
    """
    for node in graph:
        among = node.domain == "" and node.op_type in _NORMALISERS | _EXTREMES
        among = among or _sums_exponentials(node)
        if _is_picker(node) or (among and not _is_weighed(node)):
            yield node


def rule_among(node: ir.Node) -> Callable[[Step], None]:
    """Coupling rule of one of `whole_axis_readers`."""
    if node.op_type == _SUPPRESSION:
        return suppresses_among
    if node.op_type in _PICKERS:
        return picks_among
    return reads_all if node.op_type in _NORMALISERS else reduces_among


def cut_readers(graph: ir.Graph, cut: Cut) -> list[ir.Node]:
    """Those of `whole_axis_readers` that read a tensor which loses entries."""
    return [node for node in whole_axis_readers(graph) if cut.touches(_read(node).name or "")]


def axes_picked_along(graph: ir.Graph, facts: Facts) -> dict[str, int]:
    """Tensors along an axis of which a node returns positions, with that axis."""
    shapes = facts.first.shapes
    names = {node: _read(node).name or "" for node in graph if _is_picker(node)}
    return {
        name: _picked_axis(node, len(shapes[name]))
        for node, name in names.items()
        if name in shapes
    }


def common_positions(cut: Cut, name: str, axis: int) -> NDArray[np.int64] | None:
    """Positions of an axis that stay, in every row of the axes around it; None where all do.

    Raises:
        NothingPrunable: when they differ from row to row.
    """
    rows = cut.positions(name, axis)
    if rows is None:
        return None
    if (rows != rows[0]).any():
        raise NothingPrunable(
            f"what would stay along axis {axis} of {name!r} differs from row to row"
        )
    return np.flatnonzero(rows[0])


def picked_positions(node: ir.Node, cut: Cut) -> NDArray[np.int64] | None:
    """Remaining positions that a node picks among; None where it returns none or all remain.

    Raises:
        NothingPrunable: when they differ from row to row, or depend on the size of the input.
    """
    if node.op_type not in _PICKERS:
        return None
    name, facts = _read(node).name or "", cut.coupling.facts
    axis = _picked_axis(node, len(facts.first.shapes[name]))
    kept = common_positions(cut, name, axis)
    if kept is not None and facts.first.shapes[name][axis] != facts.second.shapes[name][axis]:
        raise NothingPrunable(
            f"{node.op_type} {node.name or node.outputs[0].name} returns positions along an axis "
            "whose length depends on the input; they cannot be mapped to the old ones"
        )
    return kept


def mask_removed(graph: ir.Graph, node: ir.Node, cut: Cut) -> None:
    """Give removed entries a value that loses every comparison, or adds nothing to a sum.

    Args:
        graph: changed in place.
        node: one of `whole_axis_readers`.
        cut: what is removed.
    """
    value = _read(node)
    name = value.name or ""
    labels = cut.coupling.tensors[name]
    alive = np.ones([1] * len(labels.shape), bool)
    for label in labels.axis_labels:
        kept = cut.alive(label).transpose(np.argsort(label.axes))
        if not kept.all():
            extents = [n if a in label.axes else 1 for a, n in enumerate(labels.shape)]
            alive = alive & kept.reshape(extents)
    for axis in range(alive.ndim):  # a mask that does not depend on an axis fits any length
        same = alive.take([0], axis)
        alive = same if (alive == same).all() else alive
    smallest = node.op_type in ("ArgMin", "ReduceMin") or (
        node.op_type == "TopK" and node.attributes.get_int("largest", 1) == 0
    )
    editor = Editor(graph)
    dtype = cut.coupling.facts.first.types[name].numpy()
    losing = np.inf if smallest else -np.inf
    worst = np.array(0 if _sums_exponentials(node) else losing, dtype)
    base = f"{node.outputs[0].name}/excluded"
    mask, literal = (editor.add_initializer(base, array) for array in (alive, worst))
    where = ir.Node("", "Where", [mask, value, literal], num_outputs=1)
    where.outputs[0].name = editor.unique_name(base)
    graph.insert_before(node, where)
    node.replace_input_with(_read_slot(node), where.outputs[0])
    if node.op_type == _SUPPRESSION and (len(node.inputs) < 5 or node.inputs[4] is None):
        # without a threshold, NonMaxSuppression returns what no score is lower than
        node.resize_inputs(5)
        lowest = np.array([np.finfo(np.float32).min], np.float32)
        node.replace_input_with(4, editor.add_initializer(f"{base}_threshold", lowest))


def map_picked(graph: ir.Graph, node: ir.Node, kept: NDArray[np.int64]) -> None:
    """Map positions among the entries that stay to the old ones: a Gather after the node.

    Args:
        graph: changed in place.
        node: ArgMax, ArgMin or TopK along the axis that lost entries.
        kept: the entries that stay.

    Raises:
        NothingPrunable: when a TopK returns more entries than remain.
    """
    picked = node.outputs[1 if node.op_type == "TopK" else 0]
    if node.op_type == "TopK":
        count = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
        wanted = node.attributes.get_int("k", 0) if count is None else int(count.item())
        if wanted > len(kept):
            raise NothingPrunable(
                f"TopK {node.name or picked.name} gives {wanted} of {len(kept)} entries; keep more"
            )
    if not picked.name:
        return
    editor = Editor(graph)
    table = editor.add_initializer(f"{picked.name}/kept", kept)
    nodes = (
        _columns_mapped(editor, picked, table)
        if node.op_type == _SUPPRESSION
        else [ir.Node("", "Gather", [table, picked], num_outputs=1)]
    )
    mapped = nodes[-1].outputs[0]
    mapped.type, mapped.shape = picked.type, picked.shape
    graph.insert_after(node, nodes)
    for consumer, slot in [use for use in picked.uses() if use.node not in nodes]:
        consumer.replace_input_with(slot, mapped)
    for slot, value in enumerate(graph.outputs):
        if value is picked:
            graph.outputs[slot] = mapped
    mapped.name, picked.name = picked.name, editor.unique_name(f"{picked.name}/among_kept")


def _columns_mapped(editor: Editor, picked: ir.Value, table: ir.Value) -> list[ir.Node]:
    """Nodes that map the second of three columns: [sample, class, box]."""
    columns = [
        ir.Node(
            "",
            "Gather",
            [picked, editor.add_initializer(f"{picked.name}/column", np.array([column]))],
            [ir.AttrInt64("axis", 1)],
            num_outputs=1,
        )
        for column in range(3)
    ]
    numbers = ir.Node("", "Gather", [table, columns[1].outputs[0]], num_outputs=1)
    parts = [columns[0].outputs[0], numbers.outputs[0], columns[2].outputs[0]]
    joined = ir.Node("", "Concat", parts, [ir.AttrInt64("axis", 1)], num_outputs=1)
    for node in (*columns, numbers):
        node.outputs[0].name = editor.unique_name(f"{picked.name}/by_column")
    return [*columns, numbers, joined]


def _sums_exponentials(node: ir.Node) -> bool:
    """Whether a node is the denominator of a Softmax that is written out."""
    if node.domain or node.op_type != "ReduceSum" or node.inputs[0] is None:
        return False
    maker = node.inputs[0].producer()
    return maker is not None and not maker.domain and maker.op_type == "Exp"


def _is_picker(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type in _PICKERS


def _read_slot(node: ir.Node) -> int:
    return 1 if node.op_type == _SUPPRESSION else 0


def _read(node: ir.Node) -> ir.Value:
    value = node.inputs[_read_slot(node)]
    assert value is not None
    return value


def _picked_axis(node: ir.Node, rank: int) -> int:
    if node.op_type == _SUPPRESSION:
        return 1
    return node.attributes.get_int("axis", -1 if node.op_type == "TopK" else 0) % rank


def _is_weighed(node: ir.Node) -> bool:
    """Whether a result is multiplied with weights, or with another activation, later on."""
    waiting, seen = [node], {node}
    while waiting:
        for value in waiting.pop().outputs:
            for reader, _ in value.uses():
                if reader.op_type in _WEIGHING or reader.op_type in _NORMALISERS:
                    return True
                if reader not in seen:
                    seen.add(reader)
                    waiting.append(reader)
    return False
