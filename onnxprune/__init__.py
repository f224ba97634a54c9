"""Structured pruning that works on the ONNX file itself.

    import onnxprune
    result = onnxprune.prune("model.onnx", calibration="samples.npz", target={"macs": 0.5})
    result.save("small.onnx")

Everything is loaded on first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxprune.errors import (
    CalibrationError,
    CollapseError,
    InputError,
    NothingPrunable,
    OnnxPruneError,
    RuntimeFailure,
    TargetUnreachable,
    VerificationError,
)

if TYPE_CHECKING:
    from onnxprune.api import apply, apply_pipeline, finetune, inspect, prune, run_pipeline, verify
    from onnxprune.calibration.audio import Audio
    from onnxprune.calibration.closed_loop import ClosedLoop
    from onnxprune.calibration.images import Images
    from onnxprune.calibration.texts import Texts
    from onnxprune.pruning.plan import PipelinePlan, Plan
    from onnxprune.pruning.results import (
        Comparison,
        Inspection,
        PipelineResult,
        PruneResult,
        Report,
    )
    from onnxprune.pruning.studies.sensitivity import Sensitivity, sensitivity
    from onnxprune.pruning.studies.sweep import Sweep, sweep

__all__ = [
    "Audio",
    "CalibrationError",
    "ClosedLoop",
    "CollapseError",
    "Comparison",
    "Images",
    "InputError",
    "Inspection",
    "NothingPrunable",
    "OnnxPruneError",
    "PipelinePlan",
    "PipelineResult",
    "Plan",
    "PruneResult",
    "Report",
    "RuntimeFailure",
    "Sensitivity",
    "Sweep",
    "TargetUnreachable",
    "Texts",
    "VerificationError",
    "apply",
    "apply_pipeline",
    "finetune",
    "inspect",
    "prune",
    "run_pipeline",
    "sensitivity",
    "sweep",
    "verify",
]

__version__ = "0.1.0"

_LAZY = {
    **dict.fromkeys(
        ("apply", "apply_pipeline", "finetune", "inspect", "prune", "run_pipeline", "verify"),
        "onnxprune.api",
    ),
    **dict.fromkeys(("PipelinePlan", "Plan"), "onnxprune.pruning.plan"),
    **dict.fromkeys(
        ("Comparison", "Inspection", "PipelineResult", "PruneResult", "Report"),
        "onnxprune.pruning.results",
    ),
    "Audio": "onnxprune.calibration.audio",
    "Images": "onnxprune.calibration.images",
    "Texts": "onnxprune.calibration.texts",
    "ClosedLoop": "onnxprune.calibration.closed_loop",
    "Sensitivity": "onnxprune.pruning.studies.sensitivity",
    "Sweep": "onnxprune.pruning.studies.sweep",
    "sensitivity": "onnxprune.pruning.studies.sensitivity",
    "sweep": "onnxprune.pruning.studies.sweep",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
