"""What single weights are worth, and how much each layer can spare.

    magnitude   |w|                       Han et al. 2015
    wanda       |w| E[x^2]^1/2            Sun et al. 2024
    obs         second order, decided while layers are solved (`second_order.py`)

Between layers, with a threshold for the whole model, magnitudes are compared as they are. Where
inputs were measured, it is what a weight adds to the output of its layer, as a share of what all
of its weights add, inputs taken for uncorrelated: w^2 E[x^2] / sum w^2 Var[x].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnxprune.passes.sparsity.inputs import InputMoments
from onnxprune.passes.sparsity.patterns import Pattern

_LEAST = 0.05
_TINY = 1e-30


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
        scores: of each layer, [outputs, inputs], comparable.
        pattern: where zeros may lie.
        amount: share of zeros of all layers together. A layer keeps 5 % of its blocks at least, its
            best ones (fewer when `amount` asks for more); others lose what it is spared.
    """
    blocks = [pattern.block_scores(one).reshape(-1) for one in scores]
    for one in blocks:
        spared = int(np.ceil(one.size * min(_LEAST, 1 - amount)))
        one[np.argsort(one, kind="stable")[one.size - spared :]] = np.inf
    every = np.concatenate(blocks)
    wanted = min(round(amount * every.size), int(np.isfinite(every).sum()))
    gone = np.argsort(every, kind="stable")[:wanted]
    owner = np.repeat(np.arange(len(blocks)), [len(one) for one in blocks])
    counts = np.bincount(owner[gone], minlength=len(blocks))
    return [int(n) / len(one) for n, one in zip(counts, blocks, strict=True)]
