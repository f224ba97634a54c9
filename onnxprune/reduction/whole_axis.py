"""Nodes that read all entries of an axis at once: Softmax and its like, ArgMax, TopK."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxprune.errors import NothingPrunable
from onnxprune.surgery.integers import Editor
from onnxprune.surgery.linear import LINEAR_OPS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from onnxprune.coupling.cut import Cut

__all__ = ["PICKERS", "exclude_entries", "map_picked", "picked_axis", "whole_axis_readers"]

PICKERS = frozenset({"ArgMax", "ArgMin", "TopK"})
"""Ops that give positions along an axis."""

_NORMALISERS = frozenset({"Softmax", "LogSoftmax", "Hardmax"})
_WEIGHING = LINEAR_OPS | {"Attention", "GRU", "LSTM", "RNN", "MatMulInteger", "QLinearMatMul"}


def whole_axis_readers(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes that may run over what is left of an axis without changing what that means.

    ArgMax and its like may always; Softmax may where nothing behind it weighs its results, which
    would else be weighted with larger shares.
    """
    for node in graph:
        if node.domain == "" and (
            node.op_type in PICKERS or (node.op_type in _NORMALISERS and not _is_weighed(node))
        ):
            yield node


def picked_axis(node: ir.Node, rank: int) -> int:
    """Axis along which an ArgMax, ArgMin or TopK chooses."""
    return node.attributes.get_int("axis", -1 if node.op_type == "TopK" else 0) % rank


def exclude_entries(graph: ir.Graph, node: ir.Node, cut: Cut) -> None:
    """Give the entries that go a value that loses every comparison.

    Args:
        graph: changed in place.
        node: one of `whole_axis_readers`.
        cut: what goes.
    """
    value = node.inputs[0]
    assert value is not None
    name = value.name or ""
    labels = cut.coupling.tensors[name]
    alive = np.ones([1] * len(labels.shape), bool)
    for layer in labels.layers:
        kept = cut.alive(layer).transpose(np.argsort(layer.axes))
        if not kept.all():
            extents = [n if a in layer.axes else 1 for a, n in enumerate(labels.shape)]
            alive = alive & kept.reshape(extents)
    smallest = node.op_type == "ArgMin" or (
        node.op_type == "TopK" and node.attributes.get_int("largest", 1) == 0
    )
    editor = Editor(graph)
    dtype = cut.coupling.facts.first.types[name].numpy()
    worst = np.array(np.inf if smallest else -np.inf, dtype)
    base = f"{node.outputs[0].name}/excluded"
    mask, literal = (editor.add_initializer(base, array) for array in (alive, worst))
    where = ir.Node("", "Where", [mask, value, literal], num_outputs=1)
    where.outputs[0].name = editor.unique_name(base)
    graph.insert_before(node, where)
    node.replace_input_with(0, where.outputs[0])


def map_picked(graph: ir.Graph, node: ir.Node, kept: NDArray[np.int64]) -> None:
    """Turn positions among the entries that stay into those they had: a Gather behind the node.

    Args:
        graph: changed in place.
        node: ArgMax, ArgMin or TopK along the axis that lost entries.
        kept: the entries that stay.

    Raises:
        NothingPrunable: when a TopK asks for more entries than there are left.
    """
    picked = node.outputs[1 if node.op_type == "TopK" else 0]
    if node.op_type == "TopK":
        given = node.inputs[1] if len(node.inputs) > 1 else None
        count = ir.convenience.get_const_tensor(given) if given is not None else None
        wanted = node.attributes.get_int("k", 0) if count is None else int(count.numpy().item())
        if wanted > len(kept):
            raise NothingPrunable(
                f"TopK {node.name or picked.name} gives {wanted} of {len(kept)} entries; keep more"
            )
    if not picked.name:
        return
    editor = Editor(graph)
    table = editor.add_initializer(f"{picked.name}/kept", kept)
    gather = ir.Node("", "Gather", [table, picked], num_outputs=1)
    mapped = gather.outputs[0]
    mapped.type, mapped.shape = picked.type, picked.shape
    graph.insert_after(node, gather)
    picked.replace_all_uses_with(mapped, replace_graph_outputs=True)
    gather.replace_input_with(1, picked)
    mapped.name, picked.name = picked.name, editor.unique_name(f"{picked.name}/among_kept")


def _is_weighed(node: ir.Node) -> bool:
    """Whether a result is multiplied with weights, or with another activation, further on."""
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
