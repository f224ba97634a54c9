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
    from collections.abc import Mapping, Sequence

    from onnxprune.analysis import Analysis
    from onnxprune.coupling.groups import Group
    from onnxprune.model.load import LoadedModel
    from onnxprune.model.runtime import Runtime

__all__ = ["plan_of", "planned_options", "planned_removal", "planned_stages"]


def plan_of(
    loaded: LoadedModel,
    analysis: Analysis,
    removal: Removal,
    options: Options,
    stages: Sequence[Removal] = (),
) -> Plan:
    """Write down what was removed, at last and after each step before."""
    cut = Cut(analysis.coupling, removal.dead())
    groups = []
    inexact = analysis.coupling.inexact_classes()
    units = _units(analysis, removal)
    for group in analysis.groups:
        if group.name in units:
            consumers = dict.fromkeys(reading.consumer.node for reading in group.readings)
            groups.append(
                PlannedGroup(
                    group.name,
                    group.size,
                    units[group.name],
                    group.kind,
                    tuple(consumers),
                    not inexact.isdisjoint(removal.classes[group.name]),
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
        stages=tuple(_units(analysis, stage) for stage in stages),
        blocks=analysis.altered,
    )


def planned_options(plan: Plan, compensate: str, runtime: Runtime) -> Options:
    """Options of a plan, with another compensation and runtime.

    Raises:
        InputError: when they are damaged.
    """
    try:
        limit, rounding = plan.options.get("max_drop"), plan.options.get("round_to", 1)
        return Options(
            target=check_targets(plan.options.get("target") or {"channels": 1.0}),
            criterion=str(plan.options.get("criterion", "l2")),
            compensate=compensate,
            allocation=str(plan.options.get("allocation", "auto")),
            include=tuple(map(str, plan.options.get("include", ()))),
            exclude=tuple(map(str, plan.options.get("exclude", ()))),
            round_to="auto" if rounding == "auto" else int(rounding),
            normalised_axes=bool(plan.options.get("normalised_axes", False)),
            lossless=bool(plan.options.get("lossless", True)),
            components=bool(plan.options.get("components", True)),
            augment=tuple(map(str, plan.options.get("augment", ()))),
            steps=int(plan.options.get("steps", 1)),
            blocks=bool(plan.options.get("blocks", False)),
            max_drop=None if limit is None else float(limit),
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
    groups = {group.name: group for group in analysis.groups}
    for planned in plan.groups:
        if planned.id not in groups or groups[planned.id].size != planned.size:
            raise _misfit(planned.id)
    return _removal(groups, {planned.id: planned.removed for planned in plan.groups})


def planned_stages(analysis: Analysis, plan: Plan) -> list[Removal]:
    """What was gone after each step of the run but the last.

    Raises:
        InputError: when the plan does not fit the model.
    """
    groups = {group.name: group for group in analysis.groups}
    return [_removal(groups, stage) for stage in plan.stages]


def _units(analysis: Analysis, removal: Removal) -> dict[str, tuple[int, ...]]:
    """Removed units of every group that loses some, by its name."""
    found = {}
    for group in analysis.groups:
        gone = set(removal.classes.get(group.name, ()))
        if removed := tuple(i for i, one in enumerate(group.units.tolist()) if one in gone):
            found[group.name] = removed
    return found


def _removal(groups: Mapping[str, Group], removed: Mapping[str, Sequence[int]]) -> Removal:
    classes = {}
    for name, units in removed.items():
        group = groups.get(name)
        if group is None or max(units, default=0) >= group.size:
            raise _misfit(name)
        if any(
            whole and set(units).issuperset(axis)
            for axis, whole in zip(group.axes, group.closed, strict=True)
        ):
            raise InputError(f"the plan leaves nothing of an axis of group {name}")
        seeds = [int(group.units[unit]) for unit in units]
        dead = np.zeros(int(group.classes.max()) + 1, bool)
        killed = close(
            group.constraints, group.constraints.by_class(), dead, seeds, np.zeros(len(dead))
        )
        if killed is None or int(dead[group.units].sum()) != len(seeds):
            raise InputError(f"the plan's removal in group {name} is not a legal one")
        classes[name] = tuple(killed)
    return Removal(classes)


def _misfit(name: str) -> InputError:
    return InputError(f"the plan does not fit this model at group {name}")
