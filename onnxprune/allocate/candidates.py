"""Allocations worth trying: one error curve looked at in several scalings.

No static scaling of reconstruction errors is best everywhere, so each gives one candidate and the
divergence of the outputs decides, measured on samples that were not fitted (METHODS.md 4)::

    raw         E                   error of the readers' outputs
    stream      E / var(stream)     relative to the sum the output enters
    balanced    the geometric mean of both; `towards raw`, `towards stream`: closer to one
    root        sqrt(E)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.allocate.choose import Removal, choose
from onnxprune.allocate.knapsack import allocate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from onnxprune.allocate.order import RemovalStep
    from onnxprune.cost.shapes import CutCost
    from onnxprune.coupling.groups import Group

__all__ = ["Candidate", "Ranked", "knapsack_candidates", "simple_candidates", "without_shared"]


@dataclass(frozen=True)
class Ranked:
    """A group with its removal order and what the removal costs.

    Attributes:
        group: the group.
        steps: its removal order.
        curves: error after each step by name of the scaling, float [steps].
        parts: removals of the group that do not depend on each other, each ranked for itself;
            empty when it has only one.
    """

    group: Group
    steps: tuple[RemovalStep, ...]
    curves: Mapping[str, NDArray[np.float64]]
    parts: tuple[Ranked, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """One way to meet the target."""

    name: str
    removal: Removal


def simple_candidates(
    ranked: Sequence[Ranked], target: Mapping[str, float], cost: CutCost, *, comparable: bool
) -> list[Candidate]:
    """Spread the removal over the groups uniformly and, by comparable scores, globally.

    Args:
        ranked: groups with their removal orders.
        target: kind -> fraction to remain.
        cost: the cost model.
        comparable: whether scores of different groups mean the same.

    Raises:
        TargetUnreachable: when removing everything that may go is not enough.
    """
    groups, orders = [one.group for one in ranked], [one.steps for one in ranked]
    found = [Candidate("uniform", choose(groups, orders, target, cost, comparable=False))]
    if comparable:
        found.append(Candidate("global", choose(groups, orders, target, cost, comparable=True)))
    return found


def knapsack_candidates(
    ranked: Sequence[Ranked], target: Mapping[str, float], cost: CutCost
) -> list[Candidate]:
    """Spread the removal by every scaling of the error curves; none where there are no curves.

    A target of channels is met by every group for itself, and several targets at once have no
    single cost, so these give no candidates either.

    Args:
        ranked: groups with their curves.
        target: kind -> fraction to remain.
        cost: the cost model.

    Raises:
        TargetUnreachable: when removing everything that may go is not enough.
    """
    if len(target) > 1 or "channels" in target or not ranked:
        return []
    ((kind, share),) = target.items()
    groups, orders = [one.group for one in ranked], [one.steps for one in ranked]
    start = choose(groups, orders, target, cost, comparable=False)
    parts = [part for one in ranked for part in (one.parts or (one,))]
    groups, orders = [one.group for one in parts], [one.steps for one in parts]
    found: list[Candidate] = []
    for name in ranked[0].curves:
        errors = [one.curves[name] for one in parts]
        removal = allocate(groups, orders, errors, kind, share, cost, start)
        if all(removal.classes != one.removal.classes for one in found):
            found.append(Candidate(name, removal))
    return found


def without_shared(ranked: Sequence[Ranked]) -> list[Ranked]:
    """Groups that one layer reads at most.

    What a group with many readers loses (a residual stream) cannot be made up for at one place, and
    its error curve says too little of that.
    """
    return [one for one in ranked if len(_weights_read(one.group)) < 2]


def _weights_read(group: Group) -> set[str]:
    """Weights of the layers that read a group."""
    return {one.consumer.weight for one in group.readings if one.consumer.weight is not None}
