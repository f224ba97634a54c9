"""How far the outputs of a pruned model are from the original's, in one number.

* Class scores - what a Softmax gives or what would go into one - are compared as distributions at
  temperature 2, KL(original || pruned) averaged over samples: at 1 a few samples on which the
  original is over-confident decide.
* Every other float output: mean squared difference over the variance of the original's output.
* What a linear layer gives may be scores or quantities; the second then counts a tenth.
* An output whose shape depends on the values, and came out differently, counts as one variance.

Several outputs are averaged. Source: Hinton et al. 2015 (distillation) for the temperature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.model.execution import Execution
from onnxprune.model.outputs import LINEAR, ScoreLayout, output_producer
from onnxprune.model.runtime import Runtime

_SMALLEST = 1e-12  # keeps logarithms and quotients finite
_MASKED = -1e4  # in place of scores of minus infinity
_TEMPERATURE = 2.0  # Hinton et al. 2015
_AS_QUANTITIES = 0.1  # weight of the squared error where an output may be scores


def divergence(
    model: ir.Model, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> float:
    """Average divergence over batches.

    Args:
        model: the original; says which nodes compute its outputs.
        pairs: outputs of the original and of the pruned model by name, for each batch.

    Returns:
        0 for equal outputs; infinity when the pruned model gives NaN or infinite values.
    """
    opset = model.opset_imports.get("", 1)
    divergences = []
    for value in model.graph.outputs:
        name = value.name or ""
        arrays = [(a[name], b[name]) for a, b in pairs if _is_float(a[name]) and a[name].size]
        if any(a.shape != b.shape for a, b in arrays):
            divergences.append(1.0)
        elif arrays:
            divergences.append(_of_output(output_producer(value), arrays, opset))
    return float(np.mean(divergences)) if divergences else 0.0


def _of_output(
    producer: ir.Node | None, arrays: Sequence[tuple[NDArray[Any], NDArray[Any]]], opset: int
) -> float:
    """Divergence of one output over all batches."""
    kind = producer.op_type if producer is not None else ""
    rows = ScoreLayout.of(producer, opset).rows
    pairs = [(rows(a).astype(np.float64), rows(b).astype(np.float64)) for a, b in arrays]
    if not all(np.isfinite(b[np.isfinite(a)]).all() for a, b in pairs):
        return float("inf")
    if kind == "Softmax":
        return _kl([(np.log(a + _SMALLEST), np.log(b + _SMALLEST)) for a, b in pairs])
    if kind == "LogSoftmax":
        return _kl(pairs)
    if kind in LINEAR and pairs[0][0].shape[1] > 1:
        return _kl(pairs) + _AS_QUANTITIES * _relative(pairs)
    return _relative(pairs)


def _is_float(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind in "fV"


def _kl(pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> float:
    samples = []
    for wanted, got in pairs:
        masked = ~np.isfinite(wanted)
        first, second = (
            _normalised(np.where(masked, _MASKED, scores) / _TEMPERATURE)
            for scores in (wanted, got)
        )
        samples.append((np.exp(first) * (first - second)).sum(axis=1))
    return max(float(np.concatenate(samples).mean()), 0.0)


def _normalised(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _relative(pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> float:
    if len({a.shape[1] for a, _ in pairs}) > 1:  # positions of one batch are not those of another
        pairs = [(a.reshape(-1, 1), b.reshape(-1, 1)) for a, b in pairs]
    wanted, got = (np.concatenate(each) for each in zip(*pairs, strict=True))
    masked = ~np.isfinite(wanted)
    wanted, got = (np.where(masked, 0.0, each) for each in (wanted, got))
    scale = float(wanted.var(axis=0).sum()) or float((wanted**2).sum(axis=1).mean())
    return float(((wanted - got) ** 2).sum(axis=1).mean() / max(scale, _SMALLEST))


class DivergenceEvaluator:
    """Compares models with one original, whose outputs are computed once.

    Args:
        original: the reference.
        feeds: what all models run on, at least one batch.
        runtime: how they are run.
    """

    def __init__(
        self, original: ir.Model, feeds: Sequence[Mapping[str, NDArray[Any]]], runtime: Runtime
    ) -> None:
        self._original = original
        self._feeds = feeds
        self._runtime = runtime
        self._wanted = Execution(original, runtime).run_all(feeds)

    def divergence(self, model: ir.Model) -> float:
        """Divergence of a model with the same interface; see `verification.divergence`.

        Raises:
            RuntimeFailure: when onnxruntime refuses the model.
        """
        got = Execution(model, self._runtime).run_all(self._feeds)
        return divergence(self._original, list(zip(self._wanted, got, strict=True)))
