"""How far the outputs of a pruned model are from the original's, in one number.

Rows are weighted so that each class of the original's answers counts alike (`measures.py`), half of
it where the original gives that class and half where the result does: a model that always gives the
most frequent answer is far off, however frequent that is, and so is one that gives a rare answer
too often.

Every output is measured in units of what a model scores that always gives the same, so that 1 is
the divergence of that model, or of boxes nobody can use:

* Class scores are compared as distributions at temperature 2, KL(original || pruned), over the same
  of the mean distribution: at 1 a few samples on which the original is over-confident decide.
  Probabilities are compared the same way, each with its complement.
* Quantities: squared error over the variance of the original around its mean at each place.
  Of boxes over that at which two boxes overlap by about half.
* What a linear layer gives may be scores or quantities; the second then counts a tenth.
* Batches for which the shape of an output depends on the values (the boxes that were found), and
  came out differently, count 1.

Several outputs are averaged. Source: Hinton et al. 2015 (distillation) for the temperature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.model.execution import Execution
from onnxprune.model.runtime import Runtime
from onnxprune.verification.measures import OutputKind, OutputMeasure, output_measures
from onnxprune.verification.row_weights import row_weights

TEMPERATURE = 2.0
"""Of distributions that are compared (Hinton et al. 2015)."""

AS_QUANTITIES = 0.1
"""Weight of the squared error where an output may be scores."""

_SMALLEST = 1e-12  # keeps logarithms and quotients finite
_LEAST_SPREAD = 1e-6  # KL divergence below which distributions do not vary
_MASKED = -1e4  # in place of scores of minus infinity


def divergence(
    model: ir.Model, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> float:
    """Divergence over all samples of some batches.

    Args:
        model: the original; says which nodes compute its outputs.
        pairs: outputs of the original and of the pruned model by name, for each batch.

    Returns:
        0 for equal outputs; infinity when the pruned model gives NaN or infinite values.
    """
    divergences = list(divergences_by_output(model, pairs).values())
    return float(np.mean(divergences)) if divergences else 0.0


def divergences_by_output(
    model: ir.Model, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> dict[str, float]:
    """The same for each floating-point output; see `divergence`."""
    measures = output_measures(model, [original for original, _ in pairs])
    divergences: dict[str, float] = {}
    for name, measure in measures.items():
        tied = {each: measures[each] for each in (name, measure.rows_of) if each}
        alike = [(a, b) for a, b in pairs if all(a[each].shape == b[each].shape for each in tied)]
        filled = [(a, b) for a, b in alike if a[name].size]
        apart = 1 - len(alike) / len(pairs)
        if not all(np.isfinite(b[name][np.isfinite(a[name])]).all() for a, b in filled):
            divergences[name] = float("inf")
            continue
        divergences[name] = apart
        if filled:
            originals = [original for original, _ in filled]
            both = [row_weights(tied, originals, given) for given in (None, [b for _, b in filled])]
            weights = np.mean([np.concatenate(each[name]) for each in both], axis=0)
            arrays = [(a[name], b[name]) for a, b in filled]
            divergences[name] += (1 - apart) * _of_output(measure, arrays, weights)
    return divergences


def _of_output(
    measure: OutputMeasure,
    arrays: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    weights: NDArray[np.float64],
) -> float:
    """Divergence of one output over all batches."""
    if measure.kind is OutputKind.QUANTITIES:
        return relative_error(measure, arrays, weights)
    apart = [_kl(_compared(measure, a), _compared(measure, b)) for a, b in arrays]
    spread = distribution_spread(measure, [original for original, _ in arrays], weights)
    result = max(float(weights @ np.concatenate(apart)), 0.0) / spread
    if measure.unsure:
        result += AS_QUANTITIES * relative_error(measure, arrays, weights)
    return result


def _compared(measure: OutputMeasure, array: NDArray[Any]) -> NDArray[np.float64]:
    """Class scores, of probabilities those of yes and no: [rows, classes]."""
    rows = measure.rows(array)
    if measure.kind is OutputKind.PROBABILITIES:
        both = np.concatenate([1 - rows, rows], axis=1)
        return np.asarray(np.log(np.maximum(both, 0) + _SMALLEST))
    return rows


def _kl(wanted: NDArray[np.float64], got: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL divergence of each row."""
    masked = ~np.isfinite(wanted)
    first, second = _distribution(wanted), _distribution(np.where(masked, _MASKED, got))
    return np.asarray((np.exp(first) * (first - second)).sum(axis=1))


