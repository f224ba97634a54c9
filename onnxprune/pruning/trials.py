"""Which way of spreading the removal is best: tried and measured on samples not fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from onnxprune.allocation.candidates import (
    Candidate,
    knapsack_candidates,
    simple_candidates,
    without_shared,
)
from onnxprune.calibration.batches import feed_bytes, spread_batches
from onnxprune.calibration.moments import Calibration
from onnxprune.compensation.compensate import compensate
from onnxprune.compensation.least_squares import Settings
from onnxprune.compensation.regression.linear_layers import replaceable_layers
from onnxprune.cost.kinds import CostModel
from onnxprune.coupling.cut import CutError
from onnxprune.errors import RuntimeFailure, TargetUnreachable
from onnxprune.importance.ranked import RankedGroup
from onnxprune.importance.registry import find_criterion
from onnxprune.options import PruneOptions
from onnxprune.progress import Progress
from onnxprune.pruning.rewrite import Prepared

_TRIAL = Settings(rows=32_768, iterations=3, ridges=(1e-3,), both_halves=False)
# more batches where a model takes one sample at a time, fewer where a sample takes long
_TRIAL_BATCHES = 16
_TRIAL_SAMPLES = 64
_TRIAL_MACS = 1e12
_WORK = 2e12
_SOLVING = 4
_SHARED = ", shared groups too"


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
    ranked: Sequence[RankedGroup]
    options: PruneOptions
    cost: CostModel

    def first_ways(self) -> list[Candidate]:
        """Allocations by the options: one, unless several can be tried.

        Groups that several layers read are left whole where the target can be met without.

        Raises:
            TargetUnreachable: when removing everything that may go is not enough.
        """
        return [self._whole(one) for one in self._ways()]

    def way(self, name: str) -> Candidate:
        """The allocation with a name that `best` has given for another target.

        Raises:
            TargetUnreachable: when removing everything that may go is not enough.
        """
        scaling = name.removesuffix(_SHARED)
        if scaling != name:
            ways = knapsack_candidates(self.ranked, self.options.target, self.cost, scaling)
            return self._whole(Candidate(name, ways[0].removal))
        ways = self._ways(scaling)
        return self._whole(next((one for one in ways if one.name == name), ways[0]))

    def _whole(self, way: Candidate) -> Candidate:
        return Candidate(way.name, self.prepared.with_lossless(way.removal, self.options.multiple))

    def _ways(self, scaling: str | None = None) -> list[Candidate]:
        target, allocation = self.options.target, self.options.allocation
        comparable = find_criterion(self.options.criterion).comparable
        simple = simple_candidates(self.ranked, target, self.cost, comparable=comparable)
        if allocation != "auto":
            return [one for one in simple if one.name == allocation] or simple[:1]
        try:
            ways = knapsack_candidates(self._alone(), target, self.cost, scaling)
        except TargetUnreachable:
            ways = []
        ways = ways or knapsack_candidates(self.ranked, target, self.cost, scaling)
        if not ways:
            return simple[-1:] if "channels" not in target else simple[:1]
        return ways if self.options.compensate == "least-squares" else ways[:1]

    def _alone(self) -> Sequence[RankedGroup]:
        """Groups that one layer reads; all where every one has to give up its share."""
        return self.ranked if "channels" in self.options.target else without_shared(self.ranked)

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
            way.name: self.divergence(way, calibration)
            for way in progress(ways, "trying allocations", len(ways))
        }
        best = min(ways, key=lambda way: trials[way.name])
        if len(self._alone()) < len(self.ranked):
            wider = self.way(best.name + _SHARED)
            if wider.removal.units != best.removal.units:
                trials[wider.name] = self.divergence(wider, calibration)
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

    def divergence(self, way: Candidate, calibration: Calibration) -> float:
        """Divergence on the judging half with little effort; infinite where it cannot be built."""
        few = replace(calibration, feeds=self.trial_feeds(calibration))
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

    def trial_feeds(self, calibration: Calibration) -> list[Mapping[str, NDArray[Any]]]:
        """Batches that a trial takes: at least two, one to fit and one to judge, in turn."""
        batch = calibration.feeds[0]
        rows = max(len(next(iter(batch.values()))), 1)
        traced = self.prepared.analysis.coupling.facts.first.feed
        share = feed_bytes(batch) / max(feed_bytes(traced), 1)
        macs = share * self.cost.whole["macs"]
        most = max(_TRIAL_BATCHES, _TRIAL_SAMPLES // rows)
        count = max(2, min(most, -int(-_TRIAL_MACS // max(2 * macs, 1))))
        return spread_batches(calibration.feeds, count)
