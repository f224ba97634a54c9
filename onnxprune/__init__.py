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
    InputError,
    NothingPrunable,
    OnnxPruneError,
    RuntimeFailure,
    TargetUnreachable,
    VerificationError,
)

if TYPE_CHECKING:
    from onnxprune.api import Comparison, Inspection, PruneResult, apply, inspect, prune, verify
    from onnxprune.pipelines.plan import PipelinePlan
    from onnxprune.pipelines.results import PipelineResult
    from onnxprune.pipelines.run import apply_pipeline, run_pipeline
    from onnxprune.plan import Plan
    from onnxprune.report.summary import Report
    from onnxprune.sensing import sensitivity
    from onnxprune.sensitivity_rows import Sensitivity
    from onnxprune.sweeping import sweep
    from onnxprune.tradeoff import Sweep

__all__ = [
    "CalibrationError",
    "Comparison",
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
    "VerificationError",
    "apply",
    "apply_pipeline",
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
        ("Comparison", "Inspection", "PruneResult", "apply", "inspect", "prune", "verify"),
        "onnxprune.api",
    ),
    "PipelinePlan": "onnxprune.pipelines.plan",
    "PipelineResult": "onnxprune.pipelines.results",
    "Plan": "onnxprune.plan",
    "Report": "onnxprune.report.summary",
    "Sensitivity": "onnxprune.sensitivity_rows",
    "Sweep": "onnxprune.tradeoff",
    "apply_pipeline": "onnxprune.pipelines.run",
    "run_pipeline": "onnxprune.pipelines.run",
    "sensitivity": "onnxprune.sensing",
    "sweep": "onnxprune.sweeping",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
