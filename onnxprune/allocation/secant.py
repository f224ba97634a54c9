"""Adjusting what an estimate is asked for until what is built measures as asked.

A cost model predicts what a cut leaves of latency, file size or parameters; what is built is
measured. Where the two differ, the cost model is asked for something else and the model is built
again. How the next aim follows from the attempts so far is up to a rule:

* `Secant`, for a ratio that may end on either side: first in proportion, then by linear
  interpolation between the nearest attempts on both sides (regula falsi);
* `Excess`, for counts that must not be exceeded: the aim is lowered by what is too much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from onnxprune.errors import TargetUnreachable

T = TypeVar("T")

Aim: TypeAlias = Mapping[str, float]
"""Kind of target -> fraction of the original."""

TOLERANCE = 0.05
"""How far a measured ratio may be from the one asked for, as a share of it."""

_SAME = 0.003
"""Two aims nearer to each other than this share give the same model."""

_LARGEST_STEP = 0.4
"""An aim shrinks at most to this share of the smallest one so far."""

_SMALLEST = 1e-3
"""The smallest fraction a counted target is asked for."""


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """One model that was built.

    Attributes:
        aim: kind -> fraction that the cost model was asked for.
        ratios: kind -> fraction of the original that was measured.
        result: the model.
    """

    aim: Mapping[str, float]
    ratios: Mapping[str, float]
    result: T


@dataclass(frozen=True)
class Excess:
    """Lower the aim by what a count exceeds.

    Attributes:
        limits: kind -> largest fraction of the original.
        slack: excess that does not matter, a fraction of the original.
        factor: how much further than the excess the aim is lowered.
    """

    limits: Mapping[str, float]
    slack: float = 0.0
    factor: float = 1.0

    def excess(self, ratios: Mapping[str, float]) -> dict[str, float]:
        """Kind -> how far a ratio exceeds its limit, of those that do."""
        over = {kind: ratios[kind] - limit for kind, limit in self.limits.items()}
        return {kind: share for kind, share in over.items() if share > self.slack}

    def is_met(self, ratios: Mapping[str, float]) -> bool:
        """Whether no limit is exceeded."""
        return not self.excess(ratios)

    def next_aim(self, attempts: Sequence[Attempt[T]], last: Aim, floor: Aim) -> Aim | None:
        """Return the last aim less its excess; None where that cannot be built."""
        if floor or not attempts:
            return None
        over = self.excess(attempts[-1].ratios)
        lower = {
            kind: max(last[kind] - self.factor * share, _SMALLEST) for kind, share in over.items()
        }
        return {**last, **lower}


@dataclass(frozen=True)
class Secant:
    """Interpolate between attempts above and below.

    Attributes:
        kind: the target that is measured.
        asked: the ratio wanted, above 0.
        close: how near the ratio has to come, as a share of what is asked.
    """

    kind: str
    asked: float
    close: float = 0.02

    def is_met(self, ratios: Mapping[str, float]) -> bool:
        """Whether the ratio is as asked."""
        return abs(ratios[self.kind] / self.asked - 1) <= self.close

    def next_aim(self, attempts: Sequence[Attempt[T]], last: Aim, floor: Aim) -> Aim | None:
        """Return the interpolated aim; None where it was tried, or cannot be built."""
        least = floor.get(self.kind, 0.0)
        points = [(attempt.aim[self.kind], attempt.ratios[self.kind]) for attempt in attempts]
        aim = self._interpolated(points, last[self.kind], least)
        if aim <= least or any(abs(aim / tried - 1) < _SAME for tried, _ in points):
            return None
        return {**last, self.kind: aim}

    def best(self, attempts: Sequence[Attempt[T]]) -> Attempt[T] | None:
        """Return the attempt nearest to what was asked, else the largest below; None above all."""
        ratio = {id(attempt): attempt.ratios[self.kind] for attempt in attempts}
        near = [a for a in attempts if abs(ratio[id(a)] / self.asked - 1) <= TOLERANCE]
        if near:
            return min(near, key=lambda attempt: abs(ratio[id(attempt)] - self.asked))
        below = [attempt for attempt in attempts if ratio[id(attempt)] < self.asked]
        return max(below, key=lambda attempt: ratio[id(attempt)]) if below else None

    def _interpolated(
        self, points: Sequence[tuple[float, float]], last: float, floor: float
    ) -> float:
        """The next aim from (aim, ratio) pairs."""
        above = [point for point in points if point[1] > self.asked]
        below = [point for point in points if point[1] <= self.asked]
        if not points:  # the least that is offered, if that is known
            return min(floor * (1 + _SAME) if floor > last else (last + 1) / 2, 1.0)
        if above and below:
            slow_aim, slow = min(above, key=lambda point: point[1])
            fast_aim, fast = max(below, key=lambda point: point[1])
            return fast_aim + (self.asked - fast) / (slow - fast) * (slow_aim - fast_aim)
        if above:
            aim, ratio = min(above)
            # uncut, aim and ratio are 1: the line through there and the attempt
            slope = (1 - ratio) / (1 - aim) if aim < 1 else 0.0
            line = 1 - (1 - self.asked) / slope if slope > 0 else 0.0
            least = (floor + aim) / 2 if floor else aim * _LARGEST_STEP
            return max(min(line, aim * self.asked / ratio), least)
        aim, ratio = max(below)
        return min(aim * self.asked / ratio, 1.0)


def solve_for_target(
    start: Aim,
    build: Callable[[Aim], tuple[T, Mapping[str, float]]],
    rule: Secant | Excess,
    rounds: int,
) -> list[Attempt[T]]:
    """Build, measure and adjust the aim until a rule is met.

    Args:
        start: first aim, kind -> fraction of the original.
        build: makes a result for an aim and measures its ratios.
        rule: `is_met` says when to stop; `next_aim` what to ask for next, from the attempts, the
            last aim and, once an aim could not be built, the fractions below which none can.
        rounds: most attempts.

    Returns:
        the attempts in order; at least one.

    Raises:
        TargetUnreachable: when no aim can be built at all.
    """
    attempts: list[Attempt[T]] = []
    floor: dict[str, float] = {}
    refusal: TargetUnreachable | None = None
    aim: Aim | None = start
    for _ in range(rounds):
        if aim is None:
            break
        try:
            result, ratios = build(aim)
        except TargetUnreachable as error:
            refusal = error
            floor = {kind: max(share, error.best.get(kind, 0.0)) for kind, share in aim.items()}
        else:
            attempts.append(Attempt(aim, ratios, result))
            if rule.is_met(ratios):
                break
        aim = rule.next_aim(attempts, aim, floor)
    if not attempts and refusal is not None:
        raise refusal
    return attempts