def _distribution(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of probabilities at the temperature, of rows of scores."""
    scores = np.where(np.isfinite(scores), scores, _MASKED) / TEMPERATURE
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def distribution_spread(
    measure: OutputMeasure, originals: Sequence[NDArray[Any]], weights: NDArray[np.float64]
) -> float:
    """KL divergence of the mean distribution from those of the rows, at temperature 2, above 0.

    It is the entropy of the mean less the mean entropy.

    Args:
        measure: of an output of decisions.
        originals: the original's output, batch by batch.
        weights: of the rows, [rows]; they add up to 1.

    Returns:
        what a model scores that always gives the mean; 1 where rows differ in their classes, or
        nothing varies.
    """
    mean: NDArray[np.float64] | None = None
    entropy, done = 0.0, 0
    for array in originals:  # one after the other: those of a language model are large
        logs = _distribution(_compared(measure, array))
        shares, part = np.exp(logs), weights[done : done + len(logs)]
        done += len(logs)
        if mean is not None and len(mean) != logs.shape[1]:
            return 1.0
        mean = part @ shares if mean is None else mean + part @ shares
        entropy -= float(part @ (shares * logs).sum(axis=1))
    assert mean is not None
    spread = -float((mean * np.log(np.maximum(mean, _SMALLEST))).sum()) - entropy
    return spread if spread > _LEAST_SPREAD else 1.0


def relative_error(
    measure: OutputMeasure,
    arrays: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    weights: NDArray[np.float64],
) -> float:
    """Weighted squared error over that of a model that always gives the mean at each place.

    That of boxes is over the error at which they are of no use.

    Args:
        measure: of the output.
        arrays: of the original and of another model, batch by batch.
        weights: of the rows, [rows].
    """
    originals = [original for original, _ in arrays]
    wanted = joined_rows(measure, originals)
    got = joined_rows(measure, [other for _, other in arrays])
    got = np.where(np.isfinite(wanted), got, 0.0)
    wanted = np.where(np.isfinite(wanted), wanted, 0.0)
    if measure.boxes is not None:
        units = np.concatenate([measure.box_units(each) for each in originals])
        return float(weights @ ((wanted - got) ** 2 / units).sum(axis=1))
    scale = variance(measure, originals, weights)
    if len(wanted) != len(weights):  # batches differ in their columns, so that entries are rows
        return float(((wanted - got) ** 2).mean() / scale)
    return float(weights @ ((wanted - got) ** 2).sum(axis=1) / scale)


def joined_rows(measure: OutputMeasure, arrays: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Rows of all batches, [rows, columns]; single entries where columns differ between batches."""
    rows = [measure.plain_rows(array) for array in arrays]
    if len({each.shape[1] for each in rows}) > 1:
        rows = [each.reshape(-1, 1) for each in rows]
    return np.concatenate(rows)


def variance(
    measure: OutputMeasure, originals: Sequence[NDArray[Any]], weights: NDArray[np.float64]
) -> float:
    """Weighted variance of the rows of an output around their mean at each place, above 0.

    Args:
        measure: of the output.
        originals: the original's output, batch by batch.
        weights: of the rows, [rows]; they add up to 1.

    Returns:
        summed over columns; the mean square where the output never varies.
    """
    wanted = joined_rows(measure, originals)
    wanted = np.where(np.isfinite(wanted), wanted, 0.0)
    if len(wanted) != len(weights):
        weights = np.full(len(wanted), 1 / max(len(wanted), 1))
    samples = sum(len(each) if each.ndim else 1 for each in originals)
    alike = len({each.shape[1:] for each in originals}) == 1 and len(wanted) % samples == 0
    places = len(wanted) // samples if alike and samples > 1 else 1
    by_place = wanted.reshape(-1, places, wanted.shape[1])
    share = weights.reshape(-1, places, 1)
    mean = (share * by_place).sum(axis=0) / np.maximum(share.sum(axis=0), _SMALLEST)
    spread = float((share * (by_place - mean) ** 2).sum())
    return max(spread or float(weights @ (wanted**2).sum(axis=1)), _SMALLEST)


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
