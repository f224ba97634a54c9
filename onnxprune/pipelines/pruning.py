"""Passes that prune channels: the whole of `onnxprune.prune`, and its lossless first step alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from onnxprune import api
from onnxprune.allocate.choose import Removal
from onnxprune.analysis import analyse
from onnxprune.building import build
from onnxprune.checking import check_method
from onnxprune.model.load import load
from onnxprune.options import Options
from onnxprune.passes.remove_lossless import RemoveLossless
from onnxprune.plan import Plan
from onnxprune.progress import silent
from onnxprune.surgery.bias import FullSize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from onnxprune.calibration.samples import Samples
    from onnxprune.model.runtime import Runtime
    from onnxprune.progress import Progress
    from onnxprune.results import PruneResult

__all__ = ["Exact", "Prune", "RemoveLosslessUnits", "removed_exactly"]

_MEASURES = ("labels", "metric")
"""Options of pruning that say how a result is judged, not how it is made."""


class Prune(ir.passes.FunctionalPass):
    """Remove whole channels, hidden units and heads, and solve the layers around them anew.

    Args:
        samples: calibration samples; None for none.
        runtime: how to run the model.
        seed: of everything random.
        progress: told about long loops.
        plan: of the run that is to be repeated, as `Plan.to_dict` gives it; None to choose.
        options: those of `onnxprune.prune`.

    Attributes:
        details: options, certificate, way of spreading, widths and axes that stay whole.
        plan: what was removed, filled by the call.
        notes: what was done differently from what was set, filled by the call.

    Raises:
        InputError: for options that cannot be used, or a damaged plan.
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
        plan: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.samples = samples
        self.runtime = runtime
        self.seed = seed
        self.progress = progress
        self.options = options
        self.repeated = None if plan is None else Plan.from_dict(plan)
        self.plan: dict[str, Any] | None = None
        self.notes: tuple[str, ...] = ()
        self.details: dict[str, Any] = {}
        if self.repeated is None:
            self._check()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Prune.

        Raises:
            NothingPrunable: when nothing can be removed, or not enough.
            VerificationError: when no result could be verified.
        """
        how: dict[str, Any] = {
            "calibration": self.samples,
            "providers": self.runtime.providers,
            "threads": self.runtime.threads,
            "measure_latency": False,
            "progress": self.progress,
        }
        if self.repeated is None:
            result = api.prune(model, seed=self.seed, **how, **self.options)
        else:
            # weights differ from those of the plan's run where samples do; the network is the same
            here = replace(self.repeated, model={"sha256": load(model).sha256})
            result = api.apply(model, here, **how)
        self.plan = result.plan.to_dict()
        self.details = _account(result)
        self.notes = (result.report.note,) if result.report.note else ()
        if self.repeated is not None and self.samples is None:
            self.notes += self._uncompensated(self.repeated)
        assert isinstance(result.model, ir.Model)
        return ir.passes.PassResult(result.model, modified=True)

    @staticmethod
    def _uncompensated(plan: Plan) -> tuple[str, ...]:
        planned = plan.options.get("compensate", "none")
        if planned == "none":
            return ()
        return (f"the plan was made with compensation {planned}; without samples there is none",)

    def _check(self) -> None:
        """Find mistakes in the options before anything runs.

        Raises:
            InputError: naming the option.
        """
        given = {name: one for name, one in self.options.items() if name not in _MEASURES}
        target = given.pop("target", None)
        check_method(
            {"channels": 0.5} if target is None else target,
            calibrated=self.samples is not None,
            **given,
        )


def _account(result: PruneResult) -> dict[str, Any]:
    """What a pruning did, as plain data."""
    report = result.report
    return {
        "options": result.plan.options,
        "allocation": report.allocation,
        "certificate": vars(report.certificate),
        "widths": {
            name: {"before": before, "after": after}
            for name, (before, after) in report.widths.items()
        },
        "left_whole": dict(report.dropped),
        "refused_axes": len(report.refused),
    }


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
