"""Fine-tuning of a result: its weights are trained to answer as the original does.

The surgery is certified before: structure and removal stay, values change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.streams import Samples
from onnxprune.coupling.analysis import Analysis
from onnxprune.coupling.cut import Cut, CutError, Removal
from onnxprune.distillation.distil import Distillation, distil
from onnxprune.distillation.features import KeptIndices
from onnxprune.errors import CalibrationError, NothingPrunable, RuntimeFailure
from onnxprune.options import PruneOptions
from onnxprune.pruning.run import PrunedModel


def finetuned(
    pruned: PrunedModel,
    context: RunContext,
    held_out: Samples | None = None,
    repeated: Mapping[str, float] | None = None,
) -> PrunedModel:
    """Train the weights of a result, where its options ask for it.

    Args:
        pruned: a result.
        context: samples to train on, their labels, runtime, seed and progress callback.
        held_out: samples to choose the best check-point on; None to keep a quarter of the others.
        repeated: what the plan of a run that is repeated says of it: `rate` and `best`; None
            for a new run.

    Returns:
        the result with other weights, and the account in `tuned`; as it was, with a note, where
        nothing can be trained.
    """
    options = pruned.method.options
    if not options.finetune:
        return pruned
    try:
        tuned = distil(
            pruned.cut.model,
            pruned.original.model,
            distillation_of(options, repeated),
            context,
            kept_indices(pruned.analysis, pruned.cut.removal, pruned.cut.components),
            held_out,
        )
    except (NothingPrunable, CalibrationError, RuntimeFailure) as error:
        note = "; ".join(filter(None, (pruned.note, f"not fine-tuned: {error}")))
        return replace(pruned, note=note)
    note = "; ".join(filter(None, (pruned.note, *tuned.notes)))
    return replace(pruned, cut=replace(pruned.cut, model=tuned.model), tuned=tuned, note=note)


def distillation_of(
    options: PruneOptions, repeated: Mapping[str, float] | None = None
) -> Distillation:
    """How a pruning with these options is fine-tuned.

    Args:
        options: of the run.
        repeated: as for `finetuned`.
    """
    known = repeated or {}
    return Distillation(
        options.effort,
        options.augment,
        loss=options.loss,
        rate=known.get("rate"),
        until=int(known["best"]) if "best" in known else None,
    )


def kept_indices(analysis: Analysis, removal: Removal, components: tuple[str, ...]) -> KeptIndices:
    """Which units of the original's tensors a result has.

    Args:
        analysis: of the model that the removal refers to.
        removal: what was removed.
        components: names of groups whose units are no longer the original's.
    """
    coupling = analysis.coupling
    cut = Cut(coupling, removal.removed_units())
    others = [
        unit for group in analysis.groups if group.name in components for unit in group.all_units
    ]
    rewritten = Cut(coupling, others)

    def kept(name: str) -> Mapping[int, NDArray[np.int64]] | None:
        if name not in coupling.tensors:
            return {}
        if others and rewritten.touches(name):
            return None
        try:
            return cut.kept(name)
        except CutError:
            return None

    return kept
