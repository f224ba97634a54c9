"""Residual blocks: additions x + f(x) whose branch f can be taken out as a whole.

A branch is removable when all it is made of serves this addition alone, so that it is dead without
it, and when both operands have the shape of the sum, so that the graph stays as it is. The other
operand, the *stream*, is what the branch was computed from (attention and MLP branches with the
norm before or after, residual convolutions), what parallel branches were added to there, or a
shortcut from there, with one linear layer at most. Where either operand could go, the one goes that
leaves the more direct way, and of two such the one of more nodes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.cost.macs import node_macs
from onnxprune.coupling.step import node_id
from onnxprune.model.observe import Facts
from onnxprune.surgery.integers import Editor
from onnxprune.surgery.linear import LINEAR_OPS

_CONVOLUTIONS = frozenset({"Conv", "ConvInteger", "ConvTranspose", "FusedConv", "QLinearConv"})
_WEIGHTED = LINEAR_OPS | _CONVOLUTIONS | {"Attention", "GRU", "LSTM", "MultiHeadAttention"}
_WEIGHTED |= {"DynamicQuantizeMatMul", "FusedGemm", "FusedMatMul", "MatMulInteger"}
_WEIGHTED |= {"MatMulIntegerToFloat", "MatMulNBits", "QAttention", "QGemm", "QLinearMatMul"}


@dataclass(frozen=True)
class ResidualBlock:
    """One addition and the branch that can be taken out of it.

    Attributes:
        name: the sum.
        stream: the operand that stays.
        branch: the operand that goes.
        nodes: ids of the nodes that go with it, in graph order.
        axis: axis of the sum that counts channels.
        rank: of the sum.
        shortcut: linear layers between what the branch reads and the operand that stays, 0 or 1.
        macs: multiplications of these nodes at the traced size.
        parameters: elements of the constants that only they read.
        dtype: element type of the sum.
    """

    name: str
    stream: str
    branch: str
    nodes: tuple[str, ...]
    axis: int
    rank: int
    shortcut: int
    macs: int
    parameters: int
    dtype: np.dtype[Any]


def residual_blocks(graph: ir.Graph, facts: Facts) -> list[ResidualBlock]:
    """Find all removable branches, in graph order.

    Args:
        graph: the main graph.
        facts: shapes at the traced size.
    """
    found = []
    for node in graph:
        if node.op_type != "Add" or node.domain or len(node.inputs) != 2:
            continue
        both = [_block(graph, node, slot, facts) for slot in (0, 1)]
        blocks = [one for one in both if one is not None]
        if blocks:
            found.append(min(blocks, key=lambda one: (one.shortcut, -len(one.nodes))))
    return found


def remove_block(graph: ir.Graph, block: ResidualBlock, mean: NDArray[np.float64]) -> None:
    """Put a constant in place of a branch; what only served the branch disappears.

    Args:
        graph: changed in place.
        block: one of `residual_blocks` of the graph, or of the graph before others were removed.
        mean: of each channel of the branch, [channels].
    """
    add = next(node for node in graph if node.outputs[0].name == block.name)
    names = [value.name if value is not None else "" for value in add.inputs]
    trailing = [1] * (block.rank - block.axis - 1)
    array = mean.astype(block.dtype).reshape(-1, *trailing)
    constant = Editor(graph).add_initializer(f"{block.name}/mean", array)
    add.replace_input_with(names.index(block.branch), constant)
    remove_nodes(graph, block.nodes)


def remove_nodes(graph: ir.Graph, ids: Iterable[str]) -> None:
    """Remove nodes that nothing reads, and constants that nothing reads any more."""
    editor = Editor(graph)
    gone = set(ids)
    for node in reversed([one for one in graph if node_id(one) in gone]):
        read = list(dict.fromkeys(value for value in node.inputs if value is not None))
        graph.remove(node, safe=True)
        for value in read:
            editor.drop_if_unused(value)


def _block(graph: ir.Graph, add: ir.Node, slot: int, facts: Facts) -> ResidualBlock | None:
    """The block whose branch is one operand of an addition; None when it is none."""
    branch, stream, total = add.inputs[slot], add.inputs[1 - slot], add.outputs[0]
    if branch is None or stream is None or branch is stream:
        return None
    names = [value.name or "" for value in (total, stream, branch)]
    for run in (facts.first, facts.second):
        shapes = {run.shapes.get(name) for name in names}
        if len(shapes) > 1 or None in shapes or not run.shapes[names[0]]:
            return None
    if any(name in facts.constants for name in names) or not _is_float(facts, names[0]):
        return None
    gone = _serving(branch, add)
    weighted = [node for node in gone if node.op_type in _WEIGHTED]
    shortcut = _layers_around(stream, gone, facts)
    if not weighted or shortcut is None:
        return None
    rank = len(facts.first.shapes[names[0]])
    convolved = any(node.op_type in _CONVOLUTIONS for node in weighted)
    own = {value for node in gone for value in node.inputs if value is not None}
    weights = [
        value
        for value in own
        if value.name in facts.constants and all(use.node in gone for use in value.uses())
    ]
    return ResidualBlock(
        name=names[0],
        stream=names[1],
        branch=names[2],
        nodes=tuple(node_id(node) for node in graph if node in gone),
        axis=1 if convolved else rank - 1,
        rank=rank,
        shortcut=shortcut,
        macs=sum(node_macs(node, facts.first.shapes.__getitem__) for node in gone),
        parameters=sum(facts.constants[value.name or ""].size for value in weights),
        dtype=facts.first.types[names[0]].numpy(),
    )


def _serving(branch: ir.Value, add: ir.Node) -> set[ir.Node]:
    """Nodes whose results reach nothing but one operand of an addition."""
    gone: set[ir.Node] = set()
    waiting = [branch]
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in gone or node.op_type == "Constant":
            continue
        if node.graph is not add.graph or any(value.is_graph_output() for value in node.outputs):
            continue
        uses = [(value, use.node) for value in node.outputs for use in value.uses()]
        if all(reader in gone or (reader is add and value is branch) for value, reader in uses):
            gone.add(node)
            waiting += [value for value in node.inputs if value is not None]
    return gone


def _layers_around(stream: ir.Value, branch: set[ir.Node], facts: Facts) -> int | None:
    """Linear layers between what a branch reads and a tensor: 0, 1, or None for no such way."""
    read = {value for node in branch for value in node.inputs if value is not None}
    for most in (0, 1):
        waiting, seen = [(stream, 0)], set[tuple[ir.Value, int]]()
        while waiting:
            value, layers = waiting.pop()
            if value in read:
                return most
            node = value.producer()
            if node is None or (value, layers) in seen:
                continue
            seen.add((value, layers))
            layers += node.op_type in _WEIGHTED
            sources = [one for one in node.inputs if one is not None and not _is_weight(one, facts)]
            # a stream that parallel branches have been added to is still the stream
            if layers <= most and (len(sources) == 1 or node.op_type == "Add"):
                waiting += [(one, layers) for one in sources]
    return None


def _is_weight(value: ir.Value, facts: Facts) -> bool:
    """Whether a tensor is a constant, or computed from constants alone."""
    waiting, seen = [value], set[ir.Value]()
    while waiting:
        one = waiting.pop()
        if one.name in facts.constants or one in seen:
            continue
        seen.add(one)
        node = one.producer()
        given = [] if node is None else [value for value in node.inputs if value is not None]
        if not given:
            return False
        waiting += given
    return True


def _is_float(facts: Facts, name: str) -> bool:
    kind = facts.first.types.get(name)
    return kind is not None and kind.is_floating_point()
