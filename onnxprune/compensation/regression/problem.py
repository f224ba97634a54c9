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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.compensation.regression.gram import (
    Gram,
    Linear,
    Regression,
    Solution,
    Weighted,
    blocks,
    gram_of,
)
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

    def variance(self) -> float:
        """Weighted variance of the targets, summed over outputs."""
        nothing = np.zeros((*self.targets.shape[:2], 0), np.float32)
        sums = gram_of(nothing, self.targets, self.weights)
        return float((sums.yy / sums.count - (sums.y / sums.count) ** 2).sum())

    def gram(self) -> Gram:
        """Sums over the rows."""
        return gram_of(self.rows, self.targets, self.weights)


class HalfRows:
    """Rows of a half as they come, batch by batch, in one piece of memory.

    Args:
        count: how many there will be.

    Attributes:
        count: the same.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._filled = 0
        self._arrays: list[NDArray[np.float32] | None] = []

    def add(self, part: Half) -> None:
        """Take in some rows; all parts have weights, or none has."""
        arrays = part.rows, part.targets, part.others, part.weights
        if not self._arrays:
            self._arrays = [
                None if a is None else np.empty_like(a, shape=(self.count, *a.shape[1:]))
                for a in arrays
            ]
        end = self._filled + len(part.rows)
        for whole, array in zip(self._arrays, arrays, strict=True):
            if whole is not None and array is not None:
                whole[self._filled : end] = array
        self._filled = end

    def whole(self) -> Half:
        """All rows."""
        rows, targets, others, weights = self._arrays
        assert rows is not None
        assert targets is not None
        assert others is not None
        return Half(rows, targets, others, weights)


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
        if check is None and self._sums_are_of_use(len(ridges), both_halves=both_halves):
            check = self.judge.gram()
        scale = max(self.judge.variance(), _TINY)
        plain = gram.with_bias(self.weight * kept[:, None])
        regressions = [Regression(gram, self.weight, kept, strength) for strength in ridges]
        solutions = [regression.solve(gram) for regression in regressions]
        solved = [solution for solution in solutions if solution is not None]
        before, *errors = (error / scale for error in self._errors([plain, *solved], check))
        if not solved:
            return Outcome(plain, False, before, before)
        best = int(np.argmin(errors))
        after, solution = errors[best], solved[best]
        chosen = next(n for n, tried in enumerate(solutions) if tried is solution)
        ridge, regression = ridges[chosen], regressions[chosen]
        free = [self._free_range(self.fit)]
        moved = self._moved_solution(regression, solution, gram, [self.fit], free)
        further = self._errors([moved], check)[0] / scale if moved is not solution else after
        moves = further < after
        after, solution = (further, moved) if moves else (after, solution)
        if not after < before:  # NaN is no improvement either
            return Outcome(plain, False, before, before)
        if both_halves:
            del regressions, regression  # inverses that may be large
            gram = gram + (check or self.judge.gram())
            whole = self.fitted(gram, [self.fit, self.judge], kept, ridge, moves=moves)
            solution = solution if whole is None else whole
        return Outcome(solution, True, before, after)

    def _sums_are_of_use(self, predictions: int, *, both_halves: bool) -> bool:
        """Whether sums over the judging rows are needed, or cheaper than so many predictions."""
        _, outputs, unknowns = self.weight.shape
        return both_halves or (self.flat is None and unknowns <= 2 * outputs * predictions)

    def _errors(self, solutions: Sequence[Solution], check: Gram | None) -> list[float]:
        """Mean squared errors on the judging half, behind the activation where there is one."""
        if self.flat is None and check is not None:
            return [check.error(solution) for solution in solutions]
        half = self.judge
        linear = [Linear(solution) for solution in solutions]
        errors, count = np.zeros(len(solutions)), 0.0
        for block in blocks(len(half.rows)):
            wanted, others = half.targets[block], half.others[block]
            if self.flat is not None:
                wanted = np.clip(wanted + others, self.flat.low, self.flat.high)
            weights = None if half.weights is None else half.weights[block]
            count += len(wanted) if weights is None else float(weights.sum(dtype=np.float64))
            for number, each in enumerate(linear):
                lost = each.predict(half.rows[block])
                if self.flat is not None:
                    lost += others
                    np.clip(lost, self.flat.low, self.flat.high, out=lost)
                lost -= wanted
                lost *= lost
                squares = lost.sum(axis=(1, 2)).astype(np.float64)
                errors[number] += squares.sum() if weights is None else squares @ weights
        return [float(error / count) for error in errors]

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
        return self._moved_solution(
            regression, first, gram, halves, [self._free_range(half) for half in halves]
        )

    def _free_range(self, half: Half) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Between what and what a prediction is its own target: float32 [rows, g, O] each.

        The two are the same, the target, where the original does not lie on a flat part.
        """
        least, most = half.targets.copy(order="K"), half.targets.copy(order="K")
        if self.flat is not None:
            low, high = self.flat.low - half.others, self.flat.high - half.others
            on_low, on_high = half.targets <= low, half.targets >= high
            np.copyto(least, -np.inf, where=on_low)
            np.copyto(most, low, where=on_low)
            np.copyto(least, high, where=on_high)
            np.copyto(most, np.inf, where=on_high)
        return least, most

    def _moved_solution(
        self,
        regression: Regression,
        first: Solution,
        gram: Gram,
        halves: Sequence[Half],
        free: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
    ) -> Solution:
        """Go on from the first solution with targets that move; it itself where none can."""
        solution = first
        for _ in range(self.iterations if self.flat is not None else 0):
            better = regression.solve(gram.with_targets(_moved(solution, halves, free)))
            if better is None:
                break
            solution = solution.towards(better, _STRIDE)
        return solution


def _moved(
    solution: Solution,
    halves: Sequence[Half],
    free: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
) -> Iterator[Weighted]:
    """Rows with targets that follow the prediction as far as they are free to."""
    linear = Linear(solution)
    for half, (least, most) in zip(halves, free, strict=True):
        for block in blocks(len(half.rows)):
            moved = linear.predict(half.rows[block])
            np.clip(moved, least[block], most[block], out=moved)
            weights = None if half.weights is None else half.weights[block]
            yield Weighted(half.rows[block], moved, weights)
