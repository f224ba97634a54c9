"""Fused operators written out in operators that have gradient rules: one table.

The standard gives bodies for most of its composite operators; those of onnxruntime have none, and
are written here in ONNX text, in operators that mean the same in every operator set.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxprune.gradients.decompositions import (
    attention,
    contraction,
    elementwise,
    embedding,
    quantisation,
)
from onnxprune.gradients.decompositions.fused import Decomposition, Fused, standard_body
from onnxprune.gradients.operators import RULES
from onnxprune.model.observe import Observation

BODIES: dict[tuple[str, str], Callable[[Fused], Decomposition]] = {
    **attention.BODIES,
    **contraction.BODIES,
    **elementwise.BODIES,
    **embedding.BODIES,
    **quantisation.BODIES,
}
"""Body of every operator that the standard gives none for, by domain and name."""


def decomposition_of(node: ir.Node, seen: Observation, opset: int) -> Decomposition | None:
    """What a node is made of.

    Args:
        node: of a model.
        seen: a run of it.
        opset: of the model.

    Returns:
        None for an operator that has a gradient rule or no body, and for what only computes with
        integers.

    Raises:
        NoGradient: for a form of the node that its body does not cover.
    """
    key = (node.domain, node.op_type)
    if key in RULES:
        return None
    fused = Fused(node, seen, opset, shape_of=seen.shapes.__getitem__)
    if key in BODIES:
        return BODIES[key](fused)
    kind = seen.types.get(node.outputs[0].name or "") if node.outputs else None
    if node.domain or kind is None or not kind.is_floating_point() or not node.inputs:
        return None
    return standard_body(fused)
