"""How to prune: the options of a run together with the criterion and compensation they name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnxprune.compensation.compensate import Compensation, Effort, find_compensation
from onnxprune.compensation.least_squares import Settings
from onnxprune.importance.criterion import Criterion
from onnxprune.importance.registry import find_criterion
from onnxprune.options import PruneOptions


@dataclass(frozen=True)
class Method:
    """How to prune, resolved once.

    Attributes:
        options: as the user gave them, checked.
        criterion: ranks the units.
        compensation: makes up for what is removed.
    """

    options: PruneOptions
    criterion: Criterion
    compensation: Compensation

    @classmethod
    def of(cls, options: PruneOptions) -> Method:
        """Look up what the options name.

        Raises:
            InputError: for an unknown criterion or compensation.
        """
        criterion = find_criterion(options.criterion)
        return cls(options, criterion, find_compensation(options.compensate))

    def weaker(self) -> Method:
        """The same with the compensation to fall back to."""
        options = replace(self.options, compensate=self.compensation.weaker)
        return replace(self, options=options, compensation=find_compensation(options.compensate))

    @property
    def walks(self) -> bool:
        """Whether calibration batches are walked through the model, and so held in memory."""
        return self.compensation.refits_layers or self.criterion.measures_curves

    @property
    def effort(self) -> Effort:
        """What is done for a result that is handed out."""
        views = 1 + len(self.options.augment)
        return Effort(Settings(rows=Settings.rows * views), self.criterion.measures_curves)
