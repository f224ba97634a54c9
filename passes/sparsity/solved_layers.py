"""Zeros in layers that are solved from front to back: what `LeastSquares` does to solved weights.

Formula, for a layer y = W x + b with its input x~ in the model as it is by then, and t as in
`compensation/least_squares.py`::

    W1, b1 = argmin  E || t - W x~ - b ||^2 + lam || W - W0 ||^2       (least_squares.py)
    W', b' = second-order elimination of W1 under Cov(x~)              (second_order.py)
    b'     = E[t] - W' E[x~]

* Where SparseGPT eliminates from the weights there were, this does so from those that also make up
  for what layers before, and other terms of the sum behind, have lost.
* Layers that lose nothing are fitted as those that `LeastSquares` merely passes.

Source: Frantar & Alistarh 2023 (SparseGPT); Frantar et al. 2022 (OBC).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnxprune.passes.sparsity.inputs import input_order
from onnxprune.passes.sparsity.patterns import Pattern
from onnxprune.passes.sparsity.second_order import sparse_weights

from onnxprune.compensation.regression.gram import Gram
from onnxprune.compensation.regression.layers import LinearLayer


@dataclass(frozen=True)
class ZerosOnceSolved:
    """Set weights to zero once their layer is solved, and move what that did to others.

    Attributes:
        amounts: share of zeros by name of the layer's output; those without an entry lose nothing.
        pattern: where zeros may lie.
    """

    amounts: Mapping[str, float]
    pattern: Pattern

    def applies(self, layer: LinearLayer) -> bool:
        """Whether the layer is to lose weights."""
        return _name(layer) in self.amounts

    def finished(
        self, layer: LinearLayer, weight: NDArray[np.float64], gram: Gram
    ) -> NDArray[np.float64]:
        """Weights [g, O, D] with zeros."""
        order = input_order(layer)
        result = np.zeros_like(weight)
        for group, covariance in enumerate(gram.covariance()):
            ordered = covariance[np.ix_(order, order)]
            amount = self.amounts[_name(layer)]
            made = sparse_weights(weight[group][:, order], ordered, self.pattern, amount)
            result[group][:, order] = made
        return result


def _name(layer: LinearLayer) -> str:
    return layer.node.outputs[0].name or ""
