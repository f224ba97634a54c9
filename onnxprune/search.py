"""Which way of spreading the removal is best: tried and measured on samples not fitted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from onnxprune.allocate.candidates import (
    Candidate,
    Ranked,
    knapsack_candidates,
    simple_candidates,
    without_shared,
)
from onnxprune.compensation import Calibration, compensate
from onnxprune.coupling.cut import CutError
from onnxprune.errors import RuntimeFailure, TargetUnreachable
from onnxprune.importance import find_criterion
from onnxprune.passes.least_squares import Settings
from onnxprune.reconstruction.find import replaceable_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxprune.cost.shapes import CutCost
    from onnxprune.options import Options
    from onnxprune.preparation import Prepared
    from onnxprune.progress import Progress

__all__ = ["Search"]

_TRIAL = Settings(rows=32_768, iterations=3, ridges=(1e-3,), both_halves=False)
_TRIAL_BATCHES = 16
_WORK = 2e12
_SOLVING = 4


@dataclass(frozen=True)
class Search:
    """Allocations of one target.

    Attributes:
        prepared: the model.
        ranked: groups with removal orders and error curves.
        options: target, allocation and compensation.
        cost: the cost model.
    """

    prepared: Prepared
    ranked: Sequence[Ranked]
    options: Options
    cost: CutCost

    def first_ways(self) -> list[Candidate]:
        """Allocations by the options: one, unless several can be tried.

        Groups that several layers read are left whole where the target can be met without.

        Raises:
            TargetUnreachable: when removing everything that may go is not enough.
        """
        return [
            Candidate(one.name, self.prepared.with_lossless(one.removal)) for one in self._ways()
        ]

    def _ways(self) -> list[Candidate]:
        target, allocation = self.options.target, self.options.allocation
        comparable = find_criterion(self.options.criterion).comparable
        simple = simple_candidates(self.ranked, target, self.cost, comparable=comparable)
        if allocation != "auto":
            return [one for one in simple if one.name == allocation] or simple[:1]
        try:
            ways = knapsack_candidates(without_shared(self.ranked), target, self.cost)
        except TargetUnreachable:
            ways = []
        ways = ways or knapsack_candidates(self.ranked, target, self.cost)
        if not ways:
            return simple[-1:] if "channels" not in target else simple[:1]
        return ways if self.options.compensate == "least-squares" else ways[:1]

    def best(
        self, ways: Sequence[Candidate], calibration: Calibration | None, progress: Progress[Any]
    ) -> tuple[Candidate, dict[str, float]]:
        """Try allocations, the best also with the groups that several layers read.

        Args:
            ways: from `first_ways`.
            calibration: samples to try on.
            progress: told about every trial.

        Returns:
            the best and, by name, the divergence of each that was tried.
        """
        if len(ways) < 2 or calibration is None:
            return ways[0], {}
        ways = ways[: self._affordable(calibration)]
        trials = {
            way.name: self._tried(way, calibration)
            for way in progress(ways, "trying allocations", len(ways))
        }
        best = min(ways, key=lambda way: trials[way.name])
        if len(without_shared(self.ranked)) < len(self.ranked):
            everywhere = knapsack_candidates(self.ranked, self.options.target, self.cost)
            wider = next((one for one in everywhere if one.name == best.name), None)
            if wider is not None and wider.removal.classes != best.removal.classes:
                removal = self.prepared.with_lossless(wider.removal)
                wider = Candidate(f"{best.name}, shared groups too", removal)
                trials[wider.name] = self._tried(wider, calibration)
                best = min((best, wider), key=lambda way: trials[way.name])
        return best, trials

    def _affordable(self, calibration: Calibration) -> int:
        """How many trials are worth their time: at least two, fewer for large layers."""
        analysis = self.prepared.analysis
        work = 1.0
        for layer in replaceable_layers(analysis.model, analysis.coupling):
            groups, _, unknowns = layer.shape
            if unknowns <= _TRIAL.largest:
                rows = min(
                    _TRIAL.rows, layer.row_count(layer.output_shape) * len(calibration.feeds)
                )
                work += groups * unknowns**2 * (rows + _SOLVING * unknowns)
        return max(2, int(_WORK / work))

    def _tried(self, way: Candidate, calibration: Calibration) -> float:
        """Divergence on the judging half with little effort; infinite where it cannot be built."""
        few = replace(calibration, feeds=_spread(calibration.feeds))
        try:
            trial = compensate(
                self.prepared.analysis,
                way.removal,
                self.options,
                few,
                settings=_TRIAL,
            )
        except (CutError, RuntimeFailure):
            return float("inf")
        return trial.divergence if trial.divergence is not None else float("inf")


def _spread(feeds: Sequence[Any]) -> list[Any]:
    """Some batches from all over the set, every second of them at an even place as before."""
    if len(feeds) <= _TRIAL_BATCHES:
        return list(feeds)
    places = [number * len(feeds) // _TRIAL_BATCHES for number in range(_TRIAL_BATCHES)]
    return [
        feeds[min(place + (place + number) % 2, len(feeds) - 1)]
        for number, place in enumerate(places)
    ]
