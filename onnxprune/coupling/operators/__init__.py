"""Coupling rules: one small function per operator, one file per family, one table."""

from __future__ import annotations

from onnxprune.coupling.operators import (
    attention,
    contraction,
    convolution,
    elementwise,
    fused,
    indexing,
    movement,
    normalisation,
    recurrent,
    reduction,
    subgraphs,
)
from onnxprune.coupling.operators import quantisation as quantised
from onnxprune.coupling.step import RuleTable

RULES: RuleTable = {
    **elementwise.RULES,
    **contraction.RULES,
    **convolution.RULES,
    **movement.RULES,
    **indexing.RULES,
    **normalisation.RULES,
    **reduction.RULES,
    **recurrent.RULES,
    **attention.RULES,
    **quantised.RULES,
    **fused.RULES,
    **subgraphs.RULES,
}
"""(domain, op type) -> rule; the default domain is the empty string."""
