"""Which further units must be removed with some: the smallest legal set around a seed.

Legal means that every definition holds, every rectangle stays rectangular and every alignment keeps
the same positions in its kept rows (see `relations`), and that every axis keeps at least one entry.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NOTHING = np.zeros(0, np.int32)


@dataclass(frozen=True)
class ConstraintSet:
    """Constraints over units; unit 0 is frozen.

    Attributes:
        definitions: (composite, its members).
        rectangles: unit arrays with two or more dimensions.
        alignments: unit arrays, rows x columns.
    """

    definitions: tuple[tuple[int, NDArray[np.int32]], ...] = ()
    rectangles: tuple[NDArray[np.int32], ...] = ()
    alignments: tuple[NDArray[np.int32], ...] = ()

    def __len__(self) -> int:
        return len(self.definitions) + len(self.rectangles) + len(self.alignments)

    def by_unit(self) -> dict[int, list[int]]:
        """Numbers of the constraints that mention each unit."""
        index: dict[int, list[int]] = defaultdict(list)
        for number in range(len(self)):
            for unit in np.unique(self._units(number)).tolist():
                index[unit].append(number)
        return index

    def demanded(
        self,
        number: int,
        removed: NDArray[np.bool_],
        cost: NDArray[np.float64],
        same_positions: bool,
    ) -> NDArray[np.int32]:
        """Further units that one constraint wants removed; unit 0 among them means never."""
        if number < len(self.definitions):
            return _complete(*self.definitions[number], removed)
        number -= len(self.definitions)
        if number < len(self.rectangles):
            return _equalise(self.rectangles[number], removed, cost, same_positions)
        return _level(self.alignments[number - len(self.rectangles)], removed)

    def urgency(self, number: int) -> int:
        """Definitions first, then alignments; rectangles, which may choose, last."""
        if number < len(self.definitions):
            return 0
        return 2 if number < len(self.definitions) + len(self.rectangles) else 1

    def _units(self, number: int) -> NDArray[np.int32]:
        if number < len(self.definitions):
            composite, members = self.definitions[number]
            return np.append(members, np.int32(composite))
        number -= len(self.definitions)
        if number < len(self.rectangles):
            return self.rectangles[number].ravel()
        return self.alignments[number - len(self.rectangles)].ravel()


def close(
    constraints: ConstraintSet,
    by_unit: dict[int, list[int]],
    removed: NDArray[np.bool_],
    seeds: Iterable[int],
    cost: NDArray[np.float64],
    *,
    same_positions: bool = True,
    give_up: Callable[[Sequence[int]], bool] | None = None,
) -> list[int] | None:
    """Remove seeds and everything that has to go with them.

    Args:
        constraints: what must hold.
        by_unit: `constraints.by_unit()`.
        removed: bool [units]; changed in place, also when the closure fails.
        seeds: units to remove.
        cost: float [units]; the cheapest go first when a row may choose its positions.
        same_positions: prefer the positions other rows have lost (False: only cost counts).
        give_up: called with the units just removed, each time; returns True to stop.

    Returns:
        The newly removed units, or None when a frozen unit would have to be removed or `give_up`
        stopped.
    """
    closed = [unit for unit in dict.fromkeys(seeds) if not removed[unit]]
    if 0 in closed:
        return None
    removed[closed] = True
    waiting: tuple[dict[int, None], ...] = ({}, {}, {})
    fresh = closed
    while True:
        if give_up is not None and give_up(fresh):
            return None
        for unit in fresh:
            for number in by_unit.get(unit, ()):
                waiting[constraints.urgency(number)][number] = None
        fresh = []
        while not fresh:
            queue = waiting[0] or waiting[1] or waiting[2]
            if not queue:
                return closed
            number, _ = queue.popitem()
            wanted = constraints.demanded(number, removed, cost, same_positions)
            if len(wanted):
                fresh = np.unique(wanted[~removed[wanted]]).tolist()
        if 0 in fresh:
            return None
        removed[fresh] = True
        closed = closed + fresh


def alive_shape(alive: NDArray[np.bool_]) -> tuple[int, ...] | None:
    """Shape of what is kept of a nested array, without the empty rows; None if ragged."""
    if alive.ndim == 1:
        return (int(np.count_nonzero(alive)),)
    if alive.ndim == 2:
        lengths = np.count_nonzero(alive, axis=1)
        lengths = lengths[lengths > 0]
        if len(lengths) and (lengths != lengths[0]).any():
            return None
        return len(lengths), int(lengths[0]) if len(lengths) else 0
    shapes = {alive_shape(row) for row in alive if row.any()}
    if len(shapes) > 1 or None in shapes:
        return None
    inner = shapes.pop() if shapes else (0,) * (alive.ndim - 1)
    return (int(alive.any(axis=tuple(range(1, alive.ndim))).sum()), *(inner or ()))


def _complete(
    composite: int, members: NDArray[np.int32], removed: NDArray[np.bool_]
) -> NDArray[np.int32]:
    if composite and removed[composite]:
        return members
    return np.array([composite], np.int32) if removed[members].all() else _NOTHING


def _level(rows: NDArray[np.int32], removed: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Remove every column that some kept row has lost from all kept rows."""
    lost = removed[rows]
    surviving = ~lost.all(axis=1)
    return rows[surviving][:, lost[surviving].any(axis=0)].ravel()


