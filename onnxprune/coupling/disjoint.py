"""Disjoint sets over consecutive integers, vectorised."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DisjointSets"]


class DisjointSets:
    """Union-find whose representative is the smallest member."""

    def __init__(self, count: int = 0) -> None:
        self.count = 0
        self._parent = np.zeros(1024, np.int32)
        self.allocate(count)

    def allocate(self, size: int) -> NDArray[np.int32]:
        """Add members of their own sets: int32 [size]."""
        start, self.count = self.count, self.count + size
        if self.count > len(self._parent):
            self._parent = np.resize(self._parent, max(self.count, 2 * len(self._parent)))
        members = np.arange(start, self.count, dtype=np.int32)
        self._parent[start : self.count] = members
        return members

    def roots(self, members: NDArray[np.int32]) -> NDArray[np.int32]:
        """Representative of each member's set, same shape."""
        root = self._parent[members]
        while True:
            above = self._parent[root]
            if np.array_equal(above, root):
                break
            root = above
        self._parent[members] = root
        return root

    def link(self, left: int, right: int) -> None:
        """Unite the sets of two members."""
        first, second = self.roots(np.array([left, right], np.int32)).tolist()
        self._parent[max(first, second)] = min(first, second)

    def link_all(self, left: NDArray[np.int32], right: NDArray[np.int32]) -> None:
        """Unite sets pairwise; both arrays have the same shape."""
        for first, second in self.different(left, right):
            self.link(first, second)

    def different(self, left: NDArray[np.int32], right: NDArray[np.int32]) -> list[tuple[int, int]]:
        """Distinct pairs of representatives that are not yet united."""
        first, second = self.roots(left).ravel(), self.roots(right).ravel()
        apart = first != second
        if not apart.any():
            return []
        keys = np.unique(first[apart].astype(np.int64) * self.count + second[apart])
        return [divmod(key, self.count) for key in keys.tolist()]
