"""Second order: zeros input by input, all other weights making up for them (optimal brain surgeon).

For weights W [O, D] that minimise a quadratic with curvature H (the covariance of the inputs), and
H^-1 = U' U with U upper triangular, from left to right::

    q_j = w_j if it stays, else 0;   e = (w_j - q_j) / U_jj;   W[:, j:] -= e U[j, j:]

U_jj^2 is the j-th diagonal entry of the inverse without the inputs before j, so that a weight costs
w^2 / U_jj^2 when the ones after it can make up for it. Which ones become zero is decided for
`_COLUMNS` inputs at a time, on the weights as they are by then.

Inputs before one that becomes zero cannot make up for it this way. So the weights that stay are
then solved for all together, from where they are, by conjugate gradients for all outputs at once::

    W' = argmin  tr (V - W) H (V - W)'      over V that is zero where W' is

Every step lowers the error; `_STEPS` of them leave hardly anything.

`ZerosOnceSolved` does this for layers that are solved from front to back. For a layer y = W x + b
with its input x~ in the model as it is by then, and t as in `compensation/least_squares.py`::

    W1, b1 = argmin  E || t - W x~ - b ||^2 + lam || W - W0 ||^2       (least_squares.py)
    W', b' = the elimination above of W1 under Cov(x~);   b' = E[t] - W' E[x~]

Where SparseGPT eliminates from the original weights, this does so from weights that also make up
for what earlier layers, and other terms of the sum the layer enters, have lost. Layers that lose
nothing are fitted as `LeastSquares` fits layers that only pass a change on.

Source: Frantar & Alistarh 2023 (SparseGPT), algorithm 1; Frantar & Alistarh 2022 (OBC) for the
score; Hestenes & Stiefel 1952 (conjugate gradients).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.compensation.regression.gram import Gram, positive_inverse
from onnxprune.compensation.regression.linear_layers import LinearLayer
from onnxprune.passes.sparsity.patterns import Pattern
from onnxprune.passes.sparsity.scores import input_order

_COLUMNS = 128
_DAMPING = 1e-2
_STEPS = 20
_SETTLED = 1e-12
_TRIES = 12


def sparse_weights(
    weight: NDArray[np.float64],
    covariance: NDArray[np.float64],
    pattern: Pattern,
    amount: float,
    damping: float = _DAMPING,
) -> NDArray[np.float64]:
    """Set weights to zero and adjust the others to make up for them.

    Args:
        weight: [outputs, inputs], where the error is smallest.
        covariance: of the inputs, [inputs, inputs].
        pattern: where zeros may lie.
        amount: share of zeros.
        damping: what is added to the covariance, as a share of its mean diagonal.

    Returns:
        [outputs, inputs]; no other weights with these zeros have a smaller error under the damped
        covariance, up to what `_STEPS` steps leave.
    """
    damped, upper = _damped(covariance, damping)
    eliminated = _eliminated(weight, upper, pattern, amount)
    return _solved_at_mask(weight, eliminated, damped)


def _eliminated(
    weight: NDArray[np.float64], upper: NDArray[np.float64], pattern: Pattern, amount: float
) -> NDArray[np.float64]:
    """One input after another, those behind make up for it."""
    weight = weight.copy()
    outputs, inputs = weight.shape
    # no block lies in two runs
    columns = max(_COLUMNS // pattern.columns, 1) * pattern.columns
    for start in range(0, inputs, columns):
        end = min(start + columns, inputs)
        run = slice(start, end)
        pivots = np.diagonal(upper)[run]
        stays = pattern.mask((weight[:, run] / pivots) ** 2, amount)
        lost = np.zeros((outputs, end - start))
        for place in range(end - start):
            column = start + place
            if pattern.kept is not None and place % pattern.columns == 0:
                ahead = slice(place, place + pattern.columns)
                scores = (weight[:, run][:, ahead] / pivots[ahead]) ** 2
                stays[:, ahead] = pattern.mask(scores, amount)
            removed = np.where(stays[:, place], 0.0, weight[:, column])
            lost[:, place] = removed / pivots[place]
            weight[:, column:end] -= np.outer(lost[:, place], upper[column, column:end])
            weight[~stays[:, place], column] = 0.0
        weight[:, end:] -= lost @ upper[run, end:]
    return weight


def _solved_at_mask(
    wanted: NDArray[np.float64], start: NDArray[np.float64], curvature: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights with the zeros of `start` that are closest to those that are wanted."""
    stays = start != 0
    weight = start.copy()
    residual = ((wanted - weight) @ curvature) * stays
    direction = residual.copy()
    power = (residual**2).sum(axis=1)
    enough = _SETTLED * np.einsum("od,od->o", wanted @ curvature, wanted @ curvature)
    for _ in range(_STEPS):
        if (power <= enough).all():
            break
        ahead = (direction @ curvature) * stays
        bend = np.einsum("od,od->o", direction, ahead)
        stride = np.divide(power, bend, out=np.zeros_like(power), where=bend > 0)[:, np.newaxis]
        weight += stride * direction
        residual -= stride * ahead
        before, power = power, (residual**2).sum(axis=1)
        turn = np.divide(power, before, out=np.zeros_like(power), where=before > 0)
        direction = residual + turn[:, np.newaxis] * direction
    return weight


def _damped(
    covariance: NDArray[np.float64], damping: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The damped covariance H, and U with U' U = H^-1.

    Rounding makes the covariance of inputs that hardly change indefinite: damping grows until it
    is not. Without end it would be a multiple of the identity, under which magnitudes decide.
    """
    scale = float(np.abs(np.diagonal(covariance)).mean()) + 1e-30
    identity = np.eye(len(covariance))
    for stronger in 10.0 ** np.arange(_TRIES):
        damped = covariance + stronger * damping * scale * identity
        try:
            inverse = positive_inverse(damped)
            upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
        except np.linalg.LinAlgError:
            continue
        return np.asarray(damped), np.asarray(upper, np.float64)
    return identity, identity


@dataclass(frozen=True)
class ZerosOnceSolved:
    """Set weights to zero once their layer is solved, and adjust the others to make up for them.

    Attributes:
        amounts: share of zeros by name of the layer's output; those without an entry lose nothing.
        pattern: where zeros may lie.
    """

    amounts: Mapping[str, float]
    pattern: Pattern

    def applies(self, layer: LinearLayer) -> bool:
        """Whether the layer is to lose weights."""
        return _name(layer) in self.amounts

    def adjusted(
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
