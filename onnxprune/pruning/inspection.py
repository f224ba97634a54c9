"""Looking at models without changing them: what can be pruned, and how two models differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from onnxprune.calibration.checks import sample_warnings
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.samples import CalibrationSource, model_samples
from onnxprune.cost.figures import node_costs
from onnxprune.coupling.analysis import analyse
from onnxprune.model.load import LoadedModel, loaded_bytes
from onnxprune.options import HIDDEN, PruneOptions
from onnxprune.pruning.quality import known_labels, quality_measure
from onnxprune.pruning.results import Comparison, Inspection, batch_of, sizes_of
from onnxprune.report.network.network import find_network
from onnxprune.verification.certificate import check_interface
from onnxprune.verification.comparison import compare_outputs


def inspect_model(
    loaded: LoadedModel, calibration: CalibrationSource | None, context: RunContext
) -> Inspection:
    """Say what can be pruned, what cannot and why, and what every node costs.

    Args:
        loaded: the model.
        calibration: samples, as for `onnxprune.prune`.
        context: runtime.

    Raises:
        InputError: for a model or samples that cannot be used.
    """
    if calibration is not None:
        samples = model_samples(calibration, loaded.model, context.runtime)
        context = replace(context, samples=samples)
    analysis = analyse(loaded.model, context, normalised_axes=HIDDEN)
    graph, coupling = analysis.model.graph, analysis.coupling
    return Inspection(
        sizes=sizes_of(analysis, (), loaded_bytes(loaded)),
        batch=batch_of(analysis),
        nodes=tuple(node_costs(graph, coupling)),
        groups=analysis.groups,
        refused=analysis.refused,
        network=find_network(graph, coupling, analysis.groups, analysis.refused),
    )


def compare_models(
    original: LoadedModel,
    pruned: LoadedModel,
    calibration: CalibrationSource,
    context: RunContext,
    labels: Any = None,
    metric: Callable[..., Any] | str | None = None,
) -> Comparison:
    """Compare two models with the same interface on samples.

    Args:
        original: the first model.
        pruned: the second model.
        calibration: samples, as for `onnxprune.prune`.
        context: runtime and progress callback.
        labels: as for `onnxprune.prune`, for measuring quality; None for none.
        metric: as for `onnxprune.prune`; None for none.

    Raises:
        InputError: for models, samples, labels or a metric that cannot be used.
        VerificationError: when their interfaces differ.
    """
    check_interface(original.model, pruned.model)
    samples = model_samples(calibration, original.model, context.runtime)
    context = replace(context, samples=samples)
    options = PruneOptions()
    known = known_labels(labels, samples, options)
    measure = quality_measure(original.model, samples, known, metric, options, context.runtime)
    outputs = compare_outputs(
        original.model, pruned.model, samples, context.runtime, progress=context.progress
    )
    sizes = [
        sizes_of(analyse(loaded.model, context), (), loaded_bytes(loaded))
        for loaded in (original, pruned)
    ]
    warnings = sample_warnings(original.model, samples, context.runtime)
    quality = measure.of(pruned.model) if measure is not None else None
    return Comparison(tuple(outputs), sizes[0], sizes[1], warnings, quality)
