"""Residual blocks: additions x + f(x) whose branch f can be removed as a whole.

A branch is removable when all of its nodes serve this addition alone, and when both operands have
the shape of the sum, so that the rest of the graph stays valid. The other operand, the *stream*, is
what the branch was computed from (attention and MLP branches with the norm before or after,
residual convolutions), what parallel branches were added to there, or a shortcut from there, with
one linear layer at most. Where either operand could be removed, the one whose stream is the more
direct goes, and of two such the one of more nodes.

A removed branch leaves a constant, its mean, which is folded into the bias of the layer before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.cost.macs import node_macs
from onnxprune.model.bodies import node_id
from onnxprune.model.observe import Facts, constant_array
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.surgery.editor import Editor
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
        branch: the operand that is removed.
        nodes: ids of the nodes that are removed with it, in graph order.
        axis: axis of the sum that counts channels.
        rank: of the sum.
        shortcut: linear layers between what the branch reads and the operand that stays, 0 or 1.
        macs: of these nodes, at the traced size.
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
    blocks = []
    for node in graph:
        if node.op_type != "Add" or node.domain or len(node.inputs) != 2:
            continue
        either = filter(None, (_block(graph, node, slot, facts) for slot in (0, 1)))
        best = min(either, key=lambda block: (block.shortcut, -len(block.nodes)), default=None)
        blocks += [] if best is None else [best]
    return blocks


def remove_block(graph: ir.Graph, block: ResidualBlock, mean: NDArray[np.float64]) -> None:
    """Replace a branch by a constant; what only served the branch is removed with it.

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
    removed = set(ids)
    for node in reversed([node for node in graph if node_id(node) in removed]):
        read = list(dict.fromkeys(value for value in node.inputs if value is not None))
        graph.remove(node, safe=True)
        for value in read:
            editor.drop_if_unused(value)


def fold_added_constants(target: EditableModel, names: Iterable[str]) -> list[str]:
    """Fold the constants of additions `x + c` into the producer of x: a layer, or such an addition.

    Args:
        target: changed in place.
        names: outputs of such additions.

    Returns:
        the names of those that could be folded; their additions are removed, and `x` has taken
        over their names.
    """
    folded = []
    wanted = set(names)
    for add in [node for node in target.model.graph if node.outputs[0].name in wanted]:
        name = add.outputs[0].name or ""
        slot = 0 if constant_array(add.inputs[0]) is not None else 1
        value, constant = add.inputs[1 - slot], constant_array(add.inputs[slot])
        if value is None or constant is None or not value.name:
            continue
        if _join_constants(target, add, value, constant):
            folded.append(name)
            continue
        layer = _single_linear_layer(value)
        if layer is None or _is_spread(target, layer, add):
            continue
        rank = len(target.coupling.tensors[layer.outputs[0].name or ""].shape)
        delta = constant.reshape([1] * (rank - constant.ndim) + list(constant.shape))
        kind = constant.dtype
        _bypass(target, add, value)
        target.add_to_output(layer, delta.astype(np.float64), kind)
        folded.append(name)
    return folded


def _block(graph: ir.Graph, add: ir.Node, slot: int, facts: Facts) -> ResidualBlock | None:
    """The block whose branch is one operand of an addition; None when that is not removable."""
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
    serving = _serving(branch, add)
    weighted = [node for node in serving if node.op_type in _WEIGHTED]
    shortcut = _layers_around(stream, serving, facts)
    if not weighted or shortcut is None:
        return None
    rank = len(facts.first.shapes[names[0]])
    convolved = any(node.op_type in _CONVOLUTIONS for node in weighted)
    own = {value for node in serving for value in node.inputs if value is not None}
    weights = [
        value
        for value in own
        if value.name in facts.constants and all(use.node in serving for use in value.uses())
    ]
    return ResidualBlock(
        name=names[0],
        stream=names[1],
        branch=names[2],
        nodes=tuple(node_id(node) for node in graph if node in serving),
        axis=1 if convolved else rank - 1,
        rank=rank,
        shortcut=shortcut,
        macs=sum(node_macs(node, facts.first.shapes.__getitem__) for node in serving),
        parameters=sum(facts.constants[value.name or ""].size for value in weights),
        dtype=facts.first.types[names[0]].numpy(),
    )


