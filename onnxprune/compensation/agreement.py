"""Trying a change that should leave the outputs of a model as they are, group by group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from onnxprune.errors import RuntimeFailure
from onnxprune.model.runtime import Runtime
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.verification.certificate import probe, tolerance_for
from onnxprune.verification.comparison import largest_difference


def agreeing_groups(
    target: EditableModel,
    groups: Sequence[str],
    change: Callable[[EditableModel, Sequence[str]], bool],
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    runtime: Runtime,
) -> tuple[list[str], tuple[str, ...]]:
    """Names of the groups whose change keeps the outputs, to the certificate's tolerance.

    Args:
        target: the model; unchanged.
        groups: names of the groups to try.
        change: changes some groups of a copy and says whether anything was changed.
        feeds: inputs to compare outputs on.
        runtime: how to run the model.

    Returns:
        the groups that agree: all where they agree together, else those that do alone where these
        agree together; and the others. Both are empty where nothing is changed.
    """
    model = target.model
    wanted: list[dict[str, Any]] = []

    def agrees(names: Sequence[str]) -> bool | None:
        """None where nothing is changed."""
        trial = EditableModel(model.clone(), target.coupling)
        try:
            if not change(trial, names):
                return None
            if not wanted:
                wanted.extend(probe(model, runtime, feeds).compared)
            outputs = probe(trial.model, runtime, feeds).compared
        except RuntimeFailure:
            return False
        return max(map(largest_difference, wanted, outputs), default=0.0) <= tolerance_for(model)

    together = agrees(groups)
    if together is not False:
        return list(groups) if together else [], ()
    alone = [name for name in groups if agrees([name])]
    kept = alone if alone and agrees(alone) else []
    return kept, tuple(name for name in groups if name not in kept)
