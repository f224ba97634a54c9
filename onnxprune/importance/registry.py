"""All criteria by name: those of the package, and third-party ones from entry points."""

from __future__ import annotations

from importlib.metadata import entry_points

from onnxprune.errors import InputError
from onnxprune.importance.activation import Activity, Std, Variance
from onnxprune.importance.criterion import Criterion, ScoresUnits, ThirdPartyCriterion
from onnxprune.importance.gradient import Fisher, Taylor
from onnxprune.importance.magnitude import L1, L2
from onnxprune.importance.random import Random
from onnxprune.importance.reconstruction import Reconstruction
from onnxprune.importance.redundancy import Redundancy

# in the order in which they are listed
_BUILT_IN: dict[str, type[Criterion]] = {
    criterion.name: criterion
    for criterion in (
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
}
_ENTRY_POINTS = "onnxprune.criteria"


def criterion_names() -> list[str]:
    """Names of all criteria that are installed."""
    return [*_BUILT_IN, *sorted(entry_points(group=_ENTRY_POINTS).names - _BUILT_IN.keys())]


def find_criterion(name: str) -> Criterion:
    """Return the criterion of a name.

    Raises:
        InputError: for an unknown name (lists the known ones), or a plug-in that is no criterion.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    for entry in entry_points(group=_ENTRY_POINTS, name=name):
        try:
            criterion = entry.load()()
        except Exception as error:  # third-party code
            raise InputError(
                f"criterion {name!r} ({entry.value}) cannot be loaded: {error}"
            ) from error
        if isinstance(criterion, Criterion):
            return criterion
        if not isinstance(criterion, ScoresUnits):
            raise InputError(
                f"criterion {name!r} ({entry.value}) is no Criterion: it needs the "
                "attributes name, needs_calibration, comparable and the method score"
            )
        return ThirdPartyCriterion(criterion, name)
    raise InputError(f"unknown criterion {name!r}; there are {', '.join(criterion_names())}")
