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

A target that can move is a range, and the prediction, cut off at its ends, is the target::

    t = min(max(W x, a), b)    a = b = y where y is not on a flat part; -inf and 0 where y <= 0

so that a round is two products of matrices, block by block, and nothing of the size of all rows is
made on the way: W x, and the change of G by (t - y) x'. The last fit, on both halves, starts where
the judged one has stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
_DECIDING_ROWS, _DECIDING_ROWS_PER_UNKNOWN = 8192, 16
"""Rows of a half on which ridges and moving targets are compared."""


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

    def of(self, kept: NDArray[np.bool_]) -> Half:
        """The same over some of the unknowns, bool [D], of a layer with one group."""
        # copied along the axis that is the innermost in memory
        rows = self.rows.transpose(1, 2, 0)[:, kept].transpose(2, 0, 1)
        return replace(self, rows=rows)

    def variance(self) -> float:
        """Weighted variance of the targets, summed over outputs."""
        nothing = np.zeros((*self.targets.shape[:2], 0), np.float32)
        return gram_of(nothing, self.targets, self.weights).variance()

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

    def of(self, kept: NDArray[np.bool_]) -> Problem:
        """The same over some of the unknowns, bool [D], of a layer with one group."""
        fit = self.fit.of(kept)
        judge = fit if self.judge is self.fit else self.judge.of(kept)
        return replace(self, weight=self.weight[:, :, kept], fit=fit, judge=judge)

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
            check = gram if self.judge is self.fit else self.judge.gram()
        judging = self._pieces(self.judge, self._stride(self.judge))
        scale = max(self.judge.variance() if check is None else check.variance(), _TINY)
        plain = gram.with_bias(self.weight * kept[:, None])
        regressions = [Regression(gram, self.weight, kept, strength) for strength in ridges]
        solutions = [regression.solve(gram) for regression in regressions]
        solved = [(n, found) for n, found in enumerate(solutions) if found is not None]
        tried = [plain, *(found for _, found in solved)]
        before, *errors = (error / scale for error in self._errors(tried, judging, check))
        if not solved:
            return Outcome(plain, False, before, before)
        best = int(np.argmin(errors))
        after, (number, solution) = errors[best], solved[best]
        moved = self._followed(regressions[number], solution, gram, [self.fit])
        moves = False
        if moved is not solution:
            further = self._errors([moved], judging, check)[0] / scale
            moves = further < after
            after, solution = (further, moved) if moves else (after, solution)
        if not after < before:  # NaN is no improvement either
            return Outcome(plain, False, before, before)
        if both_halves:
            del regressions  # inverses that may be large
            gram = gram + (check or self.judge.gram())
            halves = [self.fit, self.judge]
            start = solution if moves else None
            whole = self.fitted(gram, halves, kept, ridges[number], start=start, moves=moves)
            solution = solution if whole is None else whole
        return Outcome(solution, True, before, after)

    def _sums_are_of_use(self, predictions: int, *, both_halves: bool) -> bool:
        """Whether sums over the judging rows are needed, or cheaper than so many predictions."""
        _, outputs, unknowns = self.weight.shape
        return both_halves or (self.flat is None and unknowns <= 2 * outputs * predictions)

    def _stride(self, half: Half) -> int:
        """Of how many blocks one is enough to decide with."""
        enough = max(_DECIDING_ROWS, _DECIDING_ROWS_PER_UNKNOWN * self.weight.shape[2])
        return max(1, int(len(half.rows) // enough))

    def _errors(
        self, solutions: Sequence[Solution], judging: Sequence[_Piece], check: Gram | None
    ) -> list[float]:
        """Mean squared errors on the judging half, behind the activation where there is one."""
        if self.flat is None and check is not None:
            return [check.error(solution) for solution in solutions]
        linear = [Linear(solution) for solution in solutions]
        errors = np.zeros(len(solutions))
        for piece in judging:
            wanted = self._behind(piece.part.targets + piece.part.others)
            for number, each in enumerate(linear):
                lost = each.predict(piece.part.rows)
                lost += piece.part.others
                lost = self._behind(lost)
                lost -= wanted
                lost *= lost
                squares, weights = lost.sum(axis=(1, 2)), piece.part.weights
                errors[number] += squares.sum() if weights is None else squares @ weights
        return [float(error) / sum(piece.count for piece in judging) for error in errors]

    def _behind(self, total: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the activation makes of a sum, in its place."""
        if self.flat is not None:
            np.maximum(total, self.flat.low, out=total)
            np.minimum(total, self.flat.high, out=total)
        return total

    def fitted(
        self,
        gram: Gram,
        halves: Sequence[Half],
        kept: NDArray[np.bool_],
        ridge: float,
        *,
        start: Solution | None = None,
        moves: bool = True,
    ) -> Solution | None:
        """Weights and bias after targets were moved; None where weights blow up.

        Args:
            gram: sums over the rows.
            halves: the rows.
            kept: unknowns, bool [g, D].
            ridge: its strength.
            start: solution from which targets move; None for that without moving.
            moves: False leaves targets where they are.
        """
        regression = Regression(gram, self.weight, kept, ridge)
        first = start or regression.solve(gram)
        if first is None or not moves:
            return first
        return self._followed(regression, first, gram, halves)

    def _pieces(self, half: Half, stride: int = 1) -> list[_Piece]:
        """Every so manieth block of a half."""
        return [_Piece.of(half, block, self.flat) for block in [*blocks(len(half.rows))][::stride]]

    def _followed(
        self, regression: Regression, first: Solution, gram: Gram, halves: Sequence[Half]
    ) -> Solution:
        """Go on from the first solution with targets that move; it itself where none can."""
        if self.flat is None or not self.iterations:
            return first
        pieces = [piece for half in halves for piece in self._pieces(half)]
        solution = first
        for _ in range(self.iterations):
            linear = Linear(solution)
            moved = gram.with_moved(piece.moved(linear) for piece in pieces)
            better = regression.solve(moved)
            if better is None:
                break
            solution = solution.towards(better, _STRIDE)
        return solution


@dataclass(frozen=True)
class _Piece:
    """A block of rows, small enough for the cache.

    Attributes:
        part: the rows.
        count: sum of their weights.
        least: from where on a prediction is its own target, float32 [rows, g, O].
        most: up to where. Both are the target where the original does not lie on a flat part.
    """

    part: Half
    count: float
    least: NDArray[np.float32]
    most: NDArray[np.float32]

    @classmethod
    def of(cls, half: Half, block: slice, flat: FlatParts | None) -> _Piece:
        """Take a block of a half."""
        weights = None if half.weights is None else half.weights[block]
        part = Half(half.rows[block], half.targets[block], half.others[block], weights)
        count = len(part.rows) if weights is None else float(weights.sum(dtype=np.float64))
        least = most = part.targets
        if flat is not None:
            low, high = flat.low - part.others, flat.high - part.others
            on_low, on_high = part.targets <= low, part.targets >= high
            least, most = least.copy(order="K"), most.copy(order="K")
            for array, place, value in (
                (least, on_low, -np.inf),
                (most, on_low, low),
                (least, on_high, high),
                (most, on_high, np.inf),
            ):
                np.copyto(array, value, where=place)
        return cls(part, count, least, most)

    def moved(self, linear: Linear) -> Weighted:
        """How far targets move when they follow a prediction as far as they are free to."""
        moved = linear.predict(self.part.rows)
        np.maximum(moved, self.least, out=moved)
        np.minimum(moved, self.most, out=moved)
        moved -= self.part.targets
        return Weighted(self.part.rows, moved, self.part.weights)
