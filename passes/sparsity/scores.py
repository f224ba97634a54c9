"""Scores of single weights, and how many of its weights each layer loses.

    magnitude   |w|                       Han et al. 2015
    wanda       |w| E[x^2]^1/2            Sun et al. 2024
    obs         second order, decided while layers are solved (`second_order.py`)

One threshold for the whole model compares magnitudes as they are. Where inputs were measured, it
compares what a weight adds to the output of its layer, as a share of what all weights of the layer
add, inputs taken for uncorrelated: w^2 E[x^2] / sum w^2 Var[x].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.batches import drawn_rows
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.walk import Walk
from onnxprune.compensation.regression.linear_layers import LinearLayer
from onnxprune.passes.sparsity.patterns import Pattern

_ROWS = 65_536
"""Rows from which the moments of a layer's inputs are taken."""

_LEAST_KEPT = 0.05
_TINY = 1e-30


@dataclass(frozen=True)
class InputMoments:
    """Moments of the inputs of a layer, float64 [groups, unknowns].

    Attributes:
        mean: E[x].
        square: E[x^2].
    """

    mean: NDArray[np.float64]
    square: NDArray[np.float64]


def input_order(layer: LinearLayer) -> NDArray[np.int64]:
    """The unknowns of a layer in the order in which patterns count them.

    Those of a convolution tap by tap, all channels of a tap together: along the channels, hardware
    that skips N:M zeros groups them (Mishra et al. 2021).
    """
    convolves = layer.node.op_type in ("Conv", "ConvTranspose")
    taps = prod(layer.weight_shape[2:]) if convolves else 1
    return np.arange(layer.shape[2]).reshape(-1, taps).T.reshape(-1)


def input_moments(
    model: ir.Model,
    layers: Sequence[LinearLayer],
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    context: RunContext,
) -> list[InputMoments]:
    """Measure the inputs of every layer in one walk through the model.

    Args:
        model: unchanged.
        layers: in graph order.
        feeds: batches; all of them have to fit into memory together.
        context: runtime, seed of the rows that are drawn where there are very many, and progress.
    """
    walk = Walk(model, feeds, context.runtime)
    moments = []
    progress = context.progress(layers, "measuring inputs", len(layers))
    for number, layer in enumerate(progress):
        walk.advance(layer.node)
        data = walk[layer.data]
        counts = [layer.rows_of(array.shape) for array in data]
        total, square, rows = np.zeros(layer.shape[::2]), np.zeros(layer.shape[::2]), 0
        for array, ids in zip(data, drawn_rows(counts, _ROWS, [context.seed, number]), strict=True):
            x = layer.rows(array, ids)
            total += x.sum(axis=0, dtype=np.float64)
            square += np.einsum("rgd,rgd->gd", x, x, dtype=np.float64)
            rows += len(ids)
        moments.append(InputMoments(total / rows, square / rows))
    return moments


def weight_scores(weight: NDArray[np.float64], moments: InputMoments | None) -> NDArray[np.float64]:
    """Scores within a layer: of Wanda with moments, magnitudes without.

    Args:
        weight: [groups, outputs, unknowns].
        moments: of the layer's inputs.
    """
    scale = 1.0 if moments is None else np.sqrt(moments.square)[:, np.newaxis]
    return np.asarray(np.abs(weight) * scale)


def shares_of_output(weight: NDArray[np.float64], moments: InputMoments) -> NDArray[np.float64]:
    """Scores that can be compared between layers.

    Args:
        weight: [groups, outputs, unknowns].
        moments: of the layer's inputs.
    """
    variance = np.maximum(moments.square - moments.mean**2, 0)[:, np.newaxis]
    power = weight**2
    return np.asarray(
        power * moments.square[:, np.newaxis] / max(float((power * variance).sum()), _TINY)
    )


def layer_amounts(
    scores: Sequence[NDArray[np.float64]], pattern: Pattern, amount: float
) -> list[float]:
    """Share of zeros of every layer under one threshold for all.

    Args:
        scores: of each layer, [outputs, inputs], comparable between layers.
        pattern: where zeros may lie.
        amount: share of zeros of all layers together. Each layer keeps at least 5 % of its blocks,
            those of the highest scores (fewer if `amount` leaves less); others lose more instead.
    """
    blocks = [pattern.block_scores(layer).reshape(-1) for layer in scores]
    for layer in blocks:
        spared = int(np.ceil(layer.size * min(_LEAST_KEPT, 1 - amount)))
        layer[np.argsort(layer, kind="stable")[layer.size - spared :]] = np.inf
    every = np.concatenate(blocks)
    wanted = min(round(amount * every.size), int(np.isfinite(every).sum()))
    removed = np.argsort(every, kind="stable")[:wanted]
    owner = np.repeat(np.arange(len(blocks)), [len(layer) for layer in blocks])
    counts = np.bincount(owner[removed], minlength=len(blocks))
    return [int(n) / len(layer) for n, layer in zip(counts, blocks, strict=True)]
