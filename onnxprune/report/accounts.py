"""What became of each group: widths, and the error curve with the point that was chosen on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxprune.allocate.candidates import Ranked
    from onnxprune.coupling.groups import Group

__all__ = ["ErrorCurve", "GroupAccount", "accounts_of"]

_POINTS = 48


@dataclass(frozen=True)
class ErrorCurve:
    """What a group costs at every width, thinned out to what a drawing shows.

    Attributes:
        kept: units that are left, the whole group first.
        error: what that costs: with error curves the part of the variance of the readers' outputs
            that is lost although their weights are solved anew, added up over the readers;
            else the summed scores of the criterion.
        chosen: error at the width that was chosen.
    """

    kept: tuple[int, ...]
    error: tuple[float, ...]
    chosen: float


@dataclass(frozen=True)
class GroupAccount:
    """One group of removable units.

    Attributes:
        number: its place among the groups of the model, from 0.
        name: its id, as in the plan.
        kind: channel, head, ...
        size: units before.
        kept: units after.
        readers: nodes that read it.
        curve: None where nothing was ranked, as when a plan is replayed.
    """

    number: int
    name: str
    kind: str
    size: int
    kept: int
    readers: tuple[str, ...]
    curve: ErrorCurve | None = None


def accounts_of(
    groups: Sequence[Group], removed: Mapping[str, int], ranked: Sequence[Ranked]
) -> tuple[GroupAccount, ...]:
    """Account for every group of a model.

    Args:
        groups: all of them.
        removed: units that went, by name of the group.
        ranked: groups with their removal orders; those that were not ranked are missing.
    """
    orders = {one.group.name: one for one in ranked}
    found = []
    for number, group in enumerate(groups):
        kept = group.size - removed.get(group.name, 0)
        order = orders.get(group.name)
        curve = None if order is None else _curve(order, kept)
        readers = dict.fromkeys(reading.consumer.node for reading in group.readings)
        found.append(
            GroupAccount(number, group.name, group.kind, group.size, kept, tuple(readers), curve)
        )
    return tuple(found)


def _curve(order: Ranked, kept: int) -> ErrorCurve | None:
    """Summed scores along a removal order."""
    if not order.steps:
        return None
    group = order.group
    units = set(group.units.tolist())
    gone = np.cumsum([sum(one in units for one in step.classes) for step in order.steps])
    widths = np.concatenate([[group.size], group.size - gone])
    errors = np.concatenate([[0.0], np.cumsum([step.score for step in order.steps])])
    # widths fall, and numpy interpolates over what rises
    chosen = float(np.interp(kept, widths[::-1], errors[::-1]))
    shown = min(_POINTS, len(widths))
    places = np.unique(np.linspace(0, len(widths) - 1, shown).round().astype(int))
    return ErrorCurve(
        tuple(int(one) for one in widths[places]),
        tuple(float(one) for one in errors[places]),
        chosen,
    )
