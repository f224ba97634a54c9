"""The plan of a pipeline: its passes as they were run, as data that runs them again.

    {"format": "onnxprune-pipeline", "version": 1,
     "model": {"sha256": "...", "producer": "...", "opset": {...}},
     "seed": 0,
     "steps": [{"pass": "keep-classes", "options": {...}},
               {"pass": "prune", "options": {...}, "plan": {...}}]}

A pass that has made a plan of its own is given it again instead of choosing anew; every other one
runs again with its options and the seed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxprune.errors import InputError
from onnxprune.model.load import LoadedModel
from onnxprune.pruning.plan import Plan, plan_text

_FORMAT = "onnxprune-pipeline"
_VERSION = 1
_PLAIN = (str, bool, int, float, type(None))


@dataclass(frozen=True)
class PlannedStep:
    """One pass of a plan.

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
        if self.plan is None and _NOT_PLAIN in options.values():
            name = next(one for one, value in options.items() if value is _NOT_PLAIN)
            raise InputError(
                f"the option {name} of the pass {self.name} is {self.options[name]!r}, which no "
                "plan can hold; give it as text, a number, a list or a mapping"
            )
        kept = {name: value for name, value in options.items() if value is not _NOT_PLAIN}
        planned = {} if self.plan is None else {"plan": dict(self.plan)}
        return {"pass": self.name, "options": kept, **planned}


@dataclass(frozen=True)
class PipelinePlan:
    """A pipeline for one model.

    Attributes:
        model: sha256, producer and opset imports of the original.
        seed: of everything random.
        steps: one for each pass.
    """

    model: Mapping[str, Any]
    seed: int
    steps: tuple[PlannedStep, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file (version 1).

        Raises:
            InputError: when a pass or an option was given as an object of Python.
        """
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "model": dict(self.model),
            "seed": self.seed,
            "steps": [one.to_dict() for one in self.steps],
        }

    def to_json(self) -> str:
        """Return the file as text; equal plans give equal text.

        Raises:
            InputError: when a pass or an option was given as an object of Python.
        """
        return json.dumps(self.to_dict(), indent=1) + "\n"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PipelinePlan:
        """Read a plan file.

        Raises:
            InputError: when it cannot be read, or is no plan of a pipeline of this version.
        """
        plan = read_plan(path)
        if isinstance(plan, cls):
            return plan
        raise InputError(f'{path}: is no plan of a pipeline; expected "format": "{_FORMAT}"')

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "the plan") -> PipelinePlan:
        """Read the content of a plan file.

        Args:
            data: the content.
            where: what to call it in errors.

        Raises:
            InputError: when it is no plan of this version.
        """
        if data.get("version") != _VERSION:
            raise InputError(
                f"{where}: has version {data.get('version')!r}, this onnxprune reads {_VERSION}"
            )
        try:
            return cls(
                dict(data["model"]), int(data["seed"]), tuple(_step(one) for one in data["steps"])
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{where}: is not a complete plan ({error!r})") from None


def model_facts(loaded: LoadedModel) -> dict[str, Any]:
    """What a plan says of the model it is for."""
    return {
        "sha256": loaded.sha256,
        "producer": loaded.model.producer_name or "",
        "opset": dict(loaded.model.opset_imports),
    }


def read_plan(path: str | os.PathLike[str]) -> Plan | PipelinePlan:
    """Read a plan file of either kind: of one pruning, or of a pipeline.

    Raises:
        InputError: when it cannot be read, or is no plan this onnxprune reads.
    """
    text, where = plan_text(path), os.fspath(path)
    try:
        data = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: is not JSON ({error})") from None
    if isinstance(data, dict) and data.get("format") == _FORMAT:
        return PipelinePlan.from_dict(data, where)
    return Plan.from_dict(data, where)


def _step(data: Mapping[str, Any]) -> PlannedStep:
    plan = data.get("plan")
    return PlannedStep(
        str(data["pass"]), dict(data["options"]), None if plan is None else dict(plan)
    )


class _NotPlain:
    """What `_plain` returns for values that JSON has no form for."""


_NOT_PLAIN = _NotPlain()


def _plain(value: Any) -> Any:
    """A value as JSON has it: paths are text, tuples are lists."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        pairs = {str(key): _plain(one) for key, one in value.items()}
        return _NOT_PLAIN if _NOT_PLAIN in pairs.values() else pairs
    if isinstance(value, Sequence):
        listed = [_plain(one) for one in value]
        return _NOT_PLAIN if _NOT_PLAIN in listed else listed
    return _NOT_PLAIN
