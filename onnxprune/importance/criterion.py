"""What a criterion is, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from onnxprune.coupling.group_view import GroupView
from onnxprune.errors import InputError
from onnxprune.importance.activation import Activity, Std, Variance
from onnxprune.importance.gradient import Fisher, Taylor
from onnxprune.importance.magnitude import L1, L2
from onnxprune.importance.random import Random
from onnxprune.importance.reconstruction import Reconstruction
from onnxprune.importance.redundancy import Redundancy


@runtime_checkable
class Criterion(Protocol):
    """Says how much each unit of a group matters.

    Attributes:
        name: what `--criterion` calls it.
        needs_calibration: whether it looks at activations.
        comparable: whether scores of different groups mean the same, so that importance may decide
            which groups give up more.
    """

    name: ClassVar[str]
    needs_calibration: ClassVar[bool]
    comparable: ClassVar[bool]

    def score(self, group: GroupView, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return the importance of each unit, float [size]; the lowest are removed first."""


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
