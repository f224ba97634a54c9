"""Coupling rules: one small function for each kind of op, one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.coupling.rules import (
    contraction,
    convolution,
    elementwise,
    movement,
    normalisation,
    reduction,
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
}
"""(domain, op type) -> rule; the default domain is the empty string."""
