"""Which rows of an activation are looked at: all, or a random share of very many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["drawn_rows"]


def drawn_rows(counts: Sequence[int], most: int, seed: Sequence[int]) -> list[NDArray[np.int64]]:
    """Draw the same share of the rows of every batch.

    Args:
        counts: rows of each batch, at least one.
        most: rows to draw from all batches together; every batch gives one at least.
        seed: of what is drawn; batches differ by their number.

    Returns:
        For each batch the rows drawn, in ascending order.
    """
    share = min(1.0, most / max(sum(counts), 1))
    drawn = []
    for batch, count in enumerate(counts):
        rng = np.random.default_rng([*seed, batch])
        size = max(int(count * share), 1)
        drawn.append(np.sort(rng.choice(count, size, replace=False)))
    return drawn
