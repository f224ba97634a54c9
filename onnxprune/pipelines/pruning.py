"""Passes that prune channels: the whole of `onnxprune.prune`, and its lossless first step alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from onnxprune import api
from onnxprune.allocate.choose import Removal
from onnxprune.analysis import analyse
from onnxprune.building import build
from onnxprune.options import Options
from onnxprune.passes.remove_lossless import RemoveLossless
from onnxprune.progress import silent
from onnxprune.surgery.bias import FullSize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from onnxprune.calibration.samples import Samples
    from onnxprune.model.runtime import Runtime
    from onnxprune.progress import Progress

__all__ = ["Exact", "Prune", "RemoveLosslessUnits", "removed_exactly"]


class Prune(ir.passes.FunctionalPass):
    """Remove whole channels, hidden units and heads, and solve the layers around them anew.

    Args:
        samples: calibration samples; None for none.
        runtime: how to run the model.
        seed: of everything random.
        progress: told about long loops.
        options: those of `onnxprune.prune`.

    Attributes:
        details: target, certificate and widths.
    """

    options_from: ClassVar[Callable[..., Any]] = api.prune
    not_options: ClassVar[frozenset[str]] = frozenset(
        {"model", "calibration", "providers", "threads", "measure_latency"}
    )

    def __init__(
        self,
        samples: Samples | None,
        runtime: Runtime,
        seed: int = 0,
        progress: Progress[Any] = silent,
        **options: Any,
    ) -> None:
        super().__init__()
        self.samples = samples
        self.runtime = runtime
        self.seed = seed
        self.progress = progress
        self.options = options
        self.details: dict[str, Any] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Prune.

        Raises:
            NothingPrunable: when nothing can be removed, or not enough.
            VerificationError: when no result could be verified.
        """
        result = api.prune(
            model,
            calibration=self.samples,
            seed=self.seed,
            providers=self.runtime.providers,
            threads=self.runtime.threads,
            measure_latency=False,
            progress=self.progress,
            **self.options,
        )
        self.details = {
            "options": result.plan.options,
            "certificate": vars(result.report.certificate),
            "widths": {name: list(pair) for name, pair in result.report.widths.items()},
        }
        assert isinstance(result.model, ir.Model)
        return ir.passes.PassResult(result.model, modified=True)


class RemoveLosslessUnits(ir.passes.FunctionalPass):
    """Remove what changes no output: dead, constant, duplicate and proportional units.

    Args:
        samples: calibration samples; inputs to compare on, None for made-up ones.
        runtime: how to run the model.
        seed: of made-up inputs.

    Attributes:
        details: how many units went, by group.
    """

    def __init__(self, samples: Samples | None, runtime: Runtime, seed: int = 0) -> None:
        super().__init__()
        self.samples = samples
        self.runtime = runtime
        self.seed = seed
        self.details: dict[str, Any] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove and certify.

        Raises:
            VerificationError: when the cut model does not compute what the masked one does.
        """
        found = removed_exactly(model, self.samples, Options(runtime=self.runtime, seed=self.seed))
        if found is None:
            return ir.passes.PassResult(model.clone(), modified=False)
        self.details = dict(found.details)
        return ir.passes.PassResult(found.model, modified=True)


@dataclass(frozen=True)
class Exact:
    """A model that lost what changes no output.

    Attributes:
        model: what is left.
        details: how many units went by group, and the certificate.
    """

    model: ir.Model
    details: Mapping[str, Any]


def removed_exactly(model: ir.Model, samples: Samples | None, options: Options) -> Exact | None:
    """Remove what changes no output; None when there is nothing of the kind.

    Args:
        model: unchanged.
        samples: inputs to compare on; None for made-up ones.
        options: runtime and seed.

    Raises:
        VerificationError: when the cut model does not compute what the masked one does.
    """
    analysis = analyse(model, options, samples)
    full = FullSize(model.clone(), analysis.coupling)
    feeds = [samples.take(2)] if samples is not None else None
    removing = RemoveLossless(full, analysis.groups, options.runtime, feeds)
    removing(full.model)
    if not removing.found:
        return None
    rewritten = replace(analysis, model=full.model, coupling=full.coupling)
    found = {name: tuple(one.classes) for name, one in removing.found.items()}
    built = build(rewritten, Removal(found), options, None)
    units = {
        name: {"dead": len(one.dead), "constant": len(one.constant), "merged": len(one.merged)}
        for name, one in removing.found.items()
    }
    return Exact(built.model, {"units": units, "certificate": vars(built.certificate)})
