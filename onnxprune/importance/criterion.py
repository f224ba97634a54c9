"""What a criterion is, and what it may look at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.moments import Calibration
from onnxprune.coupling.analysis import Analysis, tap_of
from onnxprune.coupling.group_view import GroupView, MaskGradients, WeightSums
from onnxprune.coupling.groups import Group
from onnxprune.errors import InputError
from onnxprune.importance.removal_order import RankedGroup, removal_order
from onnxprune.model.observe import ConstantValues


@dataclass(frozen=True)
class RankingInputs:
    """What is known when units are ranked.

    Attributes:
        analysis: the model whose groups are ranked.
        context: runtime, seed and progress callback.
        calibration: activation statistics and batches; None without samples.
        gradients: by group name, for a criterion with `needs_gradients`.
        first: by group name, the classes to remove before all others.
        goal: fraction of every axis at which the removal orders end; None for as far as possible.
    """

    analysis: Analysis
    context: RunContext = field(default_factory=RunContext)
    calibration: Calibration | None = None
    gradients: Mapping[str, MaskGradients] = field(default_factory=dict)
    first: Mapping[str, Sequence[int]] = field(default_factory=dict)
    goal: float | None = None

    @property
    def constants(self) -> ConstantValues:
        """Values of the constants of the model, by name."""
        return ConstantValues(self.analysis.model, self.analysis.coupling.facts.constants)

    def views(self, groups: Sequence[Group]) -> list[GroupView]:
        """The groups with the values a criterion may look at."""
        constants, coupling = self.constants, self.analysis.coupling
        sums = WeightSums(constants)
        moments = self.calibration.moments if self.calibration is not None else {}
        views = []
        for group in groups:
            taps = {reading: tap_of(coupling, reading) for reading in group.readings}
            seen = {reading: moments[tap] for reading, tap in taps.items() if tap in moments}
            gradients = self.gradients.get(group.name)
            views.append(GroupView(group, constants, seen, gradients, sums))
        return views


class Criterion(ABC):
    """Ranks the units of groups by how much they matter.

    Attributes:
        name: what `--criterion` calls it.
        needs_calibration: whether it looks at activations.
        comparable: whether scores of different groups mean the same, so that importance may decide
            which groups give up more.
        needs_gradients: whether it looks at gradients of a loss (`GroupView.gradients`).
        measures_curves: whether it runs calibration batches to measure an error curve per group.
    """

    name: str
    needs_calibration: bool = False
    comparable: bool = False
    needs_gradients: bool = False
    measures_curves: bool = False

    @abstractmethod
    def rank(self, inputs: RankingInputs, groups: Sequence[Group]) -> list[RankedGroup]:
        """Return the groups in the same order, each with its removal order.

        Raises:
            InputError: when the criterion cannot rank a group.
        """


class ScoreCriterion(Criterion):
    """Gives every unit a score; the lowest are removed first."""

    @abstractmethod
    def score(self, group: GroupView, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return the importance of each unit, float [size]; the lowest are removed first.

        Args:
            group: the units, their weights and statistics.
            rng: random generator of the run, for criteria that draw numbers.
        """

    def rank(self, inputs: RankingInputs, groups: Sequence[Group]) -> list[RankedGroup]:
        """Order the units of each group by their scores.

        Raises:
            InputError: when there is not one finite score for each unit.
        """
        rng = np.random.default_rng(inputs.context.seed)
        ranked = []
        for view in inputs.views(groups):
            group = view.group
            scores = np.asarray(self.score(view, rng), np.float64)
            if scores.shape != (group.size,) or not np.isfinite(scores).all():
                raise InputError(
                    f"criterion {self.name} must return {group.size} finite scores for group "
                    f"{group.name}"
                )
            first = np.isin(group.units, inputs.first.get(group.name, ()))
            scores = np.where(first, scores.min(initial=0.0) - 1.0, scores)
            ranked.append(RankedGroup(group, tuple(removal_order(group, scores, inputs.goal))))
        return ranked


@runtime_checkable
class ScoresUnits(Protocol):
    """What a third-party criterion has to offer; `needs_gradients` is optional.

    Attributes and method mean what they mean in `Criterion` and `ScoreCriterion`.
    """

    name: str
    needs_calibration: bool
    comparable: bool

    def score(self, group: GroupView, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return the importance of each unit, float [size]."""


class ThirdPartyCriterion(ScoreCriterion):
    """A criterion of another package.

    Args:
        criterion: an object with the attributes and the method of `ScoresUnits`.
        name: name of its entry point.
    """

    def __init__(self, criterion: ScoresUnits, name: str) -> None:
        self.name = name
        self.needs_calibration = criterion.needs_calibration
        self.comparable = criterion.comparable
        self.needs_gradients = bool(getattr(criterion, "needs_gradients", False))
        self._criterion = criterion

    def score(self, group: GroupView, rng: np.random.Generator) -> NDArray[Any]:
        """Ask the criterion."""
        return self._criterion.score(group, rng)
