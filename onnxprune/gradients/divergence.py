"""Gradients of the divergence with respect to the outputs of a model.

At the original the divergence has no slope: what it grows by is the Fisher information of the
answers that the model itself states, a class with its probability at temperature 2, a quantity from
a distribution around it; each row of the outputs with the weight it has in the divergence.

Answers are not drawn, as of those that are nearly certain a few would decide; signs are, for every
row apart, which gives the same mean square::

    g = B r,  r = +-1        B B' = F of the outputs: diag(p) - p p' for class scores

so that half the mean square of the gradient at any place inside is the increase of the divergence
for each unit of squared error there. Source: Martens 2020, 9; Hutchinson 1990 for signs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.gradients.losses import heads_of
from onnxprune.verification.divergence import (
    AS_QUANTITIES,
    TEMPERATURE,
    distribution_spread,
    variance,
)
from onnxprune.verification.measures import OutputKind, OutputMeasure, output_measures
from onnxprune.verification.row_weights import RowWeights

_SMALLEST = 1e-12


class DivergenceGradient:
    """Gradients with random signs.

    Args:
        model: the original.
        outputs: its outputs on some batches, which say what counts how much.
        rng: draws signs.

    Attributes:
        tensors: what gradients are given for.
    """

    def __init__(
        self, model: ir.Model, outputs: Sequence[Mapping[str, Any]], rng: np.random.Generator
    ) -> None:
        self._rng = rng
        self._measures = output_measures(model, outputs)
        self._weights = RowWeights(self._measures, outputs)
        self._samples = 1
        self._scales: dict[str, float] = {}
        self._spreads: dict[str, float] = {}
        self._tensor: dict[str, str] = {}
        tensors = {head.output: head.tensor for head in heads_of(model, None)}
        for name, measure in self._measures.items():
            arrays = [batch[name] for batch in outputs]
            weights = np.concatenate([self._weights.of(name, batch) for batch in outputs])
            self._samples = sum(len(array) if array.ndim else 1 for array in arrays)
            if measure.boxes is None:
                self._scales[name] = variance(measure, arrays, weights)
            if measure.kind is not OutputKind.QUANTITIES:
                self._spreads[name] = distribution_spread(measure, arrays, weights)
            decides = measure.kind is OutputKind.SCORES
            self._tensor[name] = tensors.get(name, name) if decides else name
        self.tensors = list(self._tensor.values())

    def of(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
        """Gradients for one batch, summed over its samples and over outputs.

        Args:
            outputs: of the original, by name.

        Returns:
            by tensor, shaped like it.
        """
        gradients: dict[str, NDArray[np.float64]] = {}
        for name, measure in self._measures.items():
            weights = self._weights.of(name, outputs) * self._samples / len(self._measures)
            signed = self._signed(measure, outputs[name], np.sqrt(weights))
            tensor = self._tensor[name]
            gradients[tensor] = gradients[tensor] + signed if tensor in gradients else signed
        return gradients

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
            scales = measure.box_units(array) if boxes else self._scales[measure.name]
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
