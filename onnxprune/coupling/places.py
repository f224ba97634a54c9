"""Where the units of a group lie on the axes of a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["places"]


def places(units: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Places of all units, by how many they have.

    Args:
        units: unit index at each position, -1 for none; any shape.

    Returns:
        For each number of places a pair: (units [n], their flat positions [n, places], ascending).
    """
    flat = units.ravel()
    order = np.argsort(flat, kind="stable")
    order = order[flat[order] >= 0]
    present, start, counts = np.unique(flat[order], return_index=True, return_counts=True)
    result = []
    for times in np.unique(counts).tolist():
        mine = counts == times
        result.append((present[mine], order[start[mine][:, np.newaxis] + np.arange(times)]))
    return result
