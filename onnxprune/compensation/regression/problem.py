"""The regression of one layer: fitted on one half of the rows, judged on the other.

Behind a Relu or Clip only what gets through counts. Where the original lies on a flat part of the
activation, the target is moved to what the layer gives anyway, as long as that lies there too::

    t = y            where y is not on a flat part
    t = min(W x, 0)  where y <= 0, for a Relu

and the regression is solved again: a majorisation in which only the right-hand side changes
(docs/mechanisms.md, Least squares). Going beyond its minimum, up to twice as far, is no step up
either, and takes fewer rounds. What falls from round to round is a bound on the error behind the
activation (where the original is not flat, it counts how far below the prediction lies), so the
judging half also chooses between the first and the last round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.compensation.regression.gram import Gram, Regression, Solution, Weighted, gram_of
from onnxprune.compensation.regression.targets import FlatParts

_STRIDE = 1.6
_TINY = float(np.finfo(float).tiny)


@dataclass(frozen=True)
class Half:
    """Rows of a regression.

    Attributes:
        rows: float32 [rows, g, D].
        targets: float32 [rows, g, O].
        others: what is added to the output before the activation, float32 [rows, g, O].
        weights: how much each row counts, float32 [rows]; None for all alike.
    """

    rows: NDArray[np.float32]
    targets: NDArray[np.float32]
    others: NDArray[np.float32]
    weights: NDArray[np.float32] | None = None

    def __add__(self, other: Half) -> Half:
        """Rows of both."""
        return joined([self, other])

    def variance(self) -> float:
        """Weighted variance of the targets, summed over outputs."""
        mean = np.average(self.targets, axis=0, weights=self.weights)
        spread = ((self.targets - mean) ** 2).sum(axis=(1, 2), dtype=np.float64)
        return float(np.average(spread, weights=self.weights))

    def gram(self) -> Gram:
        """Sums over the rows."""
        return gram_of(self.rows, self.targets, self.weights)


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
        self,
        kept: NDArray[np.bool_],
        ridges: Sequence[float],
        *,
        both_halves: bool,
        grams: tuple[Gram, Gram] | None = None,
    ) -> Outcome:
        """Solve over the kept unknowns with the ridge that judges best before targets move.

        Args:
            kept: unknowns, bool [g, D].
            ridges: strengths to choose from.
            both_halves: fit on both in the end.
            grams: sums over the rows of both halves where they are known.
        """
        gram, check = grams or (self.fit.gram(), None)
        if check is None and self._sums_are_cheaper(len(ridges), both_halves=both_halves):
            check = self.judge.gram()
        scale = max(self.judge.variance(), _TINY)
        plain = gram.with_bias(self.weight * kept[:, None])
        before = self._error(plain, check) / scale
        best: tuple[float, float, Regression, Solution] | None = None
        for strength in ridges:
            tried = Regression(gram, self.weight, kept, strength)
            solution = tried.solve(gram)
            error = self._error(solution, check) / scale if solution is not None else np.inf
            if solution is not None and (best is None or error < best[0]):
                best = error, strength, tried, solution
        if best is None:
            return Outcome(plain, False, before, before)
        after, ridge, regression, solution = best
        moved = self._moved_solution(regression, solution, gram, [self.fit])
        further = self._error(moved, check) / scale if moved is not solution else after
        moves = further < after
        after, solution = (further, moved) if moves else (after, solution)
        if not after < before:  # NaN is no improvement either
            return Outcome(plain, False, before, before)
        if both_halves:
            del best, regression  # an inverse that may be large
            gram = gram + (check or self.judge.gram())
            whole = self.fitted(gram, [self.fit, self.judge], kept, ridge, moves=moves)
            solution = solution if whole is None else whole
        return Outcome(solution, True, before, after)

    def _sums_are_cheaper(self, predictions: int, *, both_halves: bool) -> bool:
        """Whether sums over the judging rows cost less than to predict them again and again."""
        _, outputs, unknowns = self.weight.shape
        return self.flat is None and (both_halves or unknowns <= 2 * outputs * predictions)

    def _error(self, solution: Solution, check: Gram | None) -> float:
        """Mean squared error on the judging half, behind the activation where there is one."""
        if self.flat is None and check is not None:
            return check.error(solution)
        half = self.judge
        lost = solution.predict(half.rows)
        if self.flat is None:
            lost -= half.targets
        else:
            lost = np.clip(lost + half.others, self.flat.low, self.flat.high)
            lost -= np.clip(half.targets + half.others, self.flat.low, self.flat.high)
        squares = np.einsum("rgo,rgo->r", lost, lost, dtype=np.float64)
        return float(np.average(squares, weights=half.weights))

    def fitted(
        self,
        gram: Gram,
        halves: Sequence[Half],
        kept: NDArray[np.bool_],
        ridge: float,
        *,
        moves: bool = True,
    ) -> Solution | None:
        """Weights and bias after targets were moved; None where weights blow up.

        Args:
            gram: sums over the rows.
            halves: the rows.
            kept: unknowns, bool [g, D].
            ridge: its strength.
            moves: False leaves targets where they are.
        """
        regression = Regression(gram, self.weight, kept, ridge)
        first = regression.solve(gram)
        if first is None or not moves:
            return first
        return self._moved_solution(regression, first, gram, halves)

    def _moved_solution(
        self, regression: Regression, first: Solution, gram: Gram, halves: Sequence[Half]
    ) -> Solution:
        """Go on from the first solution with targets that move; it itself where none can."""
        solution = first
        for _ in range(self.iterations if self.flat is not None else 0):
            assert self.flat is not None
            parts = [
                Weighted(
                    half.rows, _moved(half, solution.predict(half.rows), self.flat), half.weights
                )
                for half in halves
            ]
            better = regression.solve(gram.with_targets(parts))
            if better is None:
                break
            solution = solution.towards(better, _STRIDE)
        return solution


def joined(halves: Sequence[Half]) -> Half:
    """Rows of all; all of them have weights, or none has."""
    weights = [half.weights for half in halves if half.weights is not None]
    return Half(
        np.concatenate([half.rows for half in halves]),
        np.concatenate([half.targets for half in halves]),
        np.concatenate([half.others for half in halves]),
        np.concatenate(weights) if weights else None,
    )


def _moved(half: Half, predicted: NDArray[np.float32], flat: FlatParts) -> NDArray[np.float32]:
    """Targets on a flat part move to the prediction, as far as that lies on the flat part."""
    wanted, low, high = half.targets, flat.low - half.others, flat.high - half.others
    moved = np.where(wanted <= low, np.minimum(predicted, low), wanted)
    return np.where(wanted >= high, np.maximum(predicted, high), moved)
