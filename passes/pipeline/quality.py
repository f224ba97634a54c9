"""Quality of a whole pipeline: measured against the model that it was given, after every pass.

With a limit on the drop every fourth sample is kept from all passes and quality is measured on
these alone. A pass that prunes and has neither target nor limit of its own goes as far as the limit
allows; where a later pass then exceeds it, pruning is repeated with half of the limit, and with a
quarter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.labels import Labels, read_labels
from onnxprune.calibration.streams import Samples, divide
from onnxprune.declaration import read_options
from onnxprune.errors import InputError
from onnxprune.model.runtime import Runtime
from onnxprune.options import BEST_EFFORT, LABELS, METRIC, OPTIONS
from onnxprune.verification.metrics import read_metric
from onnxprune.verification.quality import Quality, QualityMeasure

SHARES = (1.0, 0.5, 0.25)
"""Parts of the limit that pruning may use up, tried one after another."""

_MAX_DROP = next(each for each in OPTIONS if each.name == "max_drop")


def not_met(missed: str) -> str:
    """The warning about a limit or target that is not met."""
    return f"limit not met: {missed}"


@dataclass(frozen=True)
class QualityGoal:
    """What a pipeline is asked of quality.

    Attributes:
        labels: as for `onnxprune.prune`; None for none.
        metric: as for `onnxprune.prune`; None for none.
        max_drop: largest drop of quality against the original of the pipeline; None for any.
        best_effort: hand out the best there is where that cannot be kept.
    """

    labels: Any = None
    metric: Callable[..., Any] | str | None = None
    max_drop: float | None = None
    best_effort: bool = False

    @property
    def asks(self) -> bool:
        """Whether it asks for anything."""
        return any(value is not None for value in (self.labels, self.metric, self.max_drop))

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> QualityGoal:
        """Check the options.

        Raises:
            InputError: naming the one that cannot be used.
        """
        goal = cls(**read_options((LABELS, METRIC, _MAX_DROP, BEST_EFFORT), values))
        read_metric(goal.metric)
        if goal.best_effort and goal.max_drop is None:
            raise InputError("best_effort is for max_drop; give a limit")
        return goal


@dataclass(frozen=True)
class PipelineQuality:
    """Quality against the original, as the passes of a pipeline share it.

    Attributes:
        goal: what is asked.
        labels: of all samples; None without.
        samples: those it is measured on.
        measure: against the reference; None where labels are for losses alone.
        share: part of the limit that pruning may use up.
    """

    goal: QualityGoal
    labels: Labels | None
    samples: Samples
    measure: QualityMeasure | None
    share: float = 1.0

    @property
    def limit(self) -> float | None:
        """Largest drop that a pruning without one of its own may cause; None for any."""
        return None if self.goal.max_drop is None else self.share * self.goal.max_drop

    def of(self, model: ir.Model) -> Quality | None:
        """Quality of a model; None where it is not measured."""
        return self.measure.of(model) if self.measure is not None else None

    def exceeded(self, quality: Quality | None) -> bool:
        """Whether a model has lost more than the limit."""
        limit = self.goal.max_drop
        return quality is not None and limit is not None and quality.drop > limit

    def against(self, reference: ir.Model, samples: Samples, runtime: Runtime) -> PipelineQuality:
        """The same against another reference, whose interface is another one.

        Args:
            reference: the model.
            samples: what it is measured on, as this model takes them.
            runtime: how to run models.
        """
        held_out = self.goal.max_drop is not None
        measure = QualityMeasure(
            reference, samples, runtime, metric=self.goal.metric, held_out=held_out
        )
        return replace(self, samples=samples, measure=measure)


def pipeline_quality(
    goal: QualityGoal, model: ir.Model, context: RunContext, *, labels_are_classes: bool
) -> tuple[PipelineQuality, RunContext]:
    """Set up what a pipeline is asked of quality.

    Args:
        goal: at least one of its labels, metric and limit.
        model: the original.
        context: all samples.
        labels_are_classes: whether accuracy can be measured with labels, which are then no targets
            of a regression.

    Returns:
        what passes share, and the context with the samples that they may use.

    Raises:
        InputError: without samples, or for labels or a metric that cannot be used.
    """
    if context.samples is None:
        what = "max_drop measures" if goal.max_drop is not None else "labels and metrics need"
        raise InputError(f"{what} outputs on samples; give --calibration")
    labels = None if goal.labels is None else read_labels(goal.labels, context.samples)
    measured = context.samples
    if goal.max_drop is not None:
        fitted, measured = divide(context.samples)
        context = replace(context, samples=fitted)
    judged = labels if goal.metric is not None or labels_are_classes else None
    if judged is None and goal.metric is None and goal.max_drop is None:
        return PipelineQuality(goal, labels, measured, None), context
    measure = QualityMeasure(
        model,
        measured,
        context.runtime,
        labels=judged,
        metric=goal.metric,
        held_out=goal.max_drop is not None,
    )
    return PipelineQuality(goal, labels, measured, measure), context
