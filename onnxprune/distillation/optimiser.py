"""Adam with warm-up and cosine decay.

    m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2
    w <- w - r_t m^ / (sqrt(v^) + e)

Source: Kingma and Ba 2015; Loshchilov and Hutter 2017 for the decay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.distillation.student import Values

_FIRST, _SECOND, _SMALLEST = 0.9, 0.999, 1e-12
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


class Adam:
    """Moments of the gradients of weights, and the weights.

    Args:
        values: at the start; copied.

    Attributes:
        values: of the weights now.
    """

    def __init__(self, values: Mapping[str, NDArray[np.float32]]) -> None:
        self.values: Values = {name: value.copy() for name, value in values.items()}
        self._first = {name: np.zeros_like(value) for name, value in values.items()}
        self._second = {name: np.zeros_like(value) for name, value in values.items()}
        self._count = 0

    def step(self, gradients: Mapping[str, NDArray[np.float32]], rate: float) -> None:
        """Take a step.

        Args:
            gradients: by name; weights without one stay.
            rate: of this step.
        """
        self._count += 1
        first = 1 - _FIRST**self._count
        root = math.sqrt(1 - _SECOND**self._count)
        for name, gradient in gradients.items():
            m, v = self._first[name], self._second[name]
            m += np.float32(1 - _FIRST) * (gradient - m)
            v += np.float32(1 - _SECOND) * (gradient * gradient - v)
            size = np.sqrt(v) / np.float32(root) + np.float32(_SMALLEST)
            moved = self.values[name] - np.float32(rate / first) * m / size
            self.values[name] = moved.astype(np.float32, copy=False)
