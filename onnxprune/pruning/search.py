"""Which removal it is to be: allocations, groups that have to stay, and what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import onnx_ir as ir

from onnxprune.allocation.candidates import Candidate
from onnxprune.allocation.secant import Attempt, best_of, solve_for_target
from onnxprune.cost.latency.measure import Latency, measure_pair
from onnxprune.coupling.analysis import why_nothing
from onnxprune.errors import NothingPrunable, TargetUnreachable
from onnxprune.model.save import model_bytes
from onnxprune.options import LATENCY, SIZE, target_text
from onnxprune.progress import Progress, during
from onnxprune.pruning.build import CutModel, attempt
from onnxprune.pruning.prepare import Ready
from onnxprune.pruning.trials import Search

_SECONDS = 2.5
_SIZES = 4
_MORE = 1.1
_SMALLEST = 1e-3


@dataclass(frozen=True)
class Choice:
    """A removal that can be built.

    Attributes:
        way: the allocation and its removal.
        plain: the model without what is removed, nothing made up for.
        aim: what the cost model was asked for: the target, but for a latency that it misjudges.
        trials: divergence of the allocations that were tried.
    """

    way: Candidate
    plain: CutModel
    aim: Mapping[str, float]
    trials: Mapping[str, float] = field(default_factory=dict)


class Chooser:
    """Chooses for one target.

    A group whose cut the graph cannot express, or for which the certificate fails, is left whole,
    and the choice is made again without it.

    Args:
        ready: the model and its target.
        progress: told about long loops.

    Attributes:
        dropped: groups that are left whole, with the reason.
    """

    def __init__(self, ready: Ready, progress: Progress[Any]) -> None:
        self.dropped: dict[str, str] = {}
        self._ready = ready
        self._progress = progress

    def choose(self) -> Choice:
        """Choose the allocation that diverges least, at the measured latency where that counts.

        Raises:
            NothingPrunable: when no group is left, or (TargetUnreachable) the target is out of
                reach.
        """
        ready, target = self._ready, self._ready.options.target
        first = self._in_time(target[LATENCY]) if LATENCY in target else self._in_size(target)
        if ready.options.compensate == "none":
            return first
        search = self.search(first.aim)
        best, trials = search.best(search.first_ways(), ready.prepared.calibration, self._progress)
        if best.name == first.way.name:
            return replace(first, trials=trials)
        if LATENCY in target:
            timed = self._in_time(target[LATENCY], best.name, first.aim[LATENCY])
            return replace(timed, trials=trials)
        sized = self._in_size(first.aim, best.name) if SIZE in target else replace(first, way=best)
        return replace(sized, trials=trials)

    def at(self, aim: Mapping[str, float], name: str | None = None) -> Choice:
        """Choose what the cost model says meets an aim.

        Args:
            aim: kind -> fraction to remain.
            name: of the allocation; None for the first.

        Raises:
            NothingPrunable: as for `choose`.
        """
        ready = self._ready
        while True:
            search = self.search(aim)
            way = search.way(name) if name is not None else search.first_ways()[0]
            cut = way.removal.units or ready.analysis.altered
            if not cut and any(share < 1 for share in aim.values()):
                raise NothingPrunable(why_nothing(ready.analysis, ready.options, self.dropped))
            plain = replace(ready.options, compensate="none")
            outcome = attempt(ready.prepared.analysis, way.removal, plain)
            if isinstance(outcome, CutModel):
                return Choice(way, outcome, dict(aim))
            self.dropped |= outcome

    def _in_size(self, aim: Mapping[str, float], name: str | None = None) -> Choice:
        """Ask for less until the file is as small as asked: surgery may add constants and names."""
        analysis, asked = self._ready.analysis, self._ready.options.target.get(SIZE)
        choice = self.at(aim, name)
        if asked is None:
            return choice
        whole = analysis.file_bytes or model_bytes(analysis.original)
        best = 1.0
        for _ in range(_SIZES):
            share = model_bytes(choice.plain.model) / whole
            if share <= asked:
                return choice
            best = min(best, share)
            aim = {**aim, SIZE: max(aim[SIZE] - _MORE * (share - asked), _SMALLEST)}
            try:
                choice = self.at(aim, name)
            except TargetUnreachable:
                break
        raise TargetUnreachable(
            f"the target {target_text({SIZE: asked})} cannot be reached; the best file that was "
            f"built has {target_text({SIZE: best})}"
        )

    def search(self, aim: Mapping[str, float]) -> Search:
        """The allocations for an aim, without the groups that are left whole."""
        ready = self._ready
        left = [one for one in ready.ranked if one.group.name not in self.dropped]
        options = replace(ready.options, target=dict(aim))
        return Search(ready.prepared, left, options, ready.cost)

    def _in_time(self, asked: float, name: str | None = None, start: float | None = None) -> Choice:
        """Ask the cost model for less or more until the measured latency is as asked."""
        ready = self._ready

        def build(aim: float) -> tuple[Choice, float]:
            choice = self.at({**ready.options.target, LATENCY: aim}, name)
            work = partial(measured_latency, ready, choice.plain.model)
            return choice, during(self._progress, "measuring latency", work).ratio

        tried = solve_for_target(LATENCY, asked, start or asked, build)
        best = best_of(asked, tried)
        if best is None:
            raise too_slow(asked, tried)
        return best.result


def measured_latency(ready: Ready, model: ir.Model) -> Latency:
    """Time a model against the original, on the feed it was traced with."""
    feed = ready.analysis.coupling.facts.first.feed
    return measure_pair(ready.analysis.original, model, feed, ready.options.runtime, _SECONDS)


def too_slow(asked: float, tried: list[Attempt[Any]]) -> TargetUnreachable:
    """Say how fast it can get."""
    least = min(one.ratio for one in tried)
    return TargetUnreachable(
        f"the target {target_text({LATENCY: asked})} cannot be reached; the best that was measured "
        f"is {target_text({LATENCY: least})}"
    )
