"""Successive halving: all candidates are tried with little effort, the better ones with more.

    round 1    a   b   c   d   e   f        little effort
    round 2    a       c       e            more; the best of these wins

Candidates that hardly differ are tried once. Divergences of different rounds do not compare, since
a better fit lowers them all; those of candidates that left early are told in proportion to what
became of the winner's, which is then the least.

Source: Jamieson & Talwalkar 2016 (successive halving).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from onnxprune.allocation.candidates import Candidate
from onnxprune.coupling.cut import Removal

_ALIKE = 0.02
"""Share of the units that either of two removals has, below which a difference does not matter."""

_FAR_BEHIND = 2.0
"""Times the least divergence of a round from which on a candidate leaves, whatever its rank."""


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Of candidates that remove nearly the same units the first.

    Args:
        candidates: in the order of preference.
    """
    found: list[Candidate] = []
    for candidate in candidates:
        if all(difference(candidate.removal, other.removal) > _ALIKE for other in found):
            found.append(candidate)
    return found


def difference(first: Removal, second: Removal) -> float:
    """Share of the units that only one of two removals has, from 0 to 1."""
    apart = union = 0
    for name in first.units.keys() | second.units.keys():
        ours, theirs = set(first.units.get(name, ())), set(second.units.get(name, ()))
        apart += len(ours ^ theirs)
        union += len(ours | theirs)
    return apart / union if union else 0.0


def going_on(
    candidates: Sequence[Candidate], divergences: Mapping[str, float], places: int
) -> list[Candidate]:
    """The candidates that are tried in the next round, the best first.

    Args:
        candidates: at least one.
        divergences: what a round has found, by name.
        places: most candidates that go on.
    """
    ordered = sorted(candidates, key=lambda candidate: divergences[candidate.name])
    limit = _FAR_BEHIND * divergences[ordered[0].name]
    return [each for each in ordered[:places] if divergences[each.name] <= limit]


def on_one_scale(winner: str, rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Divergence of every candidate that was tried, on the scale of the last round.

    Args:
        winner: name of a candidate that all rounds have tried.
        rounds: what each has found, by name.
    """
    scaled: dict[str, float] = {}
    last = rounds[-1][winner]
    for found in rounds:
        scale = last / found[winner] if 0 < found[winner] < math.inf else 1.0
        for name, each in found.items():
            scaled[name] = max(scale * each, last) if each < math.inf else each
    return scaled
