"""What can be counted of a model, by name, and what an allocator asks of a cost model.

    params        elements of floating-point constants and of quantised weights
    macs          multiply-accumulates for one run at the traced size
    weights       bytes of all constants
    size          bytes of the serialised model
    activations   peak bytes of activations, see `cost.memory`
    memory        weights + activations

A cost model may count other kinds as well; whoever allocates knows them by name alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxprune.coupling.groups import Group

Classes: TypeAlias = "Sequence[int] | NDArray[np.int32]"
"""Classes that are removed; large arrays are looked up much faster than lists."""


class CostModel(Protocol):
    """Says what a cut leaves of every kind of cost."""

    @property
    def whole(self) -> Mapping[str, float]:
        """What fractions refer to: the cost of the uncut model, or of one it was made from."""

    def after(self, dead: Classes) -> Mapping[str, float]:
        """Return the cost of the model without the classes `dead`, by kind."""

    def touched(self, group: Group, dead: Classes) -> Mapping[str, float]:
        """Return the part of the cost that depends on a group, with classes of any groups dead."""

    def saved_by(self, group: Group, dead: Classes) -> Mapping[str, float]:
        """Return what removing classes of one group saves in that part."""

    def near(self, dead: Classes) -> CostModel:
        """Return the model whose parts add up best near a cut, for kinds that are no sums."""


class Costs(Mapping[str, float]):
    """Costs by kind, each worked out when it is asked for.

    Args:
        counters: kind -> what counts it.
    """

    def __init__(self, counters: Mapping[str, Callable[[], float]]) -> None:
        self._counters = counters

    def __getitem__(self, kind: str) -> float:
        return self._counters[kind]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._counters)

    def __len__(self) -> int:
        return len(self._counters)
