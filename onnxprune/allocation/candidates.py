"""Allocations worth trying: one error curve looked at in several scalings.

No static scaling of reconstruction errors is best everywhere, so each gives one candidate and the
divergence of the outputs decides, measured on samples that were not fitted (docs/mechanisms.md,
Allocation)::

    raw         E                   error of the readers' outputs
    stream      E / var(stream)     relative to the sum the output enters
    balanced    the geometric mean of both; `towards raw`, `towards stream`: closer to one
    root        sqrt(E)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxprune.allocation.knapsack import allocate
from onnxprune.allocation.prefixes import choose
from onnxprune.cost.kinds import CostModel
from onnxprune.coupling.cut import Removal
from onnxprune.coupling.groups import Group
from onnxprune.importance.removal_order import RankedGroup

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Candidate:
    """One way to meet the target."""

    name: str
    removal: Removal


def simple_candidates(
    ranked: Sequence[RankedGroup], target: Mapping[str, float], cost: CostModel, *, comparable: bool
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
    groups, orders = [entry.group for entry in ranked], [entry.steps for entry in ranked]
    found = [Candidate("uniform", choose(groups, orders, target, cost, comparable=False))]
    if comparable:
        found.append(Candidate("global", choose(groups, orders, target, cost, comparable=True)))
    return found


def knapsack_candidates(
    ranked: Sequence[RankedGroup],
    target: Mapping[str, float],
    cost: CostModel,
    scaling: str | None = None,
) -> list[Candidate]:
    """Spread the removal by every scaling of the error curves; none where there are no curves.

    Where channels are a target, every group gives up at least its share for itself and the curves
    say which give up more; channels alone leave nothing to spread.

    Args:
        ranked: groups with their curves.
        target: kind -> fraction to remain; all are met.
        cost: the cost model.
        scaling: name of the only one wanted; None for all.

    Raises:
        TargetUnreachable: when removing everything that may go is not enough.
    """
    costs = {kind: share for kind, share in target.items() if kind != "channels"}
    if not costs or not ranked:
        return []
    # parts of a group share its axes, so that each could give up its share and all too much
    whole = "channels" in target
    parts = [part for entry in ranked for part in ((entry,) if whole else entry.parts or (entry,))]
    names = [name for name in scalings(parts) if scaling in (None, name)]
    if not names:
        return []
    groups, orders = [entry.group for entry in ranked], [entry.steps for entry in ranked]
    start = choose(groups, orders, target, cost, comparable=False)
    groups, orders = [part.group for part in parts], [part.steps for part in parts]
    removed = 1 - target.get("channels", 1.0) + _ROUNDING
    least = [sum(step.fraction <= removed for step in order) for order in orders]
    found: list[Candidate] = []
    for name in names:
        errors = [part.curves[name] for part in parts]
        removal = allocate(groups, orders, errors, costs, cost, start, least)
        if all(removal.units != entry.removal.units for entry in found):
            found.append(Candidate(name, removal))
    return found


def scalings(ranked: Sequence[RankedGroup]) -> list[str]:
    """Names of the error curves that all groups, or their parts, have, the preferred one first."""
    known = [part.curves.keys() for entry in ranked for part in entry.parts or (entry,)]
    return [name for name in known[0] if all(name in names for names in known)] if known else []


def without_shared(ranked: Sequence[RankedGroup]) -> list[RankedGroup]:
    """Groups that one layer reads at most.

    The loss of a group with many consumers (a residual stream) cannot be compensated at one place,
    and its error curve underestimates it. Of the branches of an If only one runs.
    """
    return [entry for entry in ranked if _layers_at_once(entry.group) < 2]


def _layers_at_once(group: Group) -> int:
    """Number of layers with different weights that read a group in one run."""
    weights: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for reading in group.readings:
        consumer = reading.consumer
        if consumer.weight is not None:
            weights[consumer.body.rpartition("/")[0]][consumer.body].add(consumer.weight)
    return sum(max(map(len, branches.values())) for branches in weights.values())
