"""Multiply-accumulate operations of every op that multiplies, from shapes alone.

    Conv            outputs * (input channels / groups) * kernel size
    ConvTranspose   inputs * (output channels / groups) * kernel size
    Gemm, MatMul    outputs * summed extent
    Einsum          product of all letters
    LSTM, GRU, RNN  length * batch * (elements of W + elements of R)
    Attention       scores and mixed values, every query with every key; the projections where
                    the op has their weights
    If              the mean of its branches: which one runs is not known
    Loop            the body times the trip count where that is a constant below 2^31 - 1 (more
                    stands for no limit), once where it is not
    Scan            the body times the length

Quantised and fused forms count like the op they stand for. Biases, activations, normalisation,
softmax and whatever else works element by element count as zero, as the field's counters do. A node
of unknown shape counts as zero, so does the body of a node that nobody could look into, and a body
that no sample runs where samples are given.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import onnx_ir as ir

from onnxprune.model.node_view import NodeView, ShapeOf
from onnxprune.model.observe import constant_array

_MICROSOFT = "com.microsoft"
_ENDLESS = 2**31 - 1
"""Trip count from which on a Loop has no limit."""


def node_macs(node: ir.Node, shape_of: ShapeOf) -> int:
    """Multiply-accumulates of a node, its bodies included, at the shapes given.

    Args:
        node: any node.
        shape_of: concrete shape of a tensor by name; raises KeyError when unknown.
    """
    count = _COUNTERS.get((node.domain, node.op_type))
    if count is None:
        return 0
    try:
        return count(NodeView(node, shape_of=shape_of))
    except KeyError:
        return 0


def _conv(view: NodeView) -> int:
    return prod(view.output_shape()) * prod(view.shape(1)[1:])


def _qlinear_conv(view: NodeView) -> int:
    return prod(view.output_shape()) * prod(view.shape(3)[1:])


def _conv_transpose(view: NodeView) -> int:
    return prod(view.shape(0)) * prod(view.shape(1)[1:])


def _gemm(view: NodeView) -> int:
    return prod(view.output_shape()) * view.shape(0)[0 if view.get_int("transA", 0) else 1]


def _matmul(view: NodeView) -> int:
    return prod(view.output_shape()) * view.shape(0)[-1]


def _fused_matmul(view: NodeView) -> int:
    left = view.shape(0)
    transposed = view.get_int("transA", 0) and len(left) > 1
    row = 0 if view.get_int("transBatchA", 0) else len(left) - 2
    return prod(view.output_shape()) * left[row if transposed else -1]


def _einsum(view: NodeView) -> int:
    terms = view.get_string("equation").replace(" ", "").split("->")[0].split(",")
    if len(terms) < 2:
        return 0
    extents: dict[str | int, int] = {}
    for slot, term in enumerate(terms):
        shape = view.shape(slot)
        before, dots, after = term.partition("...")
        hidden = range(len(before) + len(after) - len(shape), 0) if dots else ()
        letters = [*before, *hidden, *after]
        if len(letters) != len(shape):
            return 0
        for letter, extent in zip(letters, shape, strict=True):
            extents[letter] = max(extent, extents.get(letter, 1))
    return prod(extents.values())


def _recurrent(view: NodeView) -> int:
    return prod(view.shape(0)[:2]) * (prod(view.shape(1)) + prod(view.shape(2)))


def _attention(view: NodeView) -> int:
    """Attention of opset 23 and later: query, key, value; past keys in slot 4."""
    keys = view.shape(1)[-2] + (view.shape(4)[2] if view.has(4) else 0)
    return (prod(view.shape(0)) + prod(view.output_shape())) * keys


def _multi_head(view: NodeView) -> int:
    """MultiHeadAttention: key [b, s, h d], packed [b, s, h, 2, d], or of a cross [b, h, s, d]."""
    query = view.shape(0)
    packed = len(query) == 5
    keys = view.shape(1)[2 if len(view.shape(1)) == 4 else 1] if view.has(1) else query[1]
    keys += view.shape(6)[2] if view.has(6) else 0
    return (prod(query) // (3 if packed else 1) + prod(view.output_shape())) * keys


def _projected(past: int) -> Callable[[NodeView], int]:
    """Attention and QAttention: one weight [i, q + k + v], of which q and k are equally wide."""

    def count(view: NodeView) -> int:
        batch, length, _ = view.shape(0)
        weight, values = view.shape(1), view.output_shape()[-1]
        keys = length + (view.shape(past)[3] if view.has(past) else 0)
        width = (weight[1] - values) // 2 + values
        return batch * length * (prod(weight) + width * keys)

    return count


def _group_query(view: NodeView) -> int:
    """GroupQueryAttention: queries are as wide as the output; the keys are those of the cache."""
    keys = view.shape(0)[1] + (view.shape(3)[2] if view.has(3) else 0)
    if view.has_output(1):
        keys = view.output_shape(1)[2]
    return 2 * prod(view.output_shape()) * keys


def _if(view: NodeView) -> int:
    branches = [view.attribute("then_branch"), view.attribute("else_branch")]
    # an unknown branch counts as nothing, and not as one of several either
    known = [branch for branch in branches if _is_known(branch, view.shape_of)]
    return sum(_graph(branch, view.shape_of) for branch in known) // max(len(known), 1)


def _is_known(branch: ir.Graph, shape_of: ShapeOf) -> bool:
    """Whether the shape of anything that a branch makes is known; it may also make nothing."""
    made = [value.name for node in branch for value in node.outputs if value.name]
    for name in made:
        try:
            shape_of(name)
        except KeyError:
            continue
        return True
    return not made


def _loop(view: NodeView) -> int:
    limit = constant_array(view.node.inputs[0])
    trips = 1 if limit is None else int(limit.item())
    times = max(trips, 0) if trips < _ENDLESS else 1
    return times * _graph(view.attribute("body"), view.shape_of)


def _scan(view: NodeView) -> int:
    count = view.get_int("num_scan_inputs", 0)
    axes = view.get_ints("scan_input_axes") or [0]
    length = view.shape(len(view.node.inputs) - count)[axes[0]]
    return length * _graph(view.attribute("body"), view.shape_of)


def _graph(nodes: ir.Graph, shape_of: ShapeOf) -> int:
    if not _is_known(nodes, shape_of):
        return 0
    return sum(node_macs(node, shape_of) for node in nodes)


_COUNTERS: dict[tuple[str, str], Callable[[NodeView], int]] = {
    **{("", op): _conv for op in ("Conv", "ConvInteger", "DeformConv")},
    **{(_MICROSOFT, op): _conv for op in ("FusedConv", "NhwcFusedConv")},
    **{(domain, "QLinearConv"): _qlinear_conv for domain in ("", _MICROSOFT)},
    ("", "ConvTranspose"): _conv_transpose,
    (_MICROSOFT, "ConvTransposeWithDynamicPads"): _conv_transpose,
    ("", "Gemm"): _gemm,
    **{(_MICROSOFT, op): _gemm for op in ("FusedGemm", "QGemm")},
    **{("", op): _matmul for op in ("MatMul", "MatMulInteger", "QLinearMatMul")},
    **{
        (_MICROSOFT, op): _matmul
        for op in (
            "DynamicQuantizeMatMul",
            "GemmFastGelu",
            "MatMulBnb4",
            "MatMulFpQ4",
            "MatMulInteger16",
            "MatMulIntegerToFloat",
            "MatMulNBits",
            "QLinearMatMul",
        )
    },
    **{
        (_MICROSOFT, op): _fused_matmul
        for op in ("FusedMatMul", "FusedMatMulActivation", "TransposeMatMul")
    },
    ("", "Einsum"): _einsum,
    **{("", op): _recurrent for op in ("LSTM", "GRU", "RNN")},
    (_MICROSOFT, "DynamicQuantizeLSTM"): _recurrent,
    ("", "Attention"): _attention,
    (_MICROSOFT, "MultiHeadAttention"): _multi_head,
    (_MICROSOFT, "Attention"): _projected(past=4),
    (_MICROSOFT, "QAttention"): _projected(past=8),
    (_MICROSOFT, "GroupQueryAttention"): _group_query,
    ("", "If"): _if,
    ("", "Loop"): _loop,
    ("", "Scan"): _scan,
}
"""(domain, op type) -> how its multiply-accumulates are counted."""
