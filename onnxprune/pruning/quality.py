"""Labels of a run, and the measure of its quality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from onnxprune.calibration.samples import read_labels
from onnxprune.calibration.scripts import load_function
from onnxprune.calibration.streams import Samples, divide
from onnxprune.errors import InputError
from onnxprune.model.load import LoadedModel
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


def divided(
    loaded: LoadedModel,
    samples: Samples | None,
    labels: Any,
    metric: Callable[..., Any] | str | None,
    options: PruneOptions,
) -> tuple[Samples | None, QualityMeasure | None, NDArray[Any] | None]:
    """Samples to fit on, what measures quality (on others where that decides anything), labels.

    Args:
        loaded: the original.
        samples: None without calibration.
        labels: as for `prune`; None for none.
        metric: as for `prune`; None for none.
        options: of the run.

    Raises:
        InputError: when something is to be measured without samples, or labels or metric do not
            fit.
    """
    held_out = options.max_drop is not None
    if labels is None and metric is None and not held_out:
        return samples, None, None
    if samples is None:
        what = "max_drop measures" if held_out else "labels and metrics need"
        raise InputError(f"{what} outputs on samples; give --calibration")
    known = known_labels(labels, samples, options)
    function = load_function(metric, "metric") if isinstance(metric, str) else metric
    fitted, measured = divide(samples) if held_out else (samples, samples)
    measure = QualityMeasure(
        loaded.model,
        measured,
        options.runtime,
        labels=known if _are_classes(options) or function is not None else None,
        metric=function,
        held_out=held_out,
    )
    return fitted, measure, known


def _are_classes(options: PruneOptions) -> bool:
    """Whether labels are classes, not the targets of a regression."""
    return options.loss in (None, "cross-entropy")
