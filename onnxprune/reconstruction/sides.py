"""Which atoms stand on the first and which on the second side of the products they enter."""

from __future__ import annotations

from collections import defaultdict

__all__ = ["Sides"]


class Sides:
    """Atoms that are on the same side as others, or on the opposite one."""

    def __init__(self) -> None:
        self._links: dict[int, list[tuple[int, bool]]] = defaultdict(list)

    def link(self, one: int, other: int, *, opposite: bool = False) -> None:
        """Say how two atoms stand to each other."""
        self._links[one].append((other, opposite))
        self._links[other].append((one, opposite))

    def from_start(self, start: int) -> dict[int, bool]:
        """Say of all atoms linked with one whether they are on the opposite side.

        Raises:
            ValueError: when one atom would be on both sides.
        """
        side, waiting = {start: False}, [start]
        while waiting:
            one = waiting.pop()
            for other, opposite in self._links[one]:
                wanted = side[one] != opposite
                if other not in side:
                    side[other] = wanted
                    waiting.append(other)
                elif side[other] != wanted:
                    raise ValueError("on both sides")
        return side
