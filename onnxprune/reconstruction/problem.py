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

__all__ = ["Half", "Outcome", "Problem", "joined"]


@dataclass(frozen=True)
class Half:
    """Rows of a regression.

    Attributes:
        rows: float32 [rows, g, D].
        targets: float32 [rows, g, O].
        others: what is added to the output before the activation, float32 [rows, g, O].
    """

    rows: NDArray[np.float32]
    targets: NDArray[np.float32]
    others: NDArray[np.float32]

    def __add__(self, other: Half) -> Half:
        """Rows of both."""
        return joined([self, other])


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
        half = self.judge
        lost = np.clip(solution.predict(half.rows) + half.others, low, high)
        lost -= np.clip(half.targets + half.others, low, high)
        return float(np.einsum("rgo,rgo->", lost, lost, dtype=np.float64) / len(lost))

    def fitted(
        self, gram: Gram, half: Half, kept: NDArray[np.bool_], ridge: float
    ) -> list[Solution]:
        """Solutions before and after targets were moved; none where weights blow up."""
        regression = Regression(gram, self.weight, kept, ridge)
        first = regression.solve(gram)
        if first is None:
            return []
        if self.flat is None or not self.iterations:
            return [first]
        solution = first
        for _ in range(self.iterations):
            moved = _moved(half, solution.predict(half.rows), self.flat)
            better = regression.solve(gram.with_targets(half.rows, moved))
            if better is None:
                break
            solution = better
        return [first, solution]


def joined(halves: Sequence[Half]) -> Half:
    """Rows of all."""
    return Half(
        np.concatenate([one.rows for one in halves]),
        np.concatenate([one.targets for one in halves]),
        np.concatenate([one.others for one in halves]),
    )


def _moved(half: Half, predicted: NDArray[np.float32], flat: FlatParts) -> NDArray[np.float32]:
    """Targets on a flat part move to the prediction, as far as that lies on the flat part."""
    wanted, low, high = half.targets, flat.low - half.others, flat.high - half.others
    moved = np.where(wanted <= low, np.minimum(predicted, low), wanted)
    return np.where(wanted >= high, np.maximum(predicted, high), moved)