def _serving(branch: ir.Value, add: ir.Node) -> set[ir.Node]:
    """Nodes whose results reach nothing but one operand of an addition."""
    serving: set[ir.Node] = set()
    waiting = [branch]
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in serving or node.op_type == "Constant":
            continue
        if node.graph is not add.graph or any(value.is_graph_output() for value in node.outputs):
            continue
        uses = [(value, use.node) for value in node.outputs for use in value.uses()]
        if all(reader in serving or (reader is add and value is branch) for value, reader in uses):
            serving.add(node)
            waiting += [value for value in node.inputs if value is not None]
    return serving


def _layers_around(stream: ir.Value, branch: set[ir.Node], facts: Facts) -> int | None:
    """Linear layers between what a branch reads and a tensor: 0, 1, or None for no such path."""
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
            sources = [x for x in node.inputs if x is not None and not _is_weight(x, facts)]
            # a stream that parallel branches have been added to is still the stream
            if layers <= most and (len(sources) == 1 or node.op_type == "Add"):
                waiting += [(source, layers) for source in sources]
    return None


def _is_weight(value: ir.Value, facts: Facts) -> bool:
    """Whether a tensor is a constant, or computed from constants alone."""
    waiting, seen = [value], set[ir.Value]()
    while waiting:
        value = waiting.pop()
        if value.name in facts.constants or value in seen:
            continue
        seen.add(value)
        node = value.producer()
        inputs = [] if node is None else [value for value in node.inputs if value is not None]
        if not inputs:
            return False
        waiting += inputs
    return True


def _is_float(facts: Facts, name: str) -> bool:
    kind = facts.first.types.get(name)
    return kind is not None and kind.is_floating_point()


def _join_constants(
    target: EditableModel, add: ir.Node, value: ir.Value, constant: NDArray[np.floating]
) -> bool:
    """Add a constant to that of the addition before; False where there is none of its shape."""
    before = value.producer()
    if before is None or before.op_type != "Add" or len(value.uses()) != 1:
        return False
    for slot, operand in enumerate(before.inputs):
        other = constant_array(operand)
        if other is not None and other.shape == constant.shape and not value.is_graph_output():
            _bypass(target, add, value)
            added = target.editor.add_initializer(f"{value.name}/constant", other + constant)
            before.replace_input_with(slot, added)
            target.register_constant(added, ())
            if operand is not None:
                target.editor.drop_if_unused(operand)
            return True
    return False


def _single_linear_layer(value: ir.Value) -> ir.Node | None:
    """The first linear layer whose output reaches a tensor, through additions, and nothing else."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if len(value.uses()) != 1 or value.is_graph_output() or node is None or node.domain:
            continue
        if node.op_type in LINEAR_OPS:
            return node
        if node.op_type == "Add":
            terms = [
                term for term in node.inputs if term is not None and constant_array(term) is None
            ]
            waiting += reversed(terms)
    return None


def _is_spread(target: EditableModel, layer: ir.Node, add: ir.Node) -> bool:
    """Whether an addition has another shape than the layer's output."""
    shapes = target.coupling.facts.first.shapes
    return shapes.get(layer.outputs[0].name or "") != shapes.get(add.outputs[0].name or "")


def _bypass(target: EditableModel, add: ir.Node, value: ir.Value) -> None:
    """Remove an addition; the other operand takes its name."""
    total = add.outputs[0]
    name, inner, node = total.name or "", value.name or "", value.producer()
    assert node is not None
    constants = [other for other in add.inputs if other is not None and other is not value]
    total.replace_all_uses_with(value, replace_graph_outputs=True)
    value.type = total.type if value.type is None else value.type
    value.shape = total.shape if value.is_graph_output() else value.shape
    target.model.graph.remove(add, safe=True)
    for constant in constants:
        target.editor.drop_if_unused(constant)
    value.name = name
    target.nodes.pop(inner, None)
    target.nodes[name] = node
