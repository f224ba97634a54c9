"""How much the answers of a model react to what its layers give, place by place."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

_LARGEST = 10.0
"""Sensitivity, over the average, from which on a row counts no more: a few would decide alone, and
all others drift (docs/benchmarks.md, What weighting buys)."""


@dataclass(frozen=True)
class OutputSensitivity:
    """Diagonal of the Gauss-Newton matrix of the divergence, at the outputs of layers.

    Attributes:
        rows: by name of a layer's output, for each calibration batch how much an error in a row
            counts: float32, shaped like the output with extent 1 along the axes of its channels;
            1 on average.
        columns: by the same name, how much an error in each position along those axes counts:
            float64, shaped like the output with extent 1 along all other axes; the increase of the
            divergence for each unit of mean squared error.
        blocked: by name, why there is nothing although the answers may react to it.
    """

    rows: Mapping[str, Sequence[NDArray[np.float32]]] = field(default_factory=dict)
    columns: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    blocked: Mapping[str, str] = field(default_factory=dict)

    def weights(self, name: str, batches: int) -> list[NDArray[np.float32]] | None:
        """How much each row of a layer counts in a regression; None where all count alike.

        Args:
            name: of the layer's output.
            batches: how many of the first batches are wanted.
        """
        rows = self.rows.get(name)
        if rows is None or len(rows) < batches:
            return None
        return [1 + np.minimum(each, _LARGEST) for each in rows[:batches]]

    def some(self, batches: Sequence[int]) -> OutputSensitivity:
        """The same for some of the batches, by number."""
        rows = {name: [parts[number] for number in batches] for name, parts in self.rows.items()}
        return replace(self, rows=rows)

    def evened(self, names: Collection[str]) -> OutputSensitivity:
        """The same with all columns of some layers alike, as after their channels were mixed."""
        columns = {
            name: np.full_like(each, each.mean()) if name in names else each
            for name, each in self.columns.items()
        }
        return replace(self, columns=columns)