def _equalise(
    array: NDArray[np.int32], removed: NDArray[np.bool_], cost: NDArray[np.float64], same: bool
) -> NDArray[np.int32]:
    """Make the kept rows of a nested array equally long."""
    lost = removed[array]
    if array.ndim == 2:
        return _equalise_rows(array, lost, cost, same)
    if alive_shape(~lost) is not None:
        return _NOTHING
    rows = [row for row in array if not removed[row].all()]
    inner = [_equalise(row, removed, cost, same) for row in rows]
    if any(len(part) for part in inner):
        return np.concatenate(inner)
    shapes = [alive_shape(~removed[row]) or () for row in rows]
    target = tuple(min(extents) for extents in zip(*shapes, strict=True))
    shortest = rows[min(range(len(rows)), key=lambda i: int((~removed[rows[i]]).sum()))]
    hint: NDArray[np.bool_] = removed[shortest] if same else np.zeros(shortest.shape, bool)
    wanted = [_shrink(row, target, hint, removed, cost) for row in rows]
    return np.concatenate(wanted) if wanted else _NOTHING


def _equalise_rows(
    rows: NDArray[np.int32], lost: NDArray[np.bool_], cost: NDArray[np.float64], same: bool
) -> NDArray[np.int32]:
    """The common case of plain rows, all at once: cut each to the length of the shortest."""
    lengths = rows.shape[1] - np.count_nonzero(lost, axis=1)
    kept = lengths > 0
    stacked, lost, lengths = rows[kept], lost[kept], lengths[kept]
    if not len(lengths) or (lengths == lengths[0]).all():
        return _NOTHING
    shortest = int(lengths.argmin())
    preferred = np.broadcast_to(lost[shortest] if same else np.bool_(False), stacked.shape)
    keys = (np.where(lost, 0.0, cost[stacked]), ~preferred, stacked == 0, lost)
    order = np.lexsort(keys, axis=1)
    surplus = np.arange(stacked.shape[1]) < (lengths - lengths[shortest])[:, np.newaxis]
    return np.asarray(np.take_along_axis(stacked, order, axis=1)[surplus])


def _shrink(
    array: NDArray[np.int32],
    target: Sequence[int],
    hint: NDArray[np.bool_],
    removed: NDArray[np.bool_],
    cost: NDArray[np.float64],
) -> NDArray[np.int32]:
    """Units to remove so that a nested array is kept with the target shape."""
    flat = array.reshape(len(array), -1)
    lost = removed[flat]
    surviving = np.flatnonzero(~lost.all(axis=1))
    surplus = len(surviving) - target[0]
    preferred = np.all(hint.reshape(len(array), -1), axis=1)[surviving]
    price = np.where(lost, 0.0, cost[flat]).sum(axis=1)[surviving]
    frozen = (flat == 0).any(axis=1)[surviving]
    order = np.lexsort((price, ~preferred, frozen))
    chosen, kept = surviving[order[:surplus]], surviving[order[surplus:]]
    parts = [flat[chosen].ravel()] if surplus > 0 else []
    if array.ndim > 1:
        rest = kept if surplus > 0 else surviving
        inner = [np.asarray(hint[i]) for i in rest]
        pairs = zip(array[rest], inner, strict=True)
        parts += [_shrink(row, target[1:], part, removed, cost) for row, part in pairs]
    return np.concatenate(parts) if parts else _NOTHING
