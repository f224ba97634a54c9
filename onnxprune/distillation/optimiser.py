"""Steps of training: orthogonalised momentum for matrices, Adam for everything else.

Of a matrix of weights, [out, in], all directions of a step are made about equally large:

    m <- 0.95 m + g      u = g + 0.95 m      w <- w - 0.2 r_t sqrt(max(out, in)) U V',  u = U S V'

which takes about half as many steps as Adam (docs/benchmarks.md). U V' comes from a few iterations
of a polynomial, X <- a X + b (X X') X + c (X X')^2 X. The factor gives such a step the root mean
square that one of Adam has, so that both share a rate:

    m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2      w <- w - r_t m^ / (sqrt(v^) + e)

The rate rises, and falls as a cosine. Source: Jordan et al. 2024 (Muon); Liu et al. 2025
(Moonlight) for the factor; Kingma and Ba 2015 (Adam); Loshchilov and Hutter 2017 (cosine).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.distillation.student import Values

_FIRST, _SECOND, _SMALLEST = 0.9, 0.999, 1e-12
_MOMENTUM = 0.95
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_SAME_SIZE = 0.2
"""Root mean square of a step of Adam over the rate."""

_WARM_UP, _WARM_SHARE = 20, 0.08
"""Steps over which the rate rises at least, and share of all steps; without it networks with folded
normalisation collapse."""


@dataclass(frozen=True)
class Schedule:
    """How the rate goes.

    Attributes:
        rate: the largest.
        steps: how many there are.
    """

    rate: float
    steps: int

    def at(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        warm = min(max(_WARM_UP, self.steps * _WARM_SHARE), self.steps / 2)
        rising = min(1.0, (step + 1) / warm)
        return self.rate * rising * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class Optimiser:
    """Weights on their way, with the moments of their gradients.

    Args:
        values: of the weights at the start; copied.
        matrices: names of those that multiply as matrices, [out, ...] or [in, ...].

    Attributes:
        values: of the weights now.
    """

    def __init__(
        self, values: Mapping[str, NDArray[np.float32]], matrices: Collection[str] = ()
    ) -> None:
        self.values: Values = {name: value.copy() for name, value in values.items()}
        self._matrices = frozenset(matrices)
        self._first = {name: np.zeros_like(value) for name, value in values.items()}
        self._second = {
            name: np.zeros_like(value)
            for name, value in values.items()
            if name not in self._matrices
        }
        self._count = 0

    def step(self, gradients: Mapping[str, NDArray[np.float32]], rate: float) -> None:
        """Take a step.

        Args:
            gradients: by name; weights without one stay.
            rate: of this step.
        """
        self._count += 1
        for name, gradient in gradients.items():
            of_matrix = name in self._matrices
            change = self._of_matrix if of_matrix else self._of_each_entry
            moved = self.values[name] - np.float32(rate) * change(name, gradient)
            self.values[name] = moved.astype(np.float32, copy=False)

    def _of_matrix(self, name: str, gradient: NDArray[np.float32]) -> NDArray[np.float32]:
        momentum = self._first[name]
        momentum *= np.float32(_MOMENTUM)
        momentum += gradient
        ahead = gradient + np.float32(_MOMENTUM) * momentum
        matrix = ahead.reshape(len(ahead), -1)
        size = _SAME_SIZE * math.sqrt(max(matrix.shape))
        return np.float32(size) * orthogonalised(matrix).reshape(gradient.shape)

    def _of_each_entry(self, name: str, gradient: NDArray[np.float32]) -> NDArray[np.float32]:
        m, v = self._first[name], self._second[name]
        m += np.float32(1 - _FIRST) * (gradient - m)
        v += np.float32(1 - _SECOND) * (gradient * gradient - v)
        root = np.float32(math.sqrt(1 - _SECOND**self._count))
        size = np.sqrt(v) / root + np.float32(_SMALLEST)
        return np.asarray(m / (np.float32(1 - _FIRST**self._count) * size), np.float32)


def orthogonalised(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """A matrix with the same singular vectors whose singular values all are about 1, as float32.

    Args:
        matrix: float32 [rows, columns].
    """
    turned = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if turned else matrix
    x = np.asarray(x / (np.linalg.norm(x) + _SMALLEST), np.float32)
    a, b, c = map(np.float32, _POLYNOMIAL)
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = np.asarray(a * x + (b * square + c * (square @ square)) @ x, np.float32)
    return np.asarray(x.T if turned else x, np.float32)


def orthogonalising_macs(shape: tuple[int, ...]) -> int:
    """Multiplications that a step of a matrix takes besides its gradient.

    Args:
        shape: of the weight.
    """
    rows, columns = shape[0], math.prod(shape[1:])
    small, large = min(rows, columns), max(rows, columns)
    return _ITERATIONS * (2 * small * small * large + small**3)
