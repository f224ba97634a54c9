"""All criteria by name: those of the package, and third-party ones from entry points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

from onnxprune.calibration.scripts import FUNCTION, load_function
from onnxprune.errors import InputError
from onnxprune.gradients.losses import LOSSES
from onnxprune.importance.activation import Activity, Std, Variance
from onnxprune.importance.criterion import Criterion, ScoresUnits, ThirdPartyCriterion
from onnxprune.importance.gradient import Fisher, Taylor
from onnxprune.importance.magnitude import L1, L2
from onnxprune.importance.random import Random
from onnxprune.importance.reconstruction import Reconstruction
from onnxprune.importance.redundancy import Redundancy
from onnxprune.options import PruneOptions

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


def resolve_options(options: Mapping[str, Any], *, calibrated: bool) -> PruneOptions:
    """Check options as the API takes them, before any work; see `PruneOptions.read`.

    Raises:
        InputError: naming the option that cannot be used, criterion and loss included.
    """
    checked = PruneOptions.read(options, calibrated=calibrated)
    find_criterion(checked.criterion)
    loss = checked.loss
    if not isinstance(loss, str) or loss in LOSSES:
        return checked
    if not FUNCTION.fullmatch(loss):
        raise InputError(
            f"unknown loss {loss!r}; there are {', '.join(LOSSES)}, or module.py:function"
        )
    return replace(checked, loss=load_function(loss, "loss"))
