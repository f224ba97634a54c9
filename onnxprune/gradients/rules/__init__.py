"""All gradient rules: one file for each family of operators, one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.gradients.rules import (
    contraction,
    elementwise,
    indexing,
    movement,
    normalisation,
    quantisation,
    recurrent,
    reduction,
)

if TYPE_CHECKING:
    from onnxprune.gradients.step import Rule

__all__ = ["RULES"]

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
