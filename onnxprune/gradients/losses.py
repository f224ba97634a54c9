"""Losses, and their gradients with respect to the outputs of a model.

Class scores have the cross-entropy, its gradient with respect to the scores before the softmax is
p - 1(label). Other outputs have half the squared error, with the gradient y - target. A function of
the user's gives the loss of each sample, which is then differentiated numerically with respect to
the outputs, or the gradients themselves.

Without labels these are drawn from the distribution that the model itself states: a class from
its probabilities, a target from the normal distribution around y with the deviation that this
output has over the first batch. Squared gradients then average to the Fisher information, not to
the "empirical Fisher" of the given labels. Drawn classes, and their loss, are those at temperature
2: at 1 nearly all gradients of a network that is sure of its answers come from a few samples.
Source: Kunstner et al. 2019; Theis et al. 2018; Park et al. 2024 (K-prune) for the temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.labels import Labels
from onnxprune.errors import InputError, typed_line
from onnxprune.model.outputs import SOFTMAX, ScoreLayout, gives_scores, output_producer

LOSSES = ("cross-entropy", "mse")
_TEMPERATURE = 2.0
"""Of the distribution that classes are drawn from (Park et al. 2024)."""
_SMALLEST = 1e-30
"""Probability that a logarithm is taken of at least."""
_STEP = 1e-3
"""Of central differences, relative to the value where that is above 1."""
_MOST_ENTRIES = 10_000
"""Entries of a sample's output up to which a loss function is differentiated numerically."""


@dataclass(frozen=True)
class Objective:
    """What importance is measured against.

    Attributes:
        loss: one of LOSSES, or a function of all outputs ({name: array [samples, ...]}) and their
            labels (None without) that gives the loss of each sample, float [samples], or gradients
            by output name; None takes cross-entropy for class scores and mse for other outputs.
        labels: of all samples, [count, ...], for a function also any list; None to draw them from
            the model's own outputs.
    """

    loss: str | Callable[..., Any] | None = None
    labels: Labels | None = None


@dataclass(frozen=True)
class Head:
    """Where a loss meets the model.

    Attributes:
        output: name of the output.
        tensor: name of the tensor that the gradient is taken with respect to: what a softmax
            reads, or the output itself.
        scores: whether it holds class scores.
        layout: how these lie in it.
        probability: how probabilities come of the output: itself, exp, or softmax.
    """

    output: str
    tensor: str
    scores: bool
    layout: ScoreLayout = field(default_factory=ScoreLayout)
    probability: str = "softmax"


def heads_of(model: ir.Model, loss: str | Callable[..., Any] | None) -> list[Head]:
    """Where the loss meets the outputs of a model: one head for each floating-point output."""
    opset = model.opset_imports.get("", 1)
    heads = []
    for value in model.graph.outputs:
        if value.type is not None and value.dtype is not None and value.dtype.is_integer():
            continue
        heads.append(_head(value, loss, opset))
    return heads


def _head(value: ir.Value, loss: str | Callable[..., Any] | None, opset: int) -> Head:
    name, producer = value.name or "", output_producer(value)
    if loss == "mse" or callable(loss) or (loss is None and not gives_scores(producer)):
        return Head(name, name, scores=False)
    kind = producer.op_type if producer is not None else ""
    layout = ScoreLayout.of(producer, opset)
    own = value.producer()
    if (
        kind in SOFTMAX
        and own is not None
        and producer is not None
        and producer.graph is not own.graph
    ):
        return Head(name, name, scores=False)  # its scores stay in the branches
    if producer is not None and kind in SOFTMAX:
        read = producer.inputs[0]
        tensor = (read.name or "") if read is not None else name
        return Head(name, tensor, scores=True, layout=layout, probability=kind)
    return Head(name, name, scores=True, layout=layout)


class LossGradient:
    """Gradients of a loss, summed over samples, with respect to the outputs of a model.

    Args:
        heads: where the loss meets the model.
        loss: the user's function; None where the heads say all.
        rng: draws labels.

    Attributes:
        tensors: what gradients are given for.
    """

    def __init__(
        self, heads: Sequence[Head], loss: str | Callable[..., Any] | None, rng: np.random.Generator
    ) -> None:
        self.tensors = [head.tensor for head in heads]
        self._heads = heads
        self._function = loss if callable(loss) else None
        self._rng = rng
        self._deviation: dict[str, float] = {}

    def of(
        self, outputs: Mapping[str, NDArray[Any]], labels: Labels | None
    ) -> dict[str, NDArray[np.float64]]:
        """Gradients for the outputs of a batch.

        Args:
            outputs: by name.
            labels: of its samples; None draws them.

        Returns:
            by name of the tensor of each head, shaped like it.

        Raises:
            InputError: when labels fit no output, or the function gives no losses.
        """
        heads = [head for head in self._heads if _is_float(outputs.get(head.output))]
        if self._function is not None:
            return _by_function(self._function, heads, outputs, labels)
        if labels is None:
            return {head.tensor: self._drawn(head, outputs[head.output]) for head in heads}
        labels = np.asarray(labels)
        for head in heads:
            target = _fitting(head, outputs[head.output], labels)
            if target is not None:
                value = outputs[head.output].astype(np.float64)
                start = _probabilities(head, value) if head.scores else value
                return {head.tensor: start - target}
        shapes = ", ".join(f"{head.output} {list(outputs[head.output].shape)}" for head in heads)
        raise InputError(
            f"labels of shape {list(labels.shape)} fit no output ({shapes}); give a class for each "
            "row of scores for cross-entropy, targets of the output's shape for mse, or a loss "
            "function"
        )

    def total(self, outputs: Mapping[str, NDArray[Any]], labels: Labels) -> float | None:
        """Loss of a batch, summed over its samples; None where a function gives gradients only.

        Args:
            outputs: by name.
            labels: of its samples.

        Raises:
            InputError: as for `of`.
        """
        if self._function is not None:
            name = str(getattr(self._function, "__name__", "loss"))
            losses = _called(self._function, name, outputs, labels)
            return None if isinstance(losses, Mapping) else float(np.sum(losses))
        slopes = self.of(outputs, labels)
        for head in self._heads:
            if head.tensor not in slopes:
                continue
            slope = slopes[head.tensor]
            if not head.scores:
                return 0.5 * float(np.sum(slope**2))
            value = outputs[head.output].astype(np.float64)
            probability = _probabilities(head, value)
            # what the slope subtracts from the probabilities is 1 at the label
            target = probability - slope
            return -float(np.sum(target * np.log(np.maximum(probability, _SMALLEST))))
        return None

    def _drawn(self, head: Head, output: NDArray[Any]) -> NDArray[np.float64]:
        value = output.astype(np.float64)
        if head.scores and np.prod(head.layout.rows(value).shape[1:]) > 1:
            probability = _probabilities(head, value, _TEMPERATURE)
            rows = head.layout.rows(probability)
            drawn = (rows.cumsum(axis=1) < self._rng.random((len(rows), 1))).sum(axis=1)
            classes = np.minimum(drawn, rows.shape[1] - 1)
            target = head.layout.from_rows(np.eye(rows.shape[1])[classes], value.shape)
            return (probability - target) / _TEMPERATURE
        scale = self._deviation.setdefault(head.output, float(value.std()) or 1.0)
        return self._rng.standard_normal(value.shape) / scale


