"""Multiply-accumulate operations of every op that multiplies, from shapes alone.

    Conv            outputs * (input channels / groups) * kernel size
    ConvTranspose   inputs * (output channels / groups) * kernel size
    Gemm, MatMul    outputs * summed extent
    Einsum          product of all letters
    LSTM, GRU, RNN  length * batch * (elements of W + elements of R)
    Attention       scores and mixed values, every query with every key; the projections where
                    the op has their weights
    If              the branch that costs more
    Loop            the body times the trip count where that is a constant below 2^31 - 1 (more
                    stands for no limit), once where it is not
    Scan            the body times the length

Quantised and fused forms count like the op they stand for. Biases, activations, normalisation,
softmax and whatever else works element by element count as zero, as the field's counters do. A node
of unknown shape counts as zero, so does the body of a node that nobody could look into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import onnx_ir as ir

ShapeOf = Callable[[str], tuple[int, ...]]
"""Concrete shape of a tensor by name; raises KeyError when it is unknown."""

_MICROSOFT = "com.microsoft"
_ENDLESS = 2**31 - 1


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
        return count(_Seen(node, shape_of))
    except KeyError:
        return 0


@dataclass(frozen=True)
class _Seen:
    """A node with the shapes of its inputs and outputs."""

    node: ir.Node
    shape_of: ShapeOf

    def has(self, slot: int) -> bool:
        """Whether an input is given."""
        return slot < len(self.node.inputs) and self.node.inputs[slot] is not None

    def shape(self, slot: int) -> tuple[int, ...]:
        """Shape of an input."""
        value = self.node.inputs[slot]
        return self.shape_of((value.name if value is not None else None) or "")

    def output(self, slot: int = 0) -> tuple[int, ...]:
        """Shape of an output."""
        return self.shape_of(self.node.outputs[slot].name or "")

    def attribute(self, name: str) -> Any:
        """Value of an attribute, None for one that is not given."""
        found = self.node.attributes.get(name)
        return None if found is None else found.value


def _conv(seen: _Seen) -> int:
    return prod(seen.output()) * prod(seen.shape(1)[1:])


def _qlinear_conv(seen: _Seen) -> int:
    return prod(seen.output()) * prod(seen.shape(3)[1:])


def _conv_transpose(seen: _Seen) -> int:
    return prod(seen.shape(0)) * prod(seen.shape(1)[1:])


def _gemm(seen: _Seen) -> int:
    return prod(seen.output()) * seen.shape(0)[0 if seen.attribute("transA") else 1]


def _matmul(seen: _Seen) -> int:
    return prod(seen.output()) * seen.shape(0)[-1]


def _fused_matmul(seen: _Seen) -> int:
    left = seen.shape(0)
    turned = seen.attribute("transA") and len(left) > 1
    row = 0 if seen.attribute("transBatchA") else len(left) - 2
    return prod(seen.output()) * left[row if turned else -1]


def _einsum(seen: _Seen) -> int:
    terms = seen.attribute("equation").replace(" ", "").split("->")[0].split(",")
    if len(terms) < 2:
        return 0
    extents: dict[str | int, int] = {}
    for slot, term in enumerate(terms):
        shape = seen.shape(slot)
        before, dots, after = term.partition("...")
        hidden = range(len(before) + len(after) - len(shape), 0) if dots else ()
        letters = [*before, *hidden, *after]
        if len(letters) != len(shape):
            return 0
        for letter, extent in zip(letters, shape, strict=True):
            extents[letter] = max(extent, extents.get(letter, 1))
    return prod(extents.values())


def _recurrent(seen: _Seen) -> int:
    return prod(seen.shape(0)[:2]) * (prod(seen.shape(1)) + prod(seen.shape(2)))


def _attention(seen: _Seen) -> int:
    """Attention of opset 23 and later: query, key, value; past keys in slot 4."""
    keys = seen.shape(1)[-2] + (seen.shape(4)[2] if seen.has(4) else 0)
    return (prod(seen.shape(0)) + prod(seen.output())) * keys


def _multi_head(seen: _Seen) -> int:
    """MultiHeadAttention: key [b, s, h d], packed [b, s, h, 2, d], or of a cross [b, h, s, d]."""
    query = seen.shape(0)
    packed = len(query) == 5
    keys = seen.shape(1)[2 if len(seen.shape(1)) == 4 else 1] if seen.has(1) else query[1]
    keys += seen.shape(6)[2] if seen.has(6) else 0
    return (prod(query) // (3 if packed else 1) + prod(seen.output())) * keys


def _projected(past: int) -> Callable[[_Seen], int]:
    """Attention and QAttention: one weight [i, q + k + v], of which q and k are equally wide."""

    def count(seen: _Seen) -> int:
        batch, length, _ = seen.shape(0)
        weight, values = seen.shape(1), seen.output()[-1]
        keys = length + (seen.shape(past)[3] if seen.has(past) else 0)
        width = (weight[1] - values) // 2 + values
        return batch * length * (prod(weight) + width * keys)

    return count


def _group_query(seen: _Seen) -> int:
    """GroupQueryAttention: queries are as wide as the output; the keys are those of the cache."""
    keys = seen.shape(0)[1] + (seen.shape(3)[2] if seen.has(3) else 0)
    if len(seen.node.outputs) > 1 and seen.node.outputs[1].name:
        keys = seen.output(1)[2]
    return 2 * prod(seen.output()) * keys


def _if(seen: _Seen) -> int:
    branches = (seen.attribute("then_branch"), seen.attribute("else_branch"))
    return max(_graph(branch, seen.shape_of) for branch in branches)


def _loop(seen: _Seen) -> int:
    limit = seen.node.inputs[0]
    constant = None if limit is None else ir.convenience.get_const_tensor(limit)
    trips = 1 if constant is None else int(constant.numpy().item())
    times = max(trips, 0) if trips < _ENDLESS else 1
    return times * _graph(seen.attribute("body"), seen.shape_of)


def _scan(seen: _Seen) -> int:
    count = int(seen.attribute("num_scan_inputs"))
    axes: Sequence[int] = seen.attribute("scan_input_axes") or [0]
    length = seen.shape(len(seen.node.inputs) - count)[axes[0]]
    return length * _graph(seen.attribute("body"), seen.shape_of)


def _graph(nodes: Iterable[ir.Node], shape_of: ShapeOf) -> int:
    return sum(node_macs(node, shape_of) for node in nodes)


_COUNTERS: dict[tuple[str, str], Callable[[_Seen], int]] = {
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
