"""What a pass of a pipeline is: an onnx-ir pass that may also account for what it did.

A pass of another package need not derive from `Pass`: `onnxprune.passes.pipeline.adapters` reads
those attributes that it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.feeds import Feed
from onnxprune.calibration.streams import Samples
from onnxprune.cost.latency.measure import Latency
from onnxprune.coupling.analysis import Analysis
from onnxprune.model.load import LoadedModel
from onnxprune.pruning.results import Report
from onnxprune.report.records import TuningRecord
from onnxprune.verification.quality import Quality


@dataclass(frozen=True)
class VerifiedRun:
    """What a pass that verifies its own result hands the pipeline, which need not do it again.

    Attributes:
        analysis: of the model that the pass was given.
        report: the account; `outputs`, and `latency` where it is None, are left to the pipeline.
        samples: those to compare outputs on; None without.
    """

    analysis: Analysis
    report: Report
    samples: Samples | None


@dataclass(frozen=True)
class Reference:
    """What the answers of a pipeline's models are to follow.

    Attributes:
        model: the one that the pipeline was given; after a pass that changes inputs or outputs the
            one that this pass made.
        pruning: plan of the pruning by which the current model was cut from it; None for none.
    """

    model: ir.Model
    pruning: Mapping[str, Any] | None = None


class Pass(ir.passes.PassBase):
    """A pass of a pipeline; as an onnx-ir pass it can also stand in an `onnx_ir.passes.Sequential`.

    Subclasses derive from `onnx_ir.passes.InPlacePass` or `FunctionalPass` as well. All attributes
    but those of the class are filled by the call.

    Args:
        context: samples, runtime, seed and progress callback; default: those of a run without
            samples.

    Attributes:
        changes_interface: inputs and outputs of the result may be others.
        verifies: the pass verifies its own result and sets `verified`.
        wants_latency: `remark` is to be given the latency against the model before the pass.
        prefers: option -> value that earlier passes had better be run with, where they have such
            an option, nobody set it, and they find enough to do with it.
        details: plain data about what was done, for the report.
        notes: sentences on what was done differently from what was set.
        files: suffix -> text of files that belong beside the model, as `{".tokens.json": "..."}`.
        plan: plain data from which the pass can be repeated without choosing anew: it is then given
            back as the parameter `plan` of the constructor. None for nothing.
        verified: what `verifies` promises; None for other passes.
        teacher: what answers are to follow from here on; None for what they followed before.
        tuning: account of a fine-tuning; None for other passes.
        quality: of the result, where options of the pass itself say what it is.
    """

    changes_interface: bool = False
    verifies: bool = False
    wants_latency: bool = False

    def __init__(self, context: RunContext | None = None) -> None:
        super().__init__()
        self.context = context or RunContext()
        self.prefers: Mapping[str, Any] = {}
        self.details: dict[str, Any] = {}
        self.notes: tuple[str, ...] = ()
        self.files: dict[str, str] = {}
        self.plan: dict[str, Any] | None = None
        self.verified: VerifiedRun | None = None
        self.teacher: ir.Model | None = None
        self.tuning: TuningRecord | None = None
        self.quality: Quality | None = None

    def remark(self, latency: Latency | None) -> str:
        """A sentence for people about what was done; empty for none.

        Args:
            latency: of the result against the model before the pass; None where not measured.
        """
        del latency
        return ""

    def convert(self, feed: Feed) -> Mapping[str, NDArray[Any]]:
        """A feed for the result; called after the pass, and only where `changes_interface`.

        Args:
            feed: for the model before the pass. A result without rows is left out.
        """
        return feed

    def run(self, loaded: LoadedModel) -> ir.passes.PassResult:
        """Call the pass with a model that stays as it is.

        Args:
            loaded: the model; where it is unchanged since it was read, with path and digest.
        """
        return self(loaded.model.clone() if self.changes_input else loaded.model)
