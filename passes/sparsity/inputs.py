"""What linear layers read: the order of their inputs, and how large these are on samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.batches import drawn_rows
from onnxprune.calibration.walk import Walk
from onnxprune.compensation.regression.layers import LinearLayer
from onnxprune.model.runtime import Runtime
from onnxprune.progress import Progress, silent

_ROWS = 65_536


@dataclass(frozen=True)
class InputMoments:
    """Moments of what a layer reads, float64 [groups, unknowns].

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
    runtime: Runtime,
    seed: int = 0,
    progress: Progress[Any] = silent,
) -> list[InputMoments]:
    """Measure what every layer reads, in one walk through the model.

    Args:
        model: unchanged.
        layers: in graph order.
        feeds: batches; the first of them have to fit into memory together.
        runtime: how to run the model.
        seed: of the rows that are drawn where there are very many.
        progress: told about every layer.
    """
    walk = Walk(model, feeds, runtime)
    found = []
    for number, layer in enumerate(progress(layers, "measuring inputs", len(layers))):
        walk.advance(layer.node)
        data = walk[layer.data]
        counts = [layer.rows_of(one.shape) for one in data]
        total, square, rows = np.zeros(layer.shape[::2]), np.zeros(layer.shape[::2]), 0
        for array, ids in zip(data, drawn_rows(counts, _ROWS, [seed, number]), strict=True):
            x = layer.rows(array, ids)
            total += x.sum(axis=0, dtype=np.float64)
            square += np.einsum("rgd,rgd->gd", x, x, dtype=np.float64)
            rows += len(ids)
        found.append(InputMoments(total / rows, square / rows))
    return found
