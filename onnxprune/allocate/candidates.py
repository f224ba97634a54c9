"""Allocations worth trying: one error curve looked at in several scalings.

No static scaling of reconstruction errors is best everywhere, so each gives one candidate and the
divergence of the outputs decides, measured on samples that were not fitted (METHODS.md 4)::

    raw        E                    error of the readers' outputs
    root       sqrt(E)
    stream     E / var(stream)      relative to the sum the output enters
    balanced   sqrt(E * E / var)    between the two
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.allocate.choose import Removal, choose
from onnxprune.allocate.knapsack import allocate
from onnxprune.errors import TargetUnreachable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from onnxprune.allocate.order import RemovalStep
    from onnxprune.cost.shapes import CutCost
    from onnxprune.coupling.groups import Group

__all__ = ["Candidate", "Ranked", "candidates"]


@dataclass(frozen=True)
class Ranked:
    """A group with its removal order and what the removal costs.

    Attributes:
        group: the group.
        steps: its removal order.
        curves: error after each step by name of the scaling, float [steps].
    """

    group: Group
    steps: tuple[RemovalStep, ...]
    curves: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Candidate:
    """One way to meet the target."""

    name: str
    removal: Removal


def candidates(
    ranked: Sequence[Ranked], target: Mapping[str, float], cost: CutCost, *, comparable: bool
) -> list[Candidate]:
    """Spread the removal over the groups in every way that the curves suggest.

    Groups that several layers read (a residual stream) are cut by the last two only, where the
    target can be met without: what they lose cannot be made up for at one place.

    Args:
        ranked: groups with their curves.
        target: kind -> fraction to remain.
        cost: the cost model.
        comparable: whether scores of different groups mean the same.

    Raises:
        TargetUnreachable: when removing everything that may go is not enough.
    """
    found = _simple(ranked, target, cost, comparable=comparable)
    kinds = [kind for kind in target if kind != "channels"]
    if len(target) > 1 or not kinds or not ranked or not ranked[0].curves:
        return found
    own = [one for one in ranked if len(_weights_read(one.group)) < 2]
    try:
        own_found = _simple(own, target, cost, comparable=False)
    except TargetUnreachable:
        own_found = []
    if not own_found or len(own) == len(ranked):
        return found + _knapsacks(ranked, "", target, cost, found[0].removal)
    return [
        *found,
        *_knapsacks(own, "", target, cost, own_found[0].removal),
        *_knapsacks(ranked, "+streams", target, cost, found[0].removal),
    ]


def _simple(
    ranked: Sequence[Ranked], target: Mapping[str, float], cost: CutCost, *, comparable: bool
) -> list[Candidate]:
    groups, orders = [one.group for one in ranked], [one.steps for one in ranked]
    found = [Candidate("uniform", choose(groups, orders, target, cost, comparable=False))]
    if comparable:
        found.append(Candidate("global", choose(groups, orders, target, cost, comparable=True)))
    return found


def _knapsacks(
    ranked: Sequence[Ranked],
    suffix: str,
    target: Mapping[str, float],
    cost: CutCost,
    start: Removal,
) -> list[Candidate]:
    ((kind, share),) = target.items()
    groups, orders = [one.group for one in ranked], [one.steps for one in ranked]
    found = []
    for name in ranked[0].curves:
        errors = [one.curves[name] for one in ranked]
        removal = allocate(groups, orders, errors, kind, share, cost, start)
        found.append(Candidate(name + suffix, removal))
    return found


def _weights_read(group: Group) -> set[str]:
    """Weights of the layers that read a group."""
    return {one.consumer.weight for one in group.readings if one.consumer.weight is not None}
