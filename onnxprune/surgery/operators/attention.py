"""Attention: head counts and sizes, and the softmax scale of the original head size."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.coupling.cut import CutError
from onnxprune.surgery.operators.site import Site, SizeTable


def _heads(site: Site) -> None:
    """Attention: head counts of 3-D inputs, and the softmax scale of the original head size."""
    for slot, kind in ((1, "kv_num_heads"), (0, "q_num_heads")):
        old, new = _head_layout(site, site.name(slot), site.attribute(kind))
        site.put_attribute(kind, new[0], default=new[0])
    _keep_scale(site, old[1], new[1])


def _fused_heads(site: Site) -> None:
    """MultiHeadAttention: separate query, key and value."""
    old, new = _head_layout(site, site.name(0), site.attribute("num_heads"))
    site.put_attribute("num_heads", new[0])
    _keep_scale(site, old[1], new[1])


def _packed_heads(site: Site) -> None:
    """com.microsoft Attention: the result is [b, s, heads * dim], dim that of the values."""
    old, new = _head_layout(site, site.output_name(), site.attribute("num_heads"))
    site.put_attribute("num_heads", new[0])
    sizes = site.attribute("qkv_hidden_sizes")
    if not sizes:
        _keep_scale(site, old[1], new[1])
        return
    ends = np.cumsum(sizes)[:-1].tolist()
    kept = [int(part.sum()) for part in np.split(site.cut.alive_along(site.name(1), 1), ends)]
    site.put_attribute("qkv_hidden_sizes", kept)
    _keep_scale(site, int(sizes[0]) // old[0], kept[0] // new[0])


def _grouped_heads(site: Site) -> None:
    """GroupQueryAttention: key/value heads go with all the query heads they serve."""
    old, new = _head_layout(site, site.output_name(), site.attribute("num_heads"))
    site.put_attribute("num_heads", new[0])
    site.put_attribute("kv_num_heads", site.get_int("kv_num_heads", 0) * new[0] // old[0])


def _head_layout(
    site: Site, name: str, heads: int | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(heads, dim) before and after; a 4-D tensor carries them as axes, a 3-D one merged."""
    before, after = site.shape_of(name), site.cut.shape(name)
    if len(before) == 4:
        return (before[1], before[3]), (after[1], after[3])
    if heads is None:
        raise CutError(name, "the number of attention heads is unknown")
    rows = site.cut.alive_along(name, 2).reshape(int(heads), -1)
    left = int(rows.any(axis=1).sum())
    return (int(heads), before[2] // int(heads)), (left, after[2] // left)


def _keep_scale(site: Site, before: int, after: int) -> None:
    if after != before and not site.attribute("scale"):
        site.node.attributes["scale"] = ir.AttrFloat32("scale", before**-0.5)


def _rotary(site: Site) -> None:
    """RotaryEmbedding: head count, and how many dims of a head turn."""
    width = 2 * site.new_shape(2)[-1]
    if site.attribute("num_heads", 0):
        _, new = _head_layout(site, site.name(0), site.attribute("num_heads"))
        site.put_attribute("num_heads", new[0])
    if site.attribute("rotary_embedding_dim", 0) not in (0, width):
        site.put_attribute("rotary_embedding_dim", width)


SIZE_RULES: SizeTable = {
    ("", "Attention"): _heads,
    ("com.microsoft", "MultiHeadAttention"): _fused_heads,
    ("com.microsoft", "Attention"): _packed_heads,
    ("com.microsoft", "GroupQueryAttention"): _grouped_heads,
    **{(domain, "RotaryEmbedding"): _rotary for domain in ("", "com.microsoft")},
}
