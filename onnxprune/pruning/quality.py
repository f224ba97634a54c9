"""Labels of a run, and the measure of its quality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.samples import read_labels
from onnxprune.calibration.scripts import load_function
from onnxprune.calibration.streams import Samples, divide
from onnxprune.errors import InputError
from onnxprune.model.runtime import Runtime
from onnxprune.options import PruneOptions
from onnxprune.verification.quality import QualityMeasure


def known_labels(labels: Any, samples: Samples, options: PruneOptions) -> NDArray[Any] | None:
    """Read labels: whole numbers, unless the loss takes other targets.

    Args:
        labels: as for `prune`; None for none.
        samples: what they belong to.
        options: of the run, for their loss.

    Returns:
        one for each sample, [samples, ...]; None without.

    Raises:
        InputError: when they cannot be read, or are not as many as the samples.
    """
    return None if labels is None else read_labels(labels, samples, whole=_are_classes(options))


def fitted_samples(samples: Samples | None, options: PruneOptions) -> Samples | None:
    """The samples that layers are fitted on: all, unless some are held out for `max_drop`."""
    if samples is None or options.max_drop is None:
        return samples
    fitted, _ = divide(samples)
    return fitted


def quality_measure(
    model: ir.Model,
    samples: Samples | None,
    labels: NDArray[Any] | None,
    metric: Callable[..., Any] | str | None,
    options: PruneOptions,
    runtime: Runtime,
) -> QualityMeasure | None:
    """What measures quality, on held-out samples where it decides anything; None for nothing.

    Args:
        model: the original.
        samples: None without calibration.
        labels: from `known_labels`.
        metric: as for `prune`; None for none.
        options: of the run.
        runtime: how to run models.

    Raises:
        InputError: when something is to be measured without samples, or the metric does not load.
    """
    held_out = options.max_drop is not None
    if labels is None and metric is None and not held_out:
        return None
    if samples is None:
        what = "max_drop measures" if held_out else "labels and metrics need"
        raise InputError(f"{what} outputs on samples; give --calibration")
    function = load_function(metric, "metric") if isinstance(metric, str) else metric
    measured = divide(samples)[1] if held_out else samples
    return QualityMeasure(
        model,
        measured,
        runtime,
        labels=labels if _are_classes(options) or function is not None else None,
        metric=function,
        held_out=held_out,
    )


def _are_classes(options: PruneOptions) -> bool:
    """Whether labels are classes, not the targets of a regression."""
    return options.loss in (None, "cross-entropy")
