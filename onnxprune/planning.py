"""From a removal to a plan, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxprune.allocate.choose import Removal
from onnxprune.coupling.closure import close
from onnxprune.coupling.cut import Cut
from onnxprune.errors import InputError
from onnxprune.options import Options, check_targets
from onnxprune.plan import Plan, PlannedGroup, PlannedRefusal

if TYPE_CHECKING:
    from onnxprune.analysis import Analysis
    from onnxprune.model.load import LoadedModel
    from onnxprune.model.runtime import Runtime

__all__ = ["plan_of", "planned_options", "planned_removal"]


def plan_of(loaded: LoadedModel, analysis: Analysis, removal: Removal, options: Options) -> Plan:
    """Write down what was removed."""
    cut = Cut(analysis.coupling, removal.dead())
    groups = []
    inexact = analysis.coupling.inexact_classes()
    for group in analysis.groups:
        gone = set(removal.classes.get(group.name, ()))
        removed = tuple(i for i, one in enumerate(group.units.tolist()) if one in gone)
        consumers = dict.fromkeys(reading.consumer.node for reading in group.readings)
        if removed:
            groups.append(
                PlannedGroup(
                    group.name,
                    group.size,
                    removed,
                    group.kind,
                    tuple(consumers),
                    not inexact.isdisjoint(gone),
                )
            )
    kept = {
        name: {axis: tuple(indices.tolist()) for axis, indices in cut.kept(name).items()}
        for name in analysis.coupling.facts.constants
        if cut.touches(name)
    }
    return Plan(
        model={
            "sha256": loaded.sha256,
            "producer": loaded.model.producer_name or "",
            "opset": dict(loaded.model.opset_imports),
        },
        options=options.to_dict(),
        groups=tuple(groups),
        initializers=kept,
        refused=tuple(PlannedRefusal(one.axis, one.node, one.reason) for one in analysis.refused),
    )


def planned_options(plan: Plan, compensate: str, runtime: Runtime) -> Options:
    """Options of a plan, with another compensation and runtime.

    Raises:
        InputError: when they are damaged.
    """
    try:
        return Options(
            target=check_targets(plan.options.get("target") or {"channels": 1.0}),
            criterion=str(plan.options.get("criterion", "l2")),
            compensate=compensate,
            allocation=str(plan.options.get("allocation", "auto")),
            include=tuple(map(str, plan.options.get("include", ()))),
            exclude=tuple(map(str, plan.options.get("exclude", ()))),
            round_to=int(plan.options.get("round_to", 1)),
            normalised_axes=bool(plan.options.get("normalised_axes", False)),
            lossless=bool(plan.options.get("lossless", True)),
            components=bool(plan.options.get("components", True)),
            augment=tuple(map(str, plan.options.get("augment", ()))),
            seed=int(plan.options.get("seed", 0)),
            runtime=runtime,
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"the plan's options are damaged ({error!r})") from None


def planned_removal(analysis: Analysis, plan: Plan) -> Removal:
    """Classes of the planned units, with everything that has to go with them.

    Raises:
        InputError: when the plan does not fit the model.
    """
    by_name = {group.name: group for group in analysis.groups}
    removed = {}
    for planned in plan.groups:
        group = by_name.get(planned.id)
        if (
            group is None
            or group.size != planned.size
            or max(planned.removed, default=0) >= group.size
        ):
            raise InputError(f"the plan does not fit this model at group {planned.id}")
        gone = set(planned.removed)
        if any(
            whole and gone.issuperset(units)
            for units, whole in zip(group.axes, group.closed, strict=True)
        ):
            raise InputError(f"the plan leaves nothing of an axis of group {planned.id}")
        seeds = [int(group.units[unit]) for unit in planned.removed]
        dead = np.zeros(int(group.classes.max()) + 1, bool)
        killed = close(
            group.constraints, group.constraints.by_class(), dead, seeds, np.zeros(len(dead))
        )
        if killed is None or int(dead[group.units].sum()) != len(seeds):
            raise InputError(f"the plan's removal in group {planned.id} is not a legal one")
        removed[group.name] = tuple(killed)
    return Removal(removed)
