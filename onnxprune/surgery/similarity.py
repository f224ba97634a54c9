"""Rows that are equal, or equal up to a factor, found in near-linear time.

Every row is reduced to its norm and to its product with one random vector. Rows that are equal have
equal products, so only neighbours in the order of the products are compared entry by entry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SAME", "alike"]

SAME = 1e-6
"""Largest distance of two rows taken for equal, relative to their norm: rounding of float32."""

_CHUNK = 1_000_000


def alike(
    keys: NDArray[np.int64], rows: NDArray[Any], *, scaled: bool
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find rows that are the same.

    Args:
        keys: int [n, m]; rows with different keys differ.
        rows: [n, k].
        scaled: rows that differ by a factor, be it negative, are the same.

    Returns:
        For each row the index of one that stands for all like it, int [n], and its factor,
        float [n]: row = factor * (a row all of them share); ones when not `scaled`.
    """
    norms, marks = _marks(rows)
    factors = np.ones(len(rows))
    if scaled:
        factors = np.where(marks < 0, -1.0, 1.0) * norms
        marks = np.abs(marks) / np.where(norms > 0, norms, 1.0)
    limits = np.full(len(rows), SAME) if scaled else SAME * norms
    first = np.arange(len(rows))
    blank = np.flatnonzero(norms == 0)
    if len(blank):
        _, one, which = np.unique(keys[blank], axis=0, return_index=True, return_inverse=True)
        first[blank] = blank[one[which.reshape(-1)]]
    order = np.lexsort((marks, *keys.T))
    order = order[norms[order] > 0]
    near = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    near &= np.diff(marks[order]) <= limits[order[1:]]
    heads: list[int] = []
    for position in np.flatnonzero(near).tolist():
        before, one = order[position : position + 2].tolist()
        if not position or not near[position - 1]:
            heads = [before]
        heads = [other for other in heads if marks[one] - marks[other] <= limits[one]]
        mine = rows[one].astype(np.float64) / factors[one]
        for other in heads:
            apart = mine - rows[other].astype(np.float64) / factors[other]
            if np.sqrt(apart @ apart) <= limits[one]:
                first[one] = other
                break
        else:
            heads.append(one)
    return first, factors


def _marks(rows: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Norm of each row, and its product with a random vector of norm one."""
    count, length = rows.shape
    direction = np.random.default_rng(0).standard_normal(length)
    direction /= max(float(np.linalg.norm(direction)), 1e-30)
    norms, marks = np.zeros(count), np.zeros(count)
    step = max(_CHUNK // max(length, 1), 1)
    for start in range(0, count, step):
        part = rows[start : start + step].astype(np.float64)
        norms[start : start + step] = np.sqrt(np.einsum("ij,ij->i", part, part))
        marks[start : start + step] = part @ direction
    return norms, marks
