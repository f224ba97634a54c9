"""The plan: what is removed from which tensors, as data that outside scripts can read and check."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.coupling.analysis import Analysis
from onnxprune.coupling.closure import close
from onnxprune.coupling.cut import Cut, Removal
from onnxprune.coupling.groups import Group
from onnxprune.errors import InputError
from onnxprune.model.load import LoadedModel
from onnxprune.model.runtime import Runtime
from onnxprune.options import PruneOptions, check_targets

_FORMAT = "onnxprune-plan"
_VERSION = 1


@dataclass(frozen=True)
class PlannedGroup:
    """What one group gives up.

    Attributes:
        id: the group's name.
        size: number of its units in the original.
        removed: indices of the removed units, ascending.
        kind: channel, head or channel group.
        consumers: nodes that read it.
        inexact: statistics run over what is kept, so that the pruned model differs from the
            original with the removed slices at zero. Written only where it is true.
    """

    id: str
    size: int
    removed: tuple[int, ...]
    kind: str
    consumers: tuple[str, ...]
    inexact: bool = False


@dataclass(frozen=True)
class PlannedRefusal:
    """An axis that stays whole, and why."""

    axis: str
    node: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """A removal for one model.

    Attributes:
        model: sha256, producer and opset imports of the original.
        options: the options of the run that made it.
        groups: groups that lose units.
        initializers: for every tensor that is cut, by axis, the kept indices in the original
            numbering.
        refused: axes that cannot be cut.
        stages: for a run in several steps, what was gone after each but the last: removed units by
            group id. Written only where there are any.
        blocks: sums that lost their residual branch before anything was cut; groups and
            initializers are those of the model without. Written only where there are any.
    """

    model: dict[str, Any]
    options: dict[str, Any]
    groups: tuple[PlannedGroup, ...]
    initializers: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    refused: tuple[PlannedRefusal, ...] = ()
    stages: tuple[dict[str, tuple[int, ...]], ...] = ()
    blocks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the plan file's content (version 1)."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "model": self.model,
            "options": self.options,
            "groups": [
                {
                    "id": group.id,
                    "size": group.size,
                    "removed": list(group.removed),
                    "kind": group.kind,
                    "consumers": list(group.consumers),
                    **({"inexact": True} if group.inexact else {}),
                }
                for group in self.groups
            ],
            **({"stages": [_listed(one) for one in self.stages]} if self.stages else {}),
            **({"blocks": list(self.blocks)} if self.blocks else {}),
            "initializers": {
                name: {str(axis): list(kept) for axis, kept in axes.items()}
                for name, axes in self.initializers.items()
            },
            "refused": [
                {"axis": one.axis, "node": one.node, "reason": one.reason} for one in self.refused
            ],
        }

    def to_json(self) -> str:
        """Return the plan file as text; equal plans give equal text."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan file.

        Raises:
            InputError: when it cannot be read, or is no plan of this version.
        """
        return cls.from_json(plan_text(path), os.fspath(path))

    @classmethod
    def from_json(cls, text: str, where: str = "the plan") -> Plan:
        """Read the text of a plan file.

        Args:
            text: the content.
            where: what to call it in errors.

        Raises:
            InputError: when it is no plan of this version.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise InputError(f"{where}: is not JSON ({error})") from None
        return cls.from_dict(data, where)

    @classmethod
    def from_dict(cls, data: Any, where: str = "the plan") -> Plan:
        """Read the content of a plan file.

        Args:
            data: what its JSON says.
            where: what to call it in errors.

        Raises:
            InputError: when it is no plan of this version.
        """
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise InputError(f'{where}: is no plan of onnxprune; expected "format": "{_FORMAT}"')
        if data.get("version") != _VERSION:
            raise InputError(
                f"{where}: has version {data.get('version')!r}, this onnxprune reads {_VERSION}"
            )
        try:
            return cls(
                model=dict(data["model"]),
                options=dict(data["options"]),
                groups=tuple(_group(one) for one in data["groups"]),
                initializers={
                    str(name): {int(axis): _indices(kept) for axis, kept in axes.items()}
                    for name, axes in data["initializers"].items()
                },
                refused=tuple(
                    PlannedRefusal(str(one["axis"]), str(one["node"]), str(one["reason"]))
                    for one in data["refused"]
                ),
                stages=tuple(
                    {str(name): _indices(removed) for name, removed in stage.items()}
                    for stage in data.get("stages", ())
                ),
                blocks=tuple(str(name) for name in data.get("blocks", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{where}: is not a complete plan ({error!r})") from None


def plan_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a plan file.

    Raises:
        InputError: when it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: the plan cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is no plan file (not text)") from None


def _group(data: dict[str, Any]) -> PlannedGroup:
    return PlannedGroup(
        id=str(data["id"]),
        size=int(data["size"]),
        removed=_indices(data["removed"]),
        kind=str(data["kind"]),
        consumers=tuple(str(one) for one in data["consumers"]),
        inexact=bool(data.get("inexact", False)),
    )


def _listed(stage: dict[str, tuple[int, ...]]) -> dict[str, list[int]]:
    return {name: list(removed) for name, removed in stage.items()}


def _indices(data: list[Any]) -> tuple[int, ...]:
    if any(not isinstance(one, int) or one < 0 for one in data):
        raise ValueError("indices are integers from 0 on")
    return tuple(sorted(set(data)))


def plan_of(
    loaded: LoadedModel,
    analysis: Analysis,
    removal: Removal,
    options: PruneOptions,
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


def planned_options(plan: Plan, compensate: str, runtime: Runtime) -> PruneOptions:
    """Options of a plan, with another compensation and runtime.

    Raises:
        InputError: when they are damaged.
    """
    try:
        limit, rounding = plan.options.get("max_drop"), plan.options.get("round_to", 1)
        return PruneOptions(
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
