"""Labels as a teacher: the loss of a student's answers against them, and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.labels import Labels, take_labels
from onnxprune.distillation.pool import Part
from onnxprune.gradients.losses import LossGradient, heads_of
from onnxprune.model.execution import Execution
from onnxprune.model.runtime import Runtime


@dataclass(frozen=True)
class LabelLoss:
    """Loss of answers against labels.

    Attributes:
        loss: and its gradients.
        labels: of all samples.
        runtime: how to run.
    """

    loss: LossGradient
    labels: Labels
    runtime: Runtime

    def of(
        self, outputs: Mapping[str, NDArray[Any]], part: Part
    ) -> tuple[float, dict[str, NDArray[np.float64]]]:
        """Loss of outputs of a part and its gradients by tensor, a sample's mean.

        The loss is 0 where a function of the user's gives gradients only.

        Raises:
            InputError: for labels that fit no output.
        """
        labels = take_labels(self.labels, part.numbers)
        slopes = self.loss.of(outputs, labels)
        total = self.loss.total(outputs, labels) or 0.0
        return total / part.rows, {name: slope / part.rows for name, slope in slopes.items()}

    def of_model(self, model: ir.Model, parts: Sequence[Part]) -> float:
        """Loss of a model on some parts, a sample's mean; raises as `of` does."""
        execution = Execution(model, self.runtime)
        total = 0.0
        for part in parts:
            outputs = execution.run(part.feed)
            total += self.loss.total(outputs, take_labels(self.labels, part.numbers)) or 0.0
        return total / max(sum(part.rows for part in parts), 1)


def label_loss(
    student: ir.Model,
    loss: str | Callable[..., Any] | None,
    context: RunContext,
    rng: np.random.Generator,
) -> LabelLoss | None:
    """Loss of the labels of a run; None without labels.

    Args:
        student: whose outputs are judged.
        loss: as `gradients.losses.Objective` has it.
        context: labels and runtime.
        rng: for losses that draw.
    """
    if context.labels is None:
        return None
    return LabelLoss(
        LossGradient(heads_of(student, loss), loss, rng), context.labels, context.runtime
    )
