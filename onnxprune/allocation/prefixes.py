"""How far to go along every group's removal order: as little as the targets need.

Two ways to spread the removal:

* uniform: every group gives up the same fraction. Right when scores of different groups mean
  different things (weight norms);
* global: the steps that cost least importance for what they save go first, wherever they are:
  key = score / (share of the model that the step's units save). Needs comparable scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.cost.kinds import CostModel
from onnxprune.coupling.cut import Removal
from onnxprune.coupling.groups import Group
from onnxprune.errors import TargetUnreachable
from onnxprune.importance.removal_order import RemovalStep
from onnxprune.options import target_text


def choose(
    groups: Sequence[Group],
    orders: Sequence[Sequence[RemovalStep]],
    target: Mapping[str, float],
    cost: CostModel,
    *,
    comparable: bool,
) -> Removal:
    """Choose a prefix of every group's removal order.

    Args:
        groups: the groups.
        orders: the removal order of each.
        target: kind -> fraction to remain. `channels` is met by every group for itself, every
            other kind is one of the cost model and met by the model as a whole.
        cost: the cost model.
        comparable: scores of different groups mean the same, so importance may decide where the
            removal goes; a `channels` target asks for the same fraction everywhere and overrules.

    Raises:
        TargetUnreachable: when removing everything that may go is not enough.
    """
    wanted = {kind: share for kind, share in target.items() if kind != "channels"}
    if comparable and wanted.keys() == target.keys():
        keys = _by_saving(groups, orders, cost, tuple(wanted))
    else:
        keys = [[step.fraction for step in order] for order in orders]
    steps = sorted(
        (key, number, position)
        for number, order_keys in enumerate(keys)
        for position, key in enumerate(order_keys)
    )
    least = 0
    if "channels" in target:
        least = sum(key <= 1 - target["channels"] + 1e-9 for key, _, _ in steps)
    if wanted:
        least = max(least, _shortest(steps, orders, wanted, cost))
    removed: dict[str, list[int]] = {}
    for _, number, position in steps[:least]:
        removed.setdefault(groups[number].name, []).extend(orders[number][position].units)
    return Removal({name: tuple(sorted(classes)) for name, classes in removed.items()})


def _by_saving(
    groups: Sequence[Group],
    orders: Sequence[Sequence[RemovalStep]],
    cost: CostModel,
    kinds: Sequence[str],
) -> list[list[float]]:
    """Importance per saved share for each step, never falling along a group's order."""
    full = cost.whole
    keys = []
    for group, order in zip(groups, orders, strict=True):
        half = order[: max(len(order) // 2, 1)]
        removed = [unit for step in half for unit in step.units]
        saved = cost.saved_by(group, removed)
        share = sum(_ratio(saved[kind], full[kind]) for kind in kinds)
        per_unit = max(share / max(_units(group, half), 1), 1e-15)
        prices = [step.score / (per_unit * max(_units(group, [step]), 1)) for step in order]
        keys.append(np.maximum.accumulate(prices).tolist() if prices else [])
    return keys


def _units(group: Group, steps: Sequence[RemovalStep]) -> int:
    return sum(int(np.isin(step.units, group.units).sum()) for step in steps)


def _shortest(
    steps: Sequence[tuple[float, int, int]],
    orders: Sequence[Sequence[RemovalStep]],
    wanted: Mapping[str, float],
    cost: CostModel,
) -> int:
    """Length of the shortest prefix of the steps that meets every target."""
    full = cost.whole

    def reached(count: int) -> dict[str, float]:
        removed = [unit for _, n, p in steps[:count] for unit in orders[n][p].units]
        after = cost.after(removed)
        return {kind: _ratio(after[kind], full[kind]) for kind in wanted}

    def met(count: int) -> bool:
        shares = reached(count)
        return all(shares[kind] <= wanted[kind] for kind in wanted)

    low, high = 0, len(steps)
    if met(0):
        return 0
    if not met(high):
        least = reached(high)
        raise TargetUnreachable(
            f"the target {target_text(wanted)} cannot be reached; the best is {target_text(least)}",
            least,
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if met(middle) else (middle, high)
    return high


def _ratio(part: float, whole: float) -> float:
    """Part / whole; nothing of nothing is nothing."""
    return part / whole if whole else 0.0
