"""Attributes that name a size and must follow the cut: groups, hidden sizes, head counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxprune.coupling.cut import CutError
from onnxprune.surgery.integers import Site, set_attribute

_WEIGHT_SLOT = {"QLinearConv": 3}


def _group(site: Site) -> None:
    """Convolutions: groups = channels on the flat side / channels of one group."""
    if int(site.attribute("group", 1)) == 1:
        return
    weight = site.cut.shape(site.input(_WEIGHT_SLOT.get(site.node.op_type, 1)))
    flat = site.output() if site.node.op_type == "ConvTranspose" else site.input(0)
    group = site.cut.shape(flat)[1] // weight[1]
    if group != int(site.attribute("group", 1)):
        set_attribute(site.node, "group", group)


def _norm_groups(site: Site) -> None:
    """GroupNormalization: channels left / channels of one group, which stay as many."""
    before, after = site.old_shape(site.input(0))[1], site.cut.shape(site.input(0))[1]
    if after != before:
        groups = int(site.attribute("num_groups")) * after // before
        set_attribute(site.node, "num_groups", groups)


def _hidden_size(site: Site) -> None:
    """LSTM, GRU, RNN: the hidden size is the last axis of R."""
    hidden = site.cut.shape(site.input(2))[2]
    if hidden != int(site.attribute("hidden_size", hidden)):
        set_attribute(site.node, "hidden_size", hidden)


def _heads(site: Site) -> None:
    """Attention: head counts of 3-D inputs, and the softmax scale of the original head size."""
    old, new = {}, {}
    for slot, kind in ((0, "q_num_heads"), (1, "kv_num_heads")):
        old[kind], new[kind] = _head_layout(site, site.input(slot), site.attribute(kind))
    for kind, (count, _) in new.items():
        if site.attribute(kind) is not None and count != int(site.attribute(kind)):
            set_attribute(site.node, kind, count)
    _keep_scale(site, old["q_num_heads"][1], new["q_num_heads"][1])


def _fused_heads(site: Site) -> None:
    """MultiHeadAttention: separate query, key and value."""
    old, new = _head_layout(site, site.input(0), site.attribute("num_heads"))
    if new[0] != old[0]:
        set_attribute(site.node, "num_heads", new[0])
    _keep_scale(site, old[1], new[1])


def _packed_heads(site: Site) -> None:
    """com.microsoft Attention: the result is [b, s, heads * dim], dim that of the values."""
    old, new = _head_layout(site, site.output(), site.attribute("num_heads"))
    if new[0] != old[0]:
        set_attribute(site.node, "num_heads", new[0])
    sizes = site.attribute("qkv_hidden_sizes")
    if not sizes:
        _keep_scale(site, old[1], new[1])
        return
    ends = np.cumsum(sizes)[:-1].tolist()
    kept = [int(part.sum()) for part in np.split(site.cut.alive_along(site.input(1), 1), ends)]
    if kept != [int(n) for n in sizes]:
        set_attribute(site.node, "qkv_hidden_sizes", kept)
    _keep_scale(site, int(sizes[0]) // old[0], kept[0] // new[0])


def _grouped_heads(site: Site) -> None:
    """GroupQueryAttention: key/value heads go with all the query heads they serve."""
    old, new = _head_layout(site, site.output(), site.attribute("num_heads"))
    if new[0] != old[0]:
        served = int(site.attribute("kv_num_heads")) * new[0] // old[0]
        set_attribute(site.node, "num_heads", new[0])
        set_attribute(site.node, "kv_num_heads", served)


def _head_layout(
    site: Site, name: str, heads: int | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(heads, dim) before and after; a 4-D tensor carries them as axes, a 3-D one merged."""
    before, after = site.old_shape(name), site.cut.shape(name)
    if len(before) == 4:
        return (before[1], before[3]), (after[1], after[3])
    if heads is None:
        raise CutError(name, "attention heads of unknown number")
    rows = site.cut.alive_along(name, 2).reshape(int(heads), -1)
    left = int(rows.any(axis=1).sum())
    return (int(heads), before[2] // int(heads)), (left, after[2] // left)


def _keep_scale(site: Site, before: int, after: int) -> None:
    if after != before and not site.attribute("scale"):
        site.node.attributes["scale"] = ir.AttrFloat32("scale", before**-0.5)


def _rotary(site: Site) -> None:
    """RotaryEmbedding: head count, and how many dims of a head turn."""
    width = 2 * site.cut.shape(site.input(2))[-1]
    if site.attribute("num_heads", 0):
        old, new = _head_layout(site, site.input(0), site.attribute("num_heads"))
        if new[0] != old[0]:
            set_attribute(site.node, "num_heads", new[0])
    if site.attribute("rotary_embedding_dim", 0) not in (0, width):
        set_attribute(site.node, "rotary_embedding_dim", width)


def _rows(site: Site) -> None:
    """MatMulNBits: N is the number of packed rows."""
    made = site.cut.shape(site.input(1))[0]
    if made != int(site.attribute("N")):
        set_attribute(site.node, "N", made)


ATTRIBUTES: dict[tuple[str, str], Callable[[Site], None]] = {
    **{("", op): _group for op in ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv")},
    ("com.microsoft", "FusedConv"): _group,
    ("", "GroupNormalization"): _norm_groups,
    **{("", op): _hidden_size for op in ("LSTM", "GRU", "RNN")},
    ("", "Attention"): _heads,
    ("com.microsoft", "MultiHeadAttention"): _fused_heads,
    ("com.microsoft", "Attention"): _packed_heads,
    ("com.microsoft", "GroupQueryAttention"): _grouped_heads,
    ("", "RotaryEmbedding"): _rotary,
    ("com.microsoft", "RotaryEmbedding"): _rotary,
    ("com.microsoft", "MatMulNBits"): _rows,
}
"""(domain, op type) -> what has to follow the cut."""
