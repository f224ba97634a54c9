"""The plan: what is removed from which tensors, as data that outside scripts can read and check."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxprune.errors import InputError

__all__ = ["Plan", "PlannedGroup", "PlannedRefusal", "plan_text"]

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
