"""Passes that prune channels: the whole of `onnxprune.prune`, and its lossless first step alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import onnx_ir as ir

from onnxprune import api
from onnxprune.calibration.streams import Samples
from onnxprune.declaration import Option
from onnxprune.importance.registry import resolve_options
from onnxprune.model.load import load
from onnxprune.model.runtime import Runtime
from onnxprune.options import LABELS, METRIC, OPTIONS
from onnxprune.progress import Progress, silent
from onnxprune.pruning.plan import Plan
from onnxprune.pruning.results import PruneResult

_MEASURES = (LABELS, METRIC)
"""Options of pruning that say how a result is measured, not how it is made."""


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

    declared: ClassVar[tuple[Option, ...]] = (*OPTIONS, *_MEASURES)

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
        measures = [each.name for each in _MEASURES]
        how = {name: value for name, value in self.options.items() if name not in measures}
        resolve_options(how, calibrated=self.samples is not None)


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