def _fitting(head: Head, output: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64] | None:
    """Labels as a target of the output's shape; None when they do not fit it."""
    if not head.scores:
        fits = output.size == labels.size and output.shape[0] == len(labels)
        return labels.reshape(output.shape).astype(np.float64) if fits else None
    rows = head.layout.rows(output)
    if labels.size != len(rows) or labels.dtype.kind not in "iu" or rows.shape[1] < 2:
        return None
    classes = labels.reshape(-1)
    if classes.min() < 0 or classes.max() >= rows.shape[1]:
        raise InputError(
            f"the labels lie between {classes.min()} and {classes.max()}, but {head.output} has "
            f"{rows.shape[1]} classes, counted from 0"
        )
    return head.layout.from_rows(np.eye(rows.shape[1])[classes], output.shape)


def _probabilities(
    head: Head, value: NDArray[np.float64], temperature: float = 1.0
) -> NDArray[np.float64]:
    """Probabilities of classes, of scores divided by a temperature."""
    rows = head.layout.rows(value)
    if head.probability == "Softmax":
        rows = np.log(np.maximum(rows, _SMALLEST))
    rows = rows / temperature
    raised = np.exp(rows - rows.max(axis=1, keepdims=True))
    return head.layout.from_rows(raised / raised.sum(axis=1, keepdims=True), value.shape)


def _by_function(
    function: Callable[..., Any],
    heads: Sequence[Head],
    outputs: Mapping[str, NDArray[Any]],
    labels: Labels | None,
) -> dict[str, NDArray[np.float64]]:
    name = str(getattr(function, "__name__", "loss"))
    values = {head.output: outputs[head.output].astype(np.float64) for head in heads}
    result = _called(function, name, {**outputs, **values}, labels)
    if isinstance(result, Mapping):
        for key, gradient in result.items():
            if key not in values or np.shape(gradient) != values[key].shape:
                raise InputError(
                    f"the loss {name} gave a gradient {list(np.shape(gradient))} for {key!r}; "
                    "expected names and shapes of outputs"
                )
        return {key: np.asarray(gradient, np.float64) for key, gradient in result.items()}
    return {key: _differenced(function, name, {**outputs, **values}, labels, key) for key in values}


def _differenced(
    function: Callable[..., Any],
    name: str,
    outputs: Mapping[str, NDArray[Any]],
    labels: Labels | None,
    key: str,
) -> NDArray[np.float64]:
    """Central differences with respect to one entry of every sample at a time."""
    value = outputs[key]
    entries = value[0].size
    if entries > _MOST_ENTRIES:
        raise InputError(
            f"the loss {name} is differentiated numerically, and {key!r} has {entries} entries for "
            "each sample; let it give {output: gradient}"
        )
    gradient = np.zeros((len(value), entries))
    for entry in range(entries):
        losses = []
        for sign in (1, -1):
            moved = value.copy().reshape(len(value), entries)
            step = _STEP * np.maximum(np.abs(moved[:, entry]), 1.0)
            moved[:, entry] += sign * step
            changed = {**outputs, key: moved.reshape(value.shape)}
            losses.append(np.asarray(_called(function, name, changed, labels), np.float64))
        if any(loss.shape != (len(value),) for loss in losses):
            raise InputError(
                f"the loss {name} gave {list(losses[0].shape)}, expected one loss for each of "
                f"{len(value)} samples, or {{output: gradient}}"
            )
        gradient[:, entry] = (losses[0] - losses[1]) / (2 * step)
    return gradient.reshape(value.shape)


def _called(function: Callable[..., Any], name: str, outputs: Any, labels: Any) -> Any:
    try:
        return function(dict(outputs), labels)
    except Exception as error:  # third-party code
        raise InputError(f"the loss {name} raised {typed_line(error)}") from error


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fV" and value.size > 0
