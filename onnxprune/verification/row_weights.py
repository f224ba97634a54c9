"""How much each row of an output counts where two models are compared.

Rows of decisions are balanced over the classes that the original answers: row i counts
1 / (K n(c_i)), with n(c) rows of class c and K classes, so that each class counts alike however
rare it is. Quantities whose rows are those of class scores count with these; of boxes, corners or
centre and size, only those count that hold an object: rows that the original answers with another
class than most, or with any probability of a half and more.
Source: Brodersen et al. 2010 (balanced accuracy).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.verification.measures import OutputKind, OutputMeasure

_HALF = 0.5
_NOTHING = -1
"""Stands for the class of a row without an object."""

Outputs = Mapping[str, NDArray[Any]]


class RowWeights:
    """Weights of rows, from the decisions of a model on some batches.

    Args:
        measures: of the outputs.
        outputs: of the original, batch by batch; they say which classes there are.
        answers: of the model whose answers are balanced; None for the original.
    """

    def __init__(
        self,
        measures: Mapping[str, OutputMeasure],
        outputs: Sequence[Outputs],
        answers: Sequence[Outputs] | None = None,
    ) -> None:
        self._measures = measures
        self._shares = {
            name: self._counted(measure, outputs, outputs if answers is None else answers)
            for name, measure in measures.items()
        }

    def of(self, name: str, original: Outputs, answers: Outputs | None = None) -> NDArray[Any]:
        """Weights of the rows of an output in one batch.

        Args:
            name: of the output.
            original: outputs of the original.
            answers: of the model whose answers are balanced; None for the original.

        Returns:
            float64 [rows] as `OutputMeasure.rows` has them; over all batches that they were
            counted in they add up to 1.
        """
        measure, share = self._measures[name], self._shares[name]
        rows = len(measure.plain_rows(original[name]))
        boxed = measure.boxes is not None
        given = original if boxed or answers is None else answers
        decided = decided_rows(measure, self._measures, given)
        if decided is None or len(decided) != rows:
            return np.full(rows, share.uniform)
        return share.of(decided)

    def _counted(
        self, measure: OutputMeasure, outputs: Sequence[Outputs], answers: Sequence[Outputs]
    ) -> _Shares:
        rows = [len(measure.plain_rows(batch[measure.name])) for batch in outputs]
        uniform = 1 / max(sum(rows), 1)
        decided = [decided_rows(measure, self._measures, batch) for batch in outputs]
        known = [each for each in decided if each is not None]
        if [len(each) for each in known] != rows:
            return _Shares(uniform)
        classes, counts = np.unique(np.concatenate(known), return_counts=True)
        if measure.boxes is not None:
            some = are_objects(self._measures[measure.rows_of], classes, counts)
            return _Shares.alike(classes[some], counts[some], uniform)
        given = (decided_rows(measure, self._measures, batch) for batch in answers)
        mine = np.concatenate([each for each in given if each is not None])
        return _Shares.balanced(mine, classes, uniform)


@dataclass(frozen=True)
class _Shares:
    """Weight of a row of each class.

    Attributes:
        uniform: of a row where classes do not count.
        classes: int64, ascending; empty where they do not count.
        weights: of a row of each.
    """

    uniform: float
    classes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    weights: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def balanced(
        cls, decided: NDArray[np.int64], classes: NDArray[np.int64], uniform: float
    ) -> _Shares:
        """Each class alike; classes that are never decided leave theirs to the others."""
        mine, frequency = np.unique(decided[np.isin(decided, classes)], return_counts=True)
        return cls(uniform, mine, 1 / np.maximum(frequency * len(mine), 1))

    @classmethod
    def alike(
        cls, classes: NDArray[np.int64], counts: NDArray[np.int64], uniform: float
    ) -> _Shares:
        """Each row of some classes alike."""
        return cls(uniform, classes, np.full(len(classes), 1 / max(int(counts.sum()), 1)))

    def of(self, decided: NDArray[np.int64]) -> NDArray[np.float64]:
        """Weights of rows by their classes, those of others 0."""
        if not len(self.classes):
            return np.full(len(decided), self.uniform)
        places = np.minimum(np.searchsorted(self.classes, decided), len(self.classes) - 1)
        known = self.classes[places] == decided
        return np.asarray(np.where(known, self.weights[places], 0.0))


def decided_rows(
    measure: OutputMeasure, measures: Mapping[str, OutputMeasure], outputs: Outputs
) -> NDArray[np.int64] | None:
    """The class that a model decides for each row of an output.

    Args:
        measure: of the output.
        measures: of all outputs.
        outputs: of the model, by name.

    Returns:
        int64 [rows]; None for quantities that are tied to no decisions.
    """
    source = measures[measure.rows_of] if measure.rows_of else measure
    array = outputs[source.name]
    if measure.boxes is None or source.kind is OutputKind.SCORES:
        return source.decisions(array)
    found = (array >= _HALF).any(axis=-1)
    return np.asarray(np.where(found, array.argmax(axis=-1), _NOTHING).reshape(-1), np.int64)


def are_objects(
    decisions: OutputMeasure, classes: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which classes of boxes are those of objects: not the class that most have, if there is one.

    Args:
        decisions: how the output is compared that decides over the boxes.
        classes: that it decides, from `decided_rows`.
        counts: how often.
    """
    if decisions.kind is OutputKind.SCORES:
        return np.asarray(counts <= _HALF * counts.sum())
    return np.asarray(classes != _NOTHING)


def row_weights(
    measures: Mapping[str, OutputMeasure],
    outputs: Sequence[Outputs],
    answers: Sequence[Outputs] | None = None,
) -> dict[str, list[NDArray[np.float64]]]:
    """Weights of all rows of every output, batch by batch; see `RowWeights`."""
    weights = RowWeights(measures, outputs, answers)
    given = outputs if answers is None else answers
    return {
        name: [weights.of(name, *batch) for batch in zip(outputs, given, strict=True)]
        for name in measures
    }
