"""The regression of one layer: fitted on one half of the rows, judged on the other.

Behind a Relu or Clip only what gets through counts. Where the original lies on a flat part of the
activation, the target is moved to what the layer gives anyway, as long as that lies there too::

    t = y            where y is not on a flat part
    t = min(W x, 0)  where y <= 0, for a Relu

and the regression is solved again: a majorisation in which only the right-hand side changes
(QUALITY.md 4). What falls from round to round is a bound on the error behind the activation (where
the original is not flat, it counts how far below the prediction lies), so the judging half also
chooses between the first and the last round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.reconstruction.gram import Gram, Regression, Solution, gram_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onnxprune.reconstruction.targets import FlatParts

__all__ = ["Half", "Outcome", "Problem"]


@dataclass(frozen=True)
class Half:
    """Rows float32 [rows, g, D] and targets float32 [rows, g, O]."""

    rows: NDArray[np.float32]
    targets: NDArray[np.float32]

    def __add__(self, other: Half) -> Half:
        """Rows of both."""
        return Half(
            np.concatenate([self.rows, other.rows]), np.concatenate([self.targets, other.targets])
        )


@dataclass(frozen=True)
class Outcome:
    """The best weights found.

    Attributes:
        solution: weights and bias.
        solved: False when they are those there were, with the mean of what is removed folded in.
        before: error on the judging half with the latter, as a share of the target's variance.
        after: error with the solution.
    """

    solution: Solution
    solved: bool
    before: float
    after: float


@dataclass(frozen=True)
class Problem:
    """One regression.

    Attributes:
        weight: the weights there are, [g, O, D].
        fit: what is fitted.
        judge: what decides.
        flat: flat parts of the activation behind, None for none.
        iterations: rounds of moving targets.
    """

    weight: NDArray[np.float64]
    fit: Half
    judge: Half
    flat: FlatParts | None
    iterations: int

    def solve(
        self, kept: NDArray[np.bool_], ridges: Sequence[float], *, both_halves: bool
    ) -> Outcome:
        """Solve over the kept unknowns, bool [g, D], with the ridge that judges best."""
        gram = gram_of(self.fit.rows, self.fit.targets)
        check = gram_of(self.judge.rows, self.judge.targets)
        scale = max(check.target_variance(), np.finfo(float).tiny)
        plain = gram.with_bias(self.weight * kept[:, None])
        before = self._error(plain, check) / scale
        found = [
            (self._error(solution, check) / scale, ridge, place, solution)
            for ridge in ridges
            for place, solution in enumerate(self.fitted(gram, self.fit, kept, ridge))
        ]
        after, ridge, place, solution = min(
            found, key=lambda one: one[0], default=(before, 0.0, 0, plain)
        )
        if not after < before:  # NaN is no improvement either
            return Outcome(plain, False, before, before)
        if both_halves:
            whole = self.fitted(gram + check, self.fit + self.judge, kept, ridge)
            solution = whole[place] if place < len(whole) else solution
        return Outcome(solution, True, before, after)

    def _error(self, solution: Solution, check: Gram) -> float:
        if self.flat is None:
            return check.error(solution)
        low, high = self.flat.low, self.flat.high
        lost = np.clip(solution.predict(self.judge.rows), low, high)
        lost -= np.clip(self.judge.targets, low, high)
        return float(np.einsum("rgo,rgo->", lost, lost, dtype=np.float64) / len(lost))

    def fitted(
        self, gram: Gram, half: Half, kept: NDArray[np.bool_], ridge: float
    ) -> list[Solution]:
        """Solutions before and after targets were moved; none where weights blow up."""
        regression = Regression(gram, self.weight, kept, ridge)
        solution = first = regression.solve(gram)
        if solution is None or first is None:
            return []
        if self.flat is None or not self.iterations:
            return [solution]
        for _ in range(self.iterations):
            moved = _moved(half.targets, solution.predict(half.rows), self.flat)
            better = regression.solve(gram.with_targets(half.rows, moved))
            if better is None:
                break
            solution = better
        return [first, solution]


def _moved(
    wanted: NDArray[np.float32], predicted: NDArray[np.float32], flat: FlatParts
) -> NDArray[np.float32]:
    """Targets on a flat part move to the prediction, as far as that lies on the flat part."""
    moved = np.where(wanted <= flat.low, np.minimum(predicted, flat.low), wanted)
    return np.where(wanted >= flat.high, np.maximum(predicted, flat.high), moved)
