"""OutputSensitivity of the divergence to the outputs of layers, from gradients.

To second order the divergence D of the answers (`verification/divergence.py`) grows with an error d
at the output of a layer by d' F d / 2, with F its Gauss-Newton matrix, the Fisher information of
the answers. Of F the diagonal is taken, place by place and channel by channel::

    s = E[g^2]        g = dL/dy

with L the loss of an answer that the model itself states: a class with its probability at
temperature 2, a quantity from a distribution around it; each row of the outputs with the weight it
has in the divergence. Answers are not drawn, as of those that are nearly certain a few would
decide; signs are, for every row apart, which gives the same mean square::

    g = B r,  r = +-1        B B' = F of the outputs: diag(p) - p p' for class scores

Source: Martens 2020 (natural gradient and Gauss-Newton), 9; Hutchinson 1990 for signs; Nagel et al.
2020 and Li et al. 2021 (BRECQ) for weighting layer errors by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.sample_axes import SampleAxes
from onnxprune.calibration.sensitivity import OutputSensitivity
from onnxprune.errors import InputError, RuntimeFailure
from onnxprune.gradients.differentiated import Squared, differentiate_tensors
from onnxprune.gradients.losses import heads_of
from onnxprune.model.execution import Execution
from onnxprune.model.inputs import input_specs
from onnxprune.verification.divergence import (
    AS_QUANTITIES,
    TEMPERATURE,
    box_units,
    distribution_spread,
    variance,
)
from onnxprune.verification.measures import OutputKind, OutputMeasure, output_measures, row_weights

_ACTIVATION_BYTES = 500_000_000
"""Memory for the activations of one backward pass."""

_SMALLEST = 1e-12


def measure_sensitivity(
    model: ir.Model,
    layers: Mapping[str, Sequence[int]],
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    context: RunContext,
) -> OutputSensitivity:
    """Run a model forwards and backwards over batches.

    Args:
        model: the original; unchanged.
        layers: by name of a layer's output, the axes of its channels.
        feeds: batches; results are for these, in this order.
        context: runtime, seed of the signs that are drawn, progress callback.

    Returns:
        what is known; of layers that gradients do not get to, the reason. Nothing is raised where
        there are no gradients at all: then every layer has a reason. Layers that no answer depends
        on are in neither.
    """
    outputs = Execution(model, context.runtime, arena=False).run_all(feeds)
    rng = np.random.default_rng(context.seed)
    seeds = _Seeds(model, outputs, rng)
    try:
        made = differentiate_tensors(model, seeds.tensors, layers, feeds[0], context.runtime, rng)
        if not made.rows:
            return OutputSensitivity(blocked=made.blocked)
        backwards = _Backwards(model, made, feeds[0], context)
        sums = _Sums()
        pairs = zip(feeds, outputs, strict=True)
        for number, (feed, given) in enumerate(
            context.progress(list(pairs), "measuring sensitivity", len(feeds))
        ):
            backwards.run(feed, seeds.of(number, given), sums)
    except (InputError, RuntimeFailure) as error:
        return OutputSensitivity(blocked=dict.fromkeys(layers, str(error)))
    return sums.finished(made.blocked)


class _Sums:
    """Squared gradients as they come in."""

    def __init__(self) -> None:
        self.rows: dict[str, list[NDArray[np.float32] | None]] = {}
        self.columns: dict[str, NDArray[np.float64]] = {}
        self.samples = 0

    def add(
        self, name: str, rows: NDArray[np.float32] | None, columns: NDArray[np.float64]
    ) -> None:
        self.rows.setdefault(name, []).append(rows)
        self.columns[name] = self.columns.get(name, 0.0) + columns

    def finished(self, blocked: Mapping[str, str]) -> OutputSensitivity:
        rows: dict[str, list[NDArray[np.float32]]] = {}
        columns, reasons = {}, dict(blocked)
        for name, parts in self.rows.items():
            known = [part for part in parts if part is not None]
            count = sum(part.size for part in known)
            total = sum(float(part.sum(dtype=np.float64)) for part in known)
            if len(known) < len(parts):
                reasons[name] = "its rows cannot be told apart by sample"
            elif not math.isfinite(total):
                reasons[name] = "its gradients are not finite"
            elif total > 0:
                mean = total / count
                rows[name] = [(part / mean).astype(np.float32) for part in known]
                columns[name] = self.columns[name] / max(self.samples, 1)
        return OutputSensitivity(rows, columns, reasons)


class _Backwards:
    """The backward graph, run on as many samples at a time as memory allows."""

    def __init__(
        self,
        model: ir.Model,
        made: Squared,
        sample: Mapping[str, NDArray[Any]],
        context: RunContext,
    ) -> None:
        self._made = made
        self._axes = SampleAxes.of(input_specs(model))
        self._run = Execution(made.model, context.runtime, arena=False)
        each = made.activation_bytes / (self._axes.rows(sample) or 1)
        self._most = max(1, int(_ACTIVATION_BYTES / max(each, 1)))

    def run(
        self, feed: Mapping[str, NDArray[Any]], seeds: Mapping[str, NDArray[Any]], sums: _Sums
    ) -> None:
        """Add what one batch gives."""
        count = self._axes.rows(feed) or 1
        apart = not self._axes.fixed and all(
            len(seed) == count for seed in seeds.values() if seed.ndim
        )
        step = self._most if apart else count
        results = [
            self._run.run(
                self._made.feed(
                    self._axes.cut(feed, slice(start, start + step)),
                    _rows(seeds, start, start + step),
                )
            )
            for start in range(0, count, step)
        ]
        sums.samples += count
        for name, output in self._made.rows.items():
            parts = [result[output] for result in results]
            axis = self._made.batch_axes.get(name)
            columns = np.sum([result[self._made.columns[name]] for result in results], axis=0)
            if len(parts) == 1:
                sums.add(name, parts[0], columns.astype(np.float64))
            else:
                rows = None if axis is None else np.concatenate(parts, axis=axis)
                sums.add(name, rows, columns.astype(np.float64))


def _rows(arrays: Mapping[str, NDArray[Any]], start: int, stop: int) -> dict[str, NDArray[Any]]:
    return {name: array[start:stop] if array.ndim else array for name, array in arrays.items()}


class _Seeds:
    """Gradients with respect to the outputs, with random signs.

    Args:
        model: the original.
        outputs: of all batches.
        rng: draws signs.

    Attributes:
        tensors: what gradients are given for.
    """

    def __init__(
        self, model: ir.Model, outputs: Sequence[Mapping[str, Any]], rng: np.random.Generator
    ) -> None:
        self._rng = rng
        self._measures = output_measures(model, outputs)
        self._weights = row_weights(self._measures, outputs)
        self._scales: dict[str, float] = {}
        self._spreads: dict[str, float] = {}
        tensors = {head.output: head.tensor for head in heads_of(model, None)}
        self._tensor: dict[str, str] = {}
        for name, measure in self._measures.items():
            weights = np.concatenate(self._weights[name])
            arrays = [batch[name] for batch in outputs]
            if measure.boxes is None:
                self._scales[name] = variance(measure, arrays, weights)
            if measure.kind is not OutputKind.QUANTITIES:
                self._spreads[name] = distribution_spread(measure, arrays, weights)
            decides = measure.kind is OutputKind.SCORES
            self._tensor[name] = tensors.get(name, name) if decides else name
        self.tensors = list(self._tensor.values())

    def of(
        self, number: int, outputs: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[np.float64]]:
        """Gradients for one batch, by tensor; those of all outputs add up."""
        seeds: dict[str, NDArray[np.float64]] = {}
        samples = sum(len(batch) for batch in self._weights[next(iter(self._weights))])
        for name, measure in self._measures.items():
            weights = self._weights[name][number] * samples / len(self._measures)
            seed = self._signed(measure, outputs[name], np.sqrt(weights))
            tensor = self._tensor[name]
            seeds[tensor] = seeds[tensor] + seed if tensor in seeds else seed
        return seeds

    def _signed(
        self, measure: OutputMeasure, array: NDArray[Any], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        result = np.zeros(array.shape)
        deciding = weights / math.sqrt(self._spreads.get(measure.name, 1.0))
        if measure.kind is OutputKind.SCORES:
            rows = self._of_scores(measure.rows(array)) * deciding[:, None]
            if self._tensor[measure.name] == measure.name and not measure.logs:
                rows = rows / np.maximum(measure.plain_rows(array), _SMALLEST)
            result += measure.layout.from_rows(rows, array.shape)
        elif measure.kind is OutputKind.PROBABILITIES:
            result += (self._of_probabilities(array) * deciding).reshape(array.shape)
        if measure.kind is OutputKind.QUANTITIES or measure.unsure:
            share = AS_QUANTITIES if measure.unsure else 1.0
            boxes = measure.boxes is not None
            scales = box_units(measure, array) if boxes else self._scales[measure.name]
            rows = self._signs(measure.plain_rows(array).shape)
            rows *= weights[:, None] * np.sqrt(2 * share / scales)
            shaped = rows.reshape(array.shape) if array.ndim < 2 else None
            result += measure.layout.from_rows(rows, array.shape) if shaped is None else shaped
        return result

    def _of_scores(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Gradients with respect to class scores, [rows, classes]."""
        masked = ~np.isfinite(scores)
        rows = np.where(masked, -np.inf, scores) / TEMPERATURE
        raised = np.exp(rows - rows.max(axis=1, keepdims=True))
        probability = raised / raised.sum(axis=1, keepdims=True)
        signed = np.sqrt(probability) * self._signs(probability.shape)
        return np.asarray((signed - probability * signed.sum(axis=1, keepdims=True)) / TEMPERATURE)

    def _of_probabilities(self, array: NDArray[Any]) -> NDArray[np.float64]:
        """Gradients with respect to probabilities of single decisions, [entries]."""
        values = np.clip(array.astype(np.float64).reshape(-1), _SMALLEST, 1 - _SMALLEST)
        raised = 1 / (1 + ((1 - values) / values) ** (1 / TEMPERATURE))
        spread = np.sqrt(raised * (1 - raised)) * self._signs(values.shape)
        return np.asarray(spread / TEMPERATURE / (values * (1 - values)))

    def _signs(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return np.asarray(self._rng.choice((-1.0, 1.0), shape))
