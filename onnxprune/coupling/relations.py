"""Atoms, which of them form one unit, and what must hold when some units are removed.

Four relations describe everything a graph demands:

    unify       a = b                        both belong to one unit
    definition  c <-> all of S               a composite is removed when all its members are
    rectangle   array of atoms, >= 2 dims    every kept row keeps equally many entries
    alignment   rows x columns               every kept row keeps the *same* positions
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
            if (above == root).all():
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


_NO_BLOCK = -1


@dataclass(frozen=True)
class Reason:
    """Why atoms can never be removed: the node that forbids it, in plain words."""

    node: str
    text: str


@dataclass(frozen=True)
class Origin:
    """Where a block of atoms was made: an axis of a tensor."""

    tensor: str
    axis: int


class Relations:
    """Union-find over atoms plus the recorded definitions, rectangles and alignments.

    Attributes:
        node: name of the node being traced; it is written into the reasons.
        definitions: pairs (composite atom, member atoms), 1-D int32 members.
        rectangles: atom arrays with two or more dimensions.
        alignments: atom arrays, rows x columns.
        origins: one per block of atoms made together.
    """

    def __init__(self) -> None:
        self.node = ""
        self.definitions: list[tuple[int, NDArray[np.int32]]] = []
        self.rectangles: list[NDArray[np.int32]] = []
        self.alignments: list[NDArray[np.int32]] = []
        self.origins: list[Origin] = []
        self._sets = DisjointSets()
        self._frozen = np.zeros(1024, bool)
        self._block = np.full(1024, _NO_BLOCK, np.int32)
        self._reasons: dict[int, Reason] = {}
        self._composites: dict[tuple[int, ...], int] = {}
        self.freeze(self._allocate(1, _NO_BLOCK), "fixed")

    @property
    def count(self) -> int:
        """Number of atoms made so far; atom 0 is frozen from the start."""
        return self._sets.count

    def fresh(self, shape: tuple[int, ...], origin: Origin) -> NDArray[np.int32]:
        """Return new atoms of the given shape, one block that remembers its origin."""
        self.origins.append(origin)
        atoms = self._allocate(int(np.prod(shape)), len(self.origins) - 1)
        return atoms.reshape(shape)

    def blocks(self) -> NDArray[np.int32]:
        """Block number of every atom, -1 for composites: int32 [count]."""
        return self._block[: self.count]

    def roots(self, atoms: NDArray[np.int32]) -> NDArray[np.int32]:
        """Representative of the unit of each atom, same shape; frozen units keep theirs."""
        return self._sets.roots(atoms)

    def find(self, atoms: NDArray[np.int32]) -> NDArray[np.int32]:
        """Unit of each atom, same shape; every frozen unit is 0."""
        root = self.roots(atoms)
        return np.where(self._frozen[root], np.int32(0), root)

    def unify(self, left: NDArray[np.int32], right: NDArray[np.int32]) -> None:
        """Tie two atom arrays of equal shape position by position."""
        for first, second in self._sets.different(left, right):
            self._union(first, second)

    def freeze(self, atoms: NDArray[np.int32], text: str) -> None:
        """Forbid the removal of atoms for ever; the first reason of a unit is kept."""
        self._freeze_roots(self.roots(atoms), Reason(self.node, text))

    def reason(self, atom: int) -> Reason | None:
        """Why the unit of an atom is frozen, or None when it is not."""
        return self._reasons.get(int(self.roots(np.array([atom], np.int32))[0]))

    def conjunction(self, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """Atoms that are removed when everything in their row is.

        Args:
            rows: atoms [n, m].

        Returns:
            atoms [n]: the common root of a row, a frozen member, or a new composite.
        """
        roots = self.roots(rows)
        result = roots[:, 0].copy()
        for index in np.flatnonzero((roots != roots[:, :1]).any(axis=1)).tolist():
            result[index] = self._composite(np.unique(roots[index]))
        return result

    def rectangle(self, atoms: NDArray[np.int32]) -> None:
        """Demand that removal leaves a nested-rectangular array."""
        array = atoms.squeeze()
        if array.ndim > 1:
            self.rectangles.append(array)

    def align(self, rows_by_columns: NDArray[np.int32]) -> None:
        """Demand that all kept rows keep the same columns."""
        if min(rows_by_columns.shape) > 1:
            self.alignments.append(rows_by_columns)

    def _allocate(self, size: int, block: int) -> NDArray[np.int32]:
        atoms = self._sets.allocate(size)
        if self.count > len(self._frozen):
            extra = max(self.count, 2 * len(self._frozen)) - len(self._frozen)
            self._frozen = np.concatenate([self._frozen, np.zeros(extra, bool)])
            self._block = np.concatenate([self._block, np.full(extra, _NO_BLOCK, np.int32)])
        self._block[atoms] = block
        return atoms

    def _composite(self, members: NDArray[np.int32]) -> int:
        frozen = members[self._frozen[members]]
        if len(frozen):
            return int(frozen[0])
        key = tuple(members.tolist())
        if key not in self._composites:
            self._composites[key] = int(self._allocate(1, _NO_BLOCK)[0])
            self.definitions.append((self._composites[key], members))
        return self._composites[key]

    def _union(self, left: int, right: int) -> None:
        first, second = self.roots(np.array([left, right], np.int32)).tolist()
        if first == second:
            return
        if self._frozen[first] or self._frozen[second]:
            known, other = (first, second) if self._frozen[first] else (second, first)
            self._freeze_roots(np.array([other], np.int32), self._reasons[known])
            return
        self._sets.link(first, second)

    def _freeze_roots(self, roots: NDArray[np.int32], reason: Reason) -> None:
        for root in np.unique(roots[~self._frozen[roots]]).tolist():
            self._frozen[root] = True
            self._reasons[root] = reason
