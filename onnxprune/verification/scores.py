"""How well answers follow another model's, with the model that always says the same as baseline.

* Cohen's kappa, of decisions::

      kappa = (p - e) / (1 - e)

  with p the share of equal decisions and e the share that two models with the same frequencies of
  each class would share by chance. A detector that calls everything background agrees on 99 % of
  its places with one that finds the objects, and has a kappa of 0. Source: Cohen 1960.
* R squared, of numbers::

      R2 = 1 - sum (y - y')^2 / sum (y - mean)^2

  around the mean of the reference *at each place* of the output: 0 for a model that gives that mean
  whatever it is fed.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray


def kappa(reference: NDArray[Any], decisions: NDArray[Any]) -> float | None:
    """Cohen's kappa of two sets of decisions.

    Args:
        reference: class of each row, any shape, any comparable dtype.
        decisions: of the other model, of the same shape.

    Returns:
        1 for equal decisions, 0 for what chance gives, negative below that; None where the
        reference decides the same everywhere, so that nothing can be told.
    """
    counts = DecisionCounts()
    counts.add(np.asarray(reference), np.asarray(decisions))
    return counts.kappa


def r_squared(
    reference: NDArray[Any], values: NDArray[Any], weights: NDArray[np.float64] | None = None
) -> float | None:
    """Share of the reference's variation over samples that another model follows.

    Args:
        reference: float [samples, ...].
        values: of the other model, of the same shape; entries that are not finite in the reference
            do not count.
        weights: what counts how much, broadcastable to that shape; None for all alike.

    Returns:
        1 for equal values, 0 for the mean at each place, negative for worse, minus infinity where
        the other model alone is not finite; None where the reference does not vary, or for a
        single sample.
    """
    wanted, got = np.asarray(reference, np.float64), np.asarray(values, np.float64)
    if not wanted.ndim or len(wanted) < 2:
        return None
    share = np.broadcast_to(1.0 if weights is None else weights, wanted.shape)
    variation = Variation()
    variation.add(*(each.reshape(len(wanted), -1) for each in (wanted, got, share)))
    return variation.r_squared


class DecisionCounts:
    """Decisions of two models, counted batch by batch."""

    def __init__(self) -> None:
        self._counts: tuple[Counter[Any], Counter[Any]] = (Counter(), Counter())
        self._equal = self._total = 0

    def add(self, reference: NDArray[Any], decisions: NDArray[Any]) -> None:
        """Take in the decisions of a batch, of any shape."""
        for counts, batch in zip(self._counts, (reference, decisions), strict=True):
            classes, numbers = np.unique(batch, return_counts=True)
            counts.update(dict(zip(classes.tolist(), numbers.tolist(), strict=True)))
        self._equal += int((reference == decisions).sum())
        self._total += reference.size

    @property
    def agreement(self) -> float | None:
        """Share of equal decisions; None without any."""
        return self._equal / self._total if self._total else None

    @property
    def constant(self) -> float | None:
        """Share that the most frequent decision of the reference has."""
        return max(self._counts[0].values()) / self._total if self._total else None

    @property
    def kappa(self) -> float | None:
        """See `kappa`."""
        first, second = self._counts
        if self._total == 0 or len(first) < 2:
            return None
        chance = sum(count * second[key] for key, count in first.items()) / self._total**2
        return (self._equal / self._total - chance) / (1 - chance) if chance < 1 else None


class Variation:
    """Values of two models at each place of an output, summed up batch by batch."""

    def __init__(self) -> None:
        self._count = 0
        self._middle: NDArray[np.float64] | None = None
        self._weight: Any = 0.0
        self._sum: Any = 0.0
        self._squares = self._apart = self._size = 0.0
        self._comparable = True

    def add(
        self,
        reference: NDArray[np.float64],
        values: NDArray[np.float64],
        weights: NDArray[np.float64] | float = 1.0,
    ) -> None:
        """Take in a batch, float64 [samples, places], and what counts how much in it."""
        if self._middle is None:
            self._middle = np.where(np.isfinite(reference[0]), reference[0], 0.0)
        if reference.shape[1] != len(self._middle):
            self._comparable = False
        if not self._comparable:
            return
        known = np.isfinite(reference)
        share = known * weights
        # around the first sample, so that sums of squares keep their digits
        shifted = np.where(known, reference - self._middle, 0.0)
        apart = np.where(known, reference - values, 0.0)
        self._count += len(reference)
        self._weight = self._weight + share.sum(axis=0)
        self._sum = self._sum + (share * shifted).sum(axis=0)
        self._squares += float((share * shifted**2).sum())
        self._size += float((share * np.where(known, reference, 0.0) ** 2).sum())
        self._apart += float((share * apart**2).sum()) if np.isfinite(apart).all() else np.inf

    @property
    def r_squared(self) -> float | None:
        """See `r_squared`."""
        if self._count < 2 or not self._comparable:
            return None
        around = self._sum**2 / np.maximum(self._weight, np.finfo(float).tiny)
        spread = self._squares - float(around.sum())
        if spread <= np.finfo(np.float32).eps ** 2 * self._size:
            return None
        return 1 - self._apart / spread
