"""What a pipeline came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxprune.model.save import save

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx
    import onnx_graphsurgeon as gs
    import onnx_ir as ir

    from onnxprune.cost.latency import Latency
    from onnxprune.report.summary import Sizes
    from onnxprune.verification.comparison import OutputComparison

__all__ = ["PipelineResult", "StepReport"]


@dataclass(frozen=True)
class StepReport:
    """The model after one pass, compared with what the pipeline was given.

    Attributes:
        name: of the pass.
        options: what was set.
        seconds: the pass itself took.
        modified: whether it changed anything.
        sizes: what the model costs now.
        outputs: on the samples; of the reference and of this model.
        latency: measured in alternation with the reference; None where it was not.
        new_interface: inputs or outputs are others now, as this pass announces; from here on the
            model it made is the reference.
        details: what the pass tells of itself, for JSON.
        remark: what it has to say to people.
    """

    name: str
    options: Mapping[str, Any]
    seconds: float
    modified: bool
    sizes: Sizes
    outputs: tuple[OutputComparison, ...] = ()
    latency: Latency | None = None
    new_interface: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "pass": self.name,
            "options": dict(self.options),
            "seconds": self.seconds,
            "modified": self.modified,
            "new_interface": self.new_interface,
            "sizes": vars(self.sizes),
            "outputs": [one.to_dict() for one in self.outputs],
            "latency": vars(self.latency) if self.latency is not None else None,
            "remark": self.remark,
            "details": dict(self.details),
        }


@dataclass(frozen=True)
class PipelineResult:
    """What `run_pipeline` returns.

    Attributes:
        model: after the last pass, of the kind that was given (an ir.Model for a path).
        original: what the model cost at first.
        steps: one report for each pass.
    """

    model: onnx.ModelProto | ir.Model | gs.Graph
    original: Sizes
    steps: tuple[StepReport, ...]
    _ir: ir.Model
    _source: Path | None = None

    def save(self, path: str | Path) -> None:
        """Write the model atomically.

        Raises:
            InputError: when the path is that of the input, or cannot be written.
        """
        save(self._ir, path, protect=self._source)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "original": vars(self.original),
            "steps": [one.to_dict() for one in self.steps],
        }
