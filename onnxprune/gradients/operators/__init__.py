"""Gradient rules: one small function per operator, one file per family, one table."""

from __future__ import annotations

from onnxprune.gradients.operators import (
    contraction,
    elementwise,
    indexing,
    movement,
    normalisation,
    quantisation,
    recurrent,
    reduction,
)
from onnxprune.gradients.step import Rule

RULES: dict[tuple[str, str], Rule] = {
    **contraction.RULES,
    **elementwise.RULES,
    **indexing.RULES,
    **movement.RULES,
    **normalisation.RULES,
    **quantisation.RULES,
    **recurrent.RULES,
    **reduction.RULES,
}
"""Rule of every operator, by domain and name."""
