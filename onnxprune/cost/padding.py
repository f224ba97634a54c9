"""What convolutions compute for nothing because of widths that fill no whole block.

Kernels of CPUs compute blocks of 8 (AVX2, NEON) or 16 (AVX-512) channels; a cut width between two
multiples costs as much as the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx_ir as ir

from onnxprune.cost.macs import node_macs
from onnxprune.coupling.cut import Cut
from onnxprune.coupling.trace import Coupling

BLOCKS = (8, 16)
"""Channels that common kernels compute together."""


def padded_macs(
    graph: ir.Graph, coupling: Coupling, dead: Sequence[int], block: int
) -> tuple[int, int]:
    """Multiply-accumulates of the convolutions that a cut changes.

    Args:
        graph: the original's main graph.
        coupling: its labels.
        dead: removed classes.
        block: channels that are computed together.

    Returns:
        as they are, and with every width that was cut rounded up to whole blocks; 0 and 0 where no
        convolution is cut. Grouped convolutions are not counted.
    """
    cut, before = Cut(coupling, dead), coupling.facts.first.shapes
    plain = padded = 0
    for node in graph:
        if node.op_type != "Conv" or node.attributes.get_int("group", 1) > 1:
            continue
        weight = node.inputs[1]
        name = (weight.name or "") if weight is not None else ""
        if name not in before or not cut.touches(name):
            continue
        was, now = before[name][:2], cut.shape(name)[:2]
        macs = node_macs(node, cut.shape)
        whole = [-(-n // block) * block if n != w else n for n, w in zip(now, was, strict=True)]
        plain += macs
        padded += macs * prod(whole) // prod(now)
    return plain, padded
