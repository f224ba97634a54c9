"""Lossless removal: units that are dead, constant, or copies of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.streams import Samples
from onnxprune.compensation.lossless.remove import remove_lossless
from onnxprune.coupling.analysis import analyse
from onnxprune.coupling.cut import Removal
from onnxprune.model.runtime import Runtime
from onnxprune.passes.pipeline.protocol import Pass
from onnxprune.pruning.build import build_plain
from onnxprune.surgery.editable_model import EditableModel


class RemoveLosslessUnits(Pass, ir.passes.FunctionalPass):
    """Remove what changes no output: dead, constant, duplicate and proportional units.

    Args:
        samples: calibration samples; inputs to compare on, None for randomly generated ones.
        runtime: onnxruntime providers and threads.
        seed: of randomly generated inputs.

    Attributes:
        details: number of removed units by group, and the certificate.
    """

    def __init__(
        self, samples: Samples | None = None, runtime: Runtime | None = None, seed: int = 0
    ) -> None:
        super().__init__(RunContext(samples, None, runtime or Runtime(), seed))

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove and certify.

        Raises:
            VerificationError: when the cut model does not compute what the masked one does.
        """
        exact = removed_exactly(model, self.context)
        if exact is None:
            return ir.passes.PassResult(model.clone(), modified=False)
        self.details = dict(exact.details)
        return ir.passes.PassResult(exact.model, modified=True)


@dataclass(frozen=True)
class Exact:
    """A model that lost what changes no output.

    Attributes:
        model: what is left.
        details: how many units went by group, and the certificate.
    """

    model: ir.Model
    details: Mapping[str, Any]


def removed_exactly(model: ir.Model, context: RunContext) -> Exact | None:
    """Remove what changes no output; None when there is nothing of the kind.

    Args:
        model: unchanged.
        context: samples to compare on, runtime and seed.

    Raises:
        VerificationError: when the cut model does not compute what the masked one does.
    """
    analysis = analyse(model, context)
    full = EditableModel(model.clone(), analysis.coupling)
    feeds = [context.samples.take(2)] if context.samples is not None else None
    removal = remove_lossless(full, analysis.groups, context.runtime, feeds)
    if not removal.groups:
        return None
    rewritten = replace(analysis, model=full.model, coupling=full.coupling)
    cut = build_plain(rewritten, Removal(removal.units), context)
    units = {
        name: {"dead": len(each.dead), "constant": len(each.constant), "merged": len(each.merged)}
        for name, each in removal.groups.items()
    }
    return Exact(cut.model, {"units": units, "certificate": vars(cut.certificate)})
