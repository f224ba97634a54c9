"""Asking an estimate for what a measurement shall give.

A table estimates what a cut does to the latency; what is built is measured. Where the two differ,
the table is asked for something else: first in proportion, then by linear interpolation between the
nearest results on both sides (regula falsi).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from onnxprune.errors import TargetUnreachable

T = TypeVar("T")

_ROUNDS = 8
_CLOSE = 0.02
_TOLERANCE = 0.05
_SAME = 0.003
_LEAST = 0.4


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """One answer.

    Attributes:
        aim: what the estimate was asked for.
        ratio: what was measured.
        result: what was built.
    """

    aim: float
    ratio: float
    result: T


def solve_for_target(
    kind: str,
    asked: float,
    start: float,
    build: Callable[[float], tuple[T, float]],
    *,
    rounds: int = _ROUNDS,
    close: float = _CLOSE,
) -> list[Attempt[T]]:
    """Change the aim until the measured ratio is as asked.

    Args:
        kind: of target, which a refusal names the least fraction of.
        asked: ratio wanted, above 0.
        start: first aim.
        build: makes a result for an aim, and measures it.
        rounds: most results that are built.
        close: how near the ratio has to come, as a share of what is asked.

    Returns:
        All attempts; `best_of` chooses.

    Raises:
        TargetUnreachable: when no aim can be built at all.
    """
    tried: list[Attempt[T]] = []
    floor, aim = 0.0, start
    refusal: TargetUnreachable | None = None
    for _ in range(rounds):
        try:
            result, ratio = build(aim)
        except TargetUnreachable as error:
            floor, refusal = max(aim, error.best.get(kind, 0.0)), error
        else:
            tried.append(Attempt(aim, ratio, result))
            if abs(ratio / asked - 1) <= close:
                break
        following = _next_aim(asked, tried, floor, aim)
        if following <= floor or any(abs(following / one.aim - 1) < _SAME for one in tried):
            break
        aim = following
    if not tried and refusal is not None:
        raise refusal
    return tried


def best_of(asked: float, tried: Sequence[Attempt[T]]) -> Attempt[T] | None:
    """The attempt nearest to what was asked, else the least one below it; None above all."""
    near = [one for one in tried if abs(one.ratio / asked - 1) <= _TOLERANCE]
    if near:
        return min(near, key=lambda one: abs(one.ratio - asked))
    below = [one for one in tried if one.ratio < asked]
    return max(below, key=lambda one: one.ratio) if below else None


def _next_aim(asked: float, tried: Sequence[Attempt[T]], floor: float, last: float) -> float:
    above = [one for one in tried if one.ratio > asked]
    below = [one for one in tried if one.ratio <= asked]
    if not tried:  # the least that is offered, if that is known
        return min(floor * (1 + _SAME) if floor > last else (last + 1) / 2, 1.0)
    if above and below:
        slow, fast = min(above, key=lambda one: one.ratio), max(below, key=lambda one: one.ratio)
        share = (asked - fast.ratio) / (slow.ratio - fast.ratio)
        return fast.aim + share * (slow.aim - fast.aim)
    if above:
        slow = min(above, key=lambda one: one.aim)
        # uncut, aim and ratio are 1: the line through there and the attempt
        steep = (1 - slow.ratio) / (1 - slow.aim) if slow.aim < 1 else 0.0
        line = 1 - (1 - asked) / steep if steep > 0 else 0.0
        least = (floor + slow.aim) / 2 if floor else slow.aim * _LEAST
        return max(min(line, slow.aim * asked / slow.ratio), least)
    fast = max(below, key=lambda one: one.aim)
    return min(fast.aim * asked / fast.ratio, 1.0)
