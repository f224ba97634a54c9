"""Refusals added up by reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnxprune.coupling.groups import Refused

__all__ = ["Reason", "group_refusals"]

# Reasons that name a tensor of the model, without it.
_GENERAL = (
    (re.compile(r"it meets an axis of .+ that cannot be cut"), "it meets an axis that stays whole"),
    (re.compile(r"the shape of .+ is unknown"), "a shape is unknown"),
    (re.compile(r".+ is only known at run time"), "a value is only known at run time"),
)


@dataclass(frozen=True)
class Reason:
    """All axes that stay whole for one reason.

    Attributes:
        reason: in plain words.
        axes: how many.
        parameters: elements of their tensors that it holds back.
        example: the axis with the most of them.
    """

    reason: str
    axes: int
    parameters: int
    example: str


def group_refusals(refused: Iterable[Refused]) -> list[Reason]:
    """Add refusals up by reason, those that hold back the most parameters first."""
    found: dict[str, list[Refused]] = {}
    for one in refused:
        found.setdefault(_general(one.reason), []).append(one)
    reasons = [_reason(text, members) for text, members in found.items()]
    return sorted(reasons, key=lambda one: (-one.parameters, -one.axes, one.reason))


def _reason(text: str, members: list[Refused]) -> Reason:
    # A tensor refused along two axes is held back once.
    tensors: dict[str, int] = {}
    for one in members:
        tensor = one.axis.rpartition("[")[0]
        tensors[tensor] = max(tensors.get(tensor, 0), one.parameters)
    largest = max(members, key=lambda one: one.parameters)
    return Reason(text, len(members), sum(tensors.values()), largest.axis)


def _general(reason: str) -> str:
    for pattern, text in _GENERAL:
        if pattern.fullmatch(reason):
            return text
    return reason
