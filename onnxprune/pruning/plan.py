"""The plan of a run, as data that outside scripts can read and that repeats the run.

One pruning is written with what was removed from which tensors::

    {"format": "onnxprune-plan", "version": 1,
     "model": {"sha256": "...", "producer": "...", "opset": {...}},
     "options": {...}, "groups": [...], "initializers": {tensor: {axis: [kept indices]}},
     "refused": [...]}

and for constants of local functions, which are inlined, `"inlined": {tensor: {"call": ...,
"function": ..., "name": ...}}`;

several passes with the name and options of each. A pass that made a plan of its own is given it
again; every other pass runs again with its options and the seed::

    {"format": "onnxprune-plan", "version": 1, "model": {...}, "seed": 0,
     "steps": [{"pass": "keep-classes", "options": {...}},
               {"pass": "prune", "options": {...}, "plan": {...}}]}
"""

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
from onnxprune.options import PruneOptions

_FORMAT = "onnxprune-plan"
_FORMATS_READ = (_FORMAT, "onnxprune-pipeline")
"""Plans of several passes had a name of their own before version 0.2."""
_VERSION = 1
_PLAIN = (str, bool, int, float, type(None))


@dataclass(frozen=True)
class PlannedGroup:
    """Removed units of one group.

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
    """An axis that cannot be cut, and why."""

    axis: str
    node: str
    reason: str


@dataclass(frozen=True)
class PlannedStep:
    """One pass of several.

    Attributes:
        name: of the pass.
        options: what was set.
        plan: what the pass itself planned, as its attribute `plan` tells; None for nothing.
        object_given: the pass was no name but an object of Python, which no file can hold.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] | None = None
    object_given: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the step as a plan file holds it.

        Raises:
            InputError: when it cannot be written down.
        """
        if self.object_given:
            raise InputError(
                f"the pass {self.name} was given as an object, which no plan can hold; give it as "
                "file.py:name"
            )
        options = {name: _plain(value) for name, value in self.options.items()}
        refused = [name for name, value in options.items() if value is _NOT_PLAIN]
        if self.plan is None and refused:
            raise InputError(
                f"the option {refused[0]} of the pass {self.name} is "
                f"{self.options[refused[0]]!r}, which no plan can hold; give it as text, a number, "
                "a list or a mapping"
            )
        kept = {name: value for name, value in options.items() if value is not _NOT_PLAIN}
        planned = {} if self.plan is None else {"plan": dict(self.plan)}
        return {"pass": self.name, "options": kept, **planned}


@dataclass(frozen=True)
class Plan:
    """A run for one model: one pruning, or several passes.

    Attributes:
        model: sha256, producer and opset imports of the original.
        options: the options of the pruning that made it.
        groups: groups that lose units.
        initializers: for every tensor that is cut, by axis, the kept indices in the original
            numbering.
        refused: axes that cannot be cut.
        stages: for a pruning in several steps, what was removed after each but the last: units by
            group id. Written only where there are any.
        blocks: sums that lost their residual branch before anything was cut; groups and
            initializers are those of the model without. Written only where there are any.
        seed: of everything random.
        steps: one for each pass; empty for one pruning, which the attributes above describe.
        tuning: how the result was fine-tuned: `rate`, the learning rate that was found, 0 where
            training was of no use, and `best`, the number of steps to the check-point that was
            kept. Written only where it was.
        components: groups whose units were rewritten into components, which are numbered in place
            of the original's own. Written only where there are any.
        inlined: for tensors of `initializers` that were constants of local functions, which the
            file has under no such name: `call`, `function` and `name` there. Written only where
            there are any.
    """

    model: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    groups: tuple[PlannedGroup, ...] = ()
    initializers: Mapping[str, Mapping[int, tuple[int, ...]]] = field(default_factory=dict)
    refused: tuple[PlannedRefusal, ...] = ()
    stages: tuple[Mapping[str, tuple[int, ...]], ...] = ()
    blocks: tuple[str, ...] = ()
    seed: int = 0
    steps: tuple[PlannedStep, ...] = ()
    inlined: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    tuning: Mapping[str, float] = field(default_factory=dict)
    components: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the plan file's content (version 1).

        Raises:
            InputError: when a pass or an option was given as an object of Python.
        """
        head = {"format": _FORMAT, "version": _VERSION, "model": dict(self.model)}
        if self.steps:
            return {**head, "seed": self.seed, "steps": [step.to_dict() for step in self.steps]}
        groups = [dict(vars(group)) for group in self.groups]
        for group in groups:
            if not group["inexact"]:
                del group["inexact"]
        optional = {
            "stages": self.stages,
            "blocks": self.blocks,
            "components": self.components,
            "tuning": self.tuning,
        }
        return {
            **head,
            "options": dict(self.options),
            "groups": _plain(groups),
            **{name: _plain(value) for name, value in optional.items() if value},
            "initializers": _plain(self.initializers),
            **({"inlined": _plain(self.inlined)} if self.inlined else {}),
            "refused": [dict(vars(refusal)) for refusal in self.refused],
        }

    def to_json(self) -> str:
        """Return the plan file as text; equal plans give equal text.

        Raises:
            InputError: when a pass or an option was given as an object of Python.
        """
        return json.dumps(self.to_dict(), indent=1) + "\n"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan file.

        Raises:
            InputError: when it cannot be read, or is no plan of this version.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: the plan cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise InputError(f"{path}: is no plan file (not text)") from None
        return cls.from_json(text, os.fspath(path))

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
        if not isinstance(data, Mapping) or data.get("format") not in _FORMATS_READ:
            raise InputError(f'{where}: is no plan of onnxprune; expected "format": "{_FORMAT}"')
        if data.get("version") != _VERSION:
            raise InputError(
                f"{where}: has version {data.get('version')!r}, this onnxprune reads {_VERSION}"
            )
        try:
            model = dict(data["model"])
            if "steps" in data:
                steps = tuple(_step(step) for step in data["steps"])
                return cls(model, seed=int(data["seed"]), steps=steps)
            options = dict(data["options"])
            return cls(
                model,
                options,
                groups=tuple(_group(group) for group in data["groups"]),
                initializers={
                    str(name): {int(axis): _indices(kept) for axis, kept in axes.items()}
                    for name, axes in data["initializers"].items()
                },
                refused=tuple(
                    PlannedRefusal(str(axis["axis"]), str(axis["node"]), str(axis["reason"]))
                    for axis in data["refused"]
                ),
                stages=tuple(
                    {str(name): _indices(removed) for name, removed in stage.items()}
                    for stage in data.get("stages", ())
                ),
                blocks=tuple(str(name) for name in data.get("blocks", ())),
                components=tuple(str(name) for name in data.get("components", ())),
                seed=int(options.get("seed", 0)),
                tuning={str(key): float(number) for key, number in data.get("tuning", {}).items()},
                inlined={
                    str(name): {str(key): str(text) for key, text in origin.items()}
                    for name, origin in data.get("inlined", {}).items()
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{where}: is not a complete plan ({error!r})") from None


PipelinePlan = Plan
"""Public name of the plan of several passes."""


def _group(data: Mapping[str, Any]) -> PlannedGroup:
    return PlannedGroup(
        id=str(data["id"]),
        size=int(data["size"]),
        removed=_indices(data["removed"]),
        kind=str(data["kind"]),
        consumers=tuple(str(node) for node in data["consumers"]),
        inexact=bool(data.get("inexact", False)),
    )


def _step(data: Mapping[str, Any]) -> PlannedStep:
    plan = data.get("plan")
    return PlannedStep(
        str(data["pass"]), dict(data["options"]), None if plan is None else dict(plan)
    )


def _indices(data: list[Any]) -> tuple[int, ...]:
    if any(not isinstance(index, int) or index < 0 for index in data):
        raise ValueError("indices are integers from 0 on")
    return tuple(sorted(set(data)))


_NOT_PLAIN: Any = object()
"""What `_plain` returns for values that JSON has no form for."""


def _plain(value: Any) -> Any:
    """A value as JSON has it: paths are text, tuples are lists."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple)) and all(type(item) is int for item in value):
        return list(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        pairs = {str(key): _plain(inner) for key, inner in value.items()}
        return _NOT_PLAIN if _NOT_PLAIN in pairs.values() else pairs
    if isinstance(value, Sequence):
        items = [_plain(item) for item in value]
        return _NOT_PLAIN if _NOT_PLAIN in items else items
    return _NOT_PLAIN


def model_facts(loaded: LoadedModel) -> dict[str, Any]:
    """What a plan says of the model it is for."""
    return {
        "sha256": loaded.sha256,
        "producer": loaded.model.producer_name or "",
        "opset": dict(loaded.model.opset_imports),
    }


def plan_of(
    loaded: LoadedModel,
    analysis: Analysis,
    removal: Removal,
    options: PruneOptions,
    stages: Sequence[Removal] = (),
    tuning: Mapping[str, float] | None = None,
) -> Plan:
    """The plan of a removal, of what each step before it removed, and of fine-tuning."""
    cut = Cut(analysis.coupling, removal.removed_units())
    groups = []
    inexact = analysis.coupling.inexact_units()
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
                    not inexact.isdisjoint(removal.units[group.name]),
                )
            )
    kept = {
        name: {axis: tuple(indices.tolist()) for axis, indices in cut.kept(name).items()}
        for name in analysis.coupling.facts.constants
        if cut.touches(name)
    }
    return Plan(
        model=model_facts(loaded),
        options=options.to_dict(),
        groups=tuple(groups),
        initializers=kept,
        refused=tuple(
            PlannedRefusal(axis.axis, axis.node, axis.reason) for axis in analysis.refused
        ),
        stages=tuple(_units(analysis, stage) for stage in stages),
        blocks=analysis.altered,
        seed=options.seed,
        tuning=dict(tuning or {}),
        inlined={name: vars(loaded.inlined[name]) for name in kept if name in loaded.inlined},
    )


def planned_removal(analysis: Analysis, plan: Plan) -> Removal:
    """The planned units, with everything that has to be removed with them.

    Raises:
        InputError: when the plan does not fit the model.
    """
    groups = {group.name: group for group in analysis.groups}
    for planned in plan.groups:
        if planned.id not in groups or groups[planned.id].size != planned.size:
            raise _misfit(planned.id)
    return _removal(groups, {planned.id: planned.removed for planned in plan.groups})


def planned_stages(analysis: Analysis, plan: Plan) -> list[Removal]:
    """What was removed after each step of the run but the last.

    Raises:
        InputError: when the plan does not fit the model.
    """
    groups = {group.name: group for group in analysis.groups}
    return [_removal(groups, stage) for stage in plan.stages]


def _units(analysis: Analysis, removal: Removal) -> dict[str, tuple[int, ...]]:
    """Removed units of every group that loses some, by its name."""
    removed_units = {}
    for group in analysis.groups:
        units = set(removal.units.get(group.name, ()))
        if removed := tuple(i for i, unit in enumerate(group.units.tolist()) if unit in units):
            removed_units[group.name] = removed
    return removed_units


def _removal(groups: Mapping[str, Group], removed: Mapping[str, Sequence[int]]) -> Removal:
    removal = {}
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
        is_removed = np.zeros(int(group.all_units.max()) + 1, bool)
        cost = np.zeros(len(is_removed))
        together = close(group.constraints, group.constraints.by_unit(), is_removed, seeds, cost)
        if together is None or int(is_removed[group.units].sum()) != len(seeds):
            raise InputError(f"the plan's removal in group {name} is not a legal one")
        removal[name] = tuple(together)
    return Removal(removal)


def _misfit(name: str) -> InputError:
    return InputError(f"the plan does not fit this model at group {name}")
