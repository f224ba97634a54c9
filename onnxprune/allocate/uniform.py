"""The same fraction from every group, as little as the targets need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxprune.cost.macs import count_parameters, node_macs
from onnxprune.coupling.cut import Cut
from onnxprune.errors import TargetUnreachable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from onnxprune.allocate.order import RemovalStep
    from onnxprune.coupling.groups import Group
    from onnxprune.coupling.trace import Coupling

__all__ = ["Removal", "SizeCost", "choose_uniform"]


@dataclass(frozen=True)
class Removal:
    """What every group gives up.

    Attributes:
        classes: dead classes of each group that loses something, by group name.
    """

    classes: Mapping[str, tuple[int, ...]]

    def dead(self) -> list[int]:
        """All dead classes."""
        return [one for classes in self.classes.values() for one in classes]


class SizeCost:
    """Parameters and multiply-accumulates of a model under a cut, from shapes alone."""

    def __init__(self, graph: ir.Graph, coupling: Coupling) -> None:
        self._coupling = coupling
        self._parameters = [
            name
            for name, tensor in coupling.facts.constants.items()
            if tensor.dtype.is_floating_point()
        ]
        shapes = coupling.facts.first.shapes
        self._nodes = [node for node in graph if node_macs(node, shapes.__getitem__)]

    def after(self, dead: Sequence[int]) -> dict[str, int]:
        """Return {"params": elements, "macs": operations} with the classes removed."""
        cut = Cut(self._coupling, dead)
        shapes: dict[str, tuple[int, ...]] = {}

        def shape_of(name: str) -> tuple[int, ...]:
            if name not in shapes:
                shapes[name] = cut.shape(name)
            return shapes[name]

        return {
            "params": count_parameters(shape_of, self._parameters),
            "macs": sum(node_macs(node, shape_of) for node in self._nodes),
        }


def choose_uniform(
    groups: Sequence[Group],
    orders: Sequence[Sequence[RemovalStep]],
    target: Mapping[str, float],
    cost: SizeCost,
) -> Removal:
    """Go as far along every group's removal order as the targets demand.

    Args:
        groups: the groups.
        orders: the removal order of each.
        target: kind -> fraction to remain. `channels` is met by every group for itself, `params`
            and `macs` by the model as a whole.
        cost: the cost model.

    Raises:
        TargetUnreachable: when removing everything that may go is not enough.
    """
    steps = sorted(
        (
            (step.fraction, number, position)
            for number, order in enumerate(orders)
            for position, step in enumerate(order)
        ),
    )
    least = sum(fraction <= 1 - target.get("channels", 1.0) + 1e-9 for fraction, _, _ in steps)
    wanted = {kind: share for kind, share in target.items() if kind != "channels"}
    if wanted:
        least = max(least, _shortest(steps, orders, wanted, cost))
    removed: dict[str, list[int]] = {}
    for _, number, position in steps[:least]:
        removed.setdefault(groups[number].name, []).extend(orders[number][position].classes)
    return Removal({name: tuple(sorted(classes)) for name, classes in removed.items()})


def _shortest(
    steps: Sequence[tuple[float, int, int]],
    orders: Sequence[Sequence[RemovalStep]],
    wanted: Mapping[str, float],
    cost: SizeCost,
) -> int:
    """Length of the shortest prefix of the steps that meets every target."""
    full = cost.after(())

    def reached(count: int) -> dict[str, float]:
        dead = [one for _, n, p in steps[:count] for one in orders[n][p].classes]
        after = cost.after(dead)
        return {kind: after[kind] / max(full[kind], 1) for kind in wanted}

    def met(count: int) -> bool:
        shares = reached(count)
        return all(shares[kind] <= wanted[kind] for kind in wanted)

    low, high = 0, len(steps)
    if met(0):
        return 0
    if not met(high):
        best = ", ".join(f"{kind}={share:.3f}" for kind, share in reached(high).items())
        asked = ", ".join(f"{kind}={share}" for kind, share in wanted.items())
        raise TargetUnreachable(f"the target {asked} cannot be reached; the best is {best}")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if met(middle) else (middle, high)
    return high
