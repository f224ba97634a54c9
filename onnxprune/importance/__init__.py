"""Criteria: how much each unit matters, one small file for each idea.

A third-party criterion is a class with the attributes and the method of `Criterion`, named by an
entry point of the group `onnxprune.criteria`.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from onnxprune.errors import InputError
from onnxprune.importance.activation import Activity, Std, Variance
from onnxprune.importance.base import Criterion, GroupView
from onnxprune.importance.gradient import Fisher, Taylor
from onnxprune.importance.magnitude import L1, L2
from onnxprune.importance.random import Random
from onnxprune.importance.reconstruction import Reconstruction
from onnxprune.importance.redundancy import Redundancy

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Criterion", "GroupView", "criterion_names", "find_criterion"]

_BUILT_IN: tuple[Callable[[], Criterion], ...] = (
    L1,
    L2,
    Std,
    Variance,
    Activity,
    Taylor,
    Fisher,
    Random,
    Redundancy,
    Reconstruction,
)
_ENTRY_POINTS = "onnxprune.criteria"


def criterion_names() -> list[str]:
    """Names of all criteria that are installed."""
    built_in = [make().name for make in _BUILT_IN]
    return built_in + sorted(entry_points(group=_ENTRY_POINTS).names - set(built_in))


def find_criterion(name: str) -> Criterion:
    """Return the criterion of a name.

    Raises:
        InputError: for an unknown name (lists those there are), or a plug-in that is no criterion.
    """
    for make in _BUILT_IN:
        criterion = make()
        if criterion.name == name:
            return criterion
    for entry in entry_points(group=_ENTRY_POINTS, name=name):
        try:
            found = entry.load()()
        except Exception as error:  # somebody else's code
            raise InputError(
                f"criterion {name!r} ({entry.value}) cannot be loaded: {error}"
            ) from error
        if not isinstance(found, Criterion):
            raise InputError(
                f"criterion {name!r} ({entry.value}) is no Criterion: it needs the "
                "attributes name, needs_calibration, comparable and the method score"
            )
        return found
    raise InputError(f"unknown criterion {name!r}; there are {', '.join(criterion_names())}")
