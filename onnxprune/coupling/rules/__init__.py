"""Coupling rules: one small function for each kind of op, one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.coupling.rules import (
    attention,
    contraction,
    convolution,
    elementwise,
    fused,
    movement,
    normalisation,
    quantised,
    recurrent,
    reduction,
    subgraphs,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxprune.coupling.step import Step

__all__ = ["RULES"]

RULES: dict[tuple[str, str], Callable[[Step], None]] = {
    **elementwise.RULES,
    **contraction.RULES,
    **convolution.RULES,
    **movement.RULES,
    **normalisation.RULES,
    **reduction.RULES,
    **recurrent.RULES,
    **attention.RULES,
    **quantised.RULES,
    **fused.RULES,
    **subgraphs.RULES,
}
"""(domain, op type) -> rule; the default domain is the empty string."""
