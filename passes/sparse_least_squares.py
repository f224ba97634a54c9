"""Least squares with zeros: layers lose single weights and are solved anew, from front to back.

Formula, for a layer y = W x + b with its input x~ in the model as it is by then, and t as in
`least_squares.py`::

    W1, b1 = argmin  E || t - W x~ - b ||^2 + lam || W - W0 ||^2       (least_squares.py)
    W', b' = second-order elimination of W1 under Cov(x~)              (sparsity/second_order.py)
    b'     = E[t] - W' E[x~]

Before::

    x~ -> Gemm(W0 [64,128], b0) -> y~        y~ differs from y: layers before have lost weights

After::

    x~ -> Gemm(W' with half of its entries 0, b') -> y'

* Where SparseGPT eliminates from the weights there were, this does so from those that also make up
  for what layers before, and other terms of the sum behind, have lost.
* Layers that lose nothing are fitted as `LeastSquares` fits those it merely passes.

Conditions: those of `LeastSquares`. A layer with too many unknowns, or without a counterpart in the
original, loses what it loses by its scores alone (`passes/sparsify_weights.py`).

Source: Frantar & Alistarh 2023 (SparseGPT); Frantar et al. 2022 (OBC); METHODS.md 2.1 to 2.3.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.passes.least_squares import LeastSquares, Repair, Settings
from onnxprune.progress import silent
from onnxprune.sparsity.inputs import input_order
from onnxprune.sparsity.second_order import sparse_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from onnxprune.model.runtime import Runtime
    from onnxprune.progress import Progress
    from onnxprune.reconstruction.gram import Gram
    from onnxprune.reconstruction.layers import LinearLayer
    from onnxprune.sparsity.patterns import Pattern
    from onnxprune.surgery.bias import FullSize

__all__ = ["SparseLeastSquares"]


class SparseLeastSquares(LeastSquares):
    """Set weights to zero, layer by layer, and solve for the others.

    Args:
        target: the model and its coupling; both are updated.
        original: the model as it was.
        amounts: share of zeros by name of the layer's output; those without an entry lose nothing.
        pattern: where zeros may lie.
        feeds: calibration batches.
        runtime: how to run both models.
        seed: of the rows that are drawn.
        progress: told about every layer.
    """

    def __init__(
        self,
        target: FullSize,
        original: ir.Model,
        amounts: Mapping[str, float],
        pattern: Pattern,
        feeds: Sequence[Mapping[str, NDArray[Any]]],
        runtime: Runtime,
        seed: int = 0,
        progress: Progress[Any] = silent,
    ) -> None:
        super().__init__(
            target, original, (), feeds, runtime, (), Settings(), seed=seed, progress=progress
        )
        self.amounts = amounts
        self.pattern = pattern

    def _repair(self, layer: LinearLayer, number: int, is_last: bool) -> Repair | None:
        name = layer.node.outputs[0].name or ""
        if name not in self.amounts:
            return super()._repair(layer, number, is_last)
        self._pruned.advance(layer.node)
        self._admit(layer)
        problem = self._problem(layer, number)
        if problem is None:
            return Repair(name, np.nan, np.nan, False, "the original has no such tensor")
        every = np.ones((layer.shape[0], layer.shape[2]), bool)
        ridges = self.settings.last_ridges if is_last else self.settings.ridges
        grams = problem.fit.gram(), problem.judge.gram()
        outcome = problem.solve(every, ridges, both_halves=True, grams=grams)
        gram = grams[0] + grams[1]
        weight = self._sparse(layer, outcome.solution.weight, gram)
        outcome = replace(outcome, solution=gram.with_bias(weight), solved=True)
        self._install(layer, outcome, problem)
        return Repair(name, outcome.before, outcome.after, True)

    def _sparse(
        self, layer: LinearLayer, weight: NDArray[np.float64], gram: Gram
    ) -> NDArray[np.float64]:
        """Weights [g, O, D] with zeros."""
        order = input_order(layer)
        amount = self.amounts[layer.node.outputs[0].name or ""]
        result = np.zeros_like(weight)
        for group, covariance in enumerate(gram.covariance()):
            made = sparse_weights(
                weight[group][:, order], covariance[np.ix_(order, order)], self.pattern, amount
            )
            result[group][:, order] = made
        return result
