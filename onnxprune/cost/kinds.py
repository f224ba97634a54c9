"""What can be counted or measured of a model: the table of costs, and what allocation asks of it.

A new target is a file in cost/ that counts or times, a row of `KINDS` and its name in
`options.TARGETS`. A cost that is a sum over nodes needs no more than a function (node, shapes) ->
cost as `per_node`. Others are computed in `CutCost.after` and `CutCost.touched`. What is measured
takes the place of `LatencyTable`: `seconds(node, shapes)` for any widths, and one measurement of
the whole model that the result is checked with. See CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.cost.macs import node_macs
from onnxprune.coupling.groups import Group
from onnxprune.model.node_view import ShapeOf

Units: TypeAlias = "Sequence[int] | NDArray[np.int32]"
"""Units that are removed; large arrays are looked up much faster than lists."""

NodeCounter: TypeAlias = Callable[[ir.Node, ShapeOf], float]
"""What one node costs at the shapes given, 0 where they are unknown."""


@dataclass(frozen=True)
class CostKind:
    """One kind of cost.

    Attributes:
        name: in targets, plans and cost models.
        label: in reports.
        figure: what reports call it in the figures of a model; empty where these lack it.
        unit: "count", "bytes" or "seconds".
        target: whether a target may name it.
        measured: timed on this machine; other kinds are counted from shapes.
        traced: depends on the traced size of dynamic axes.
        per_node: counts one node, for a kind that is a sum over the nodes of the main graph.
    """

    name: str
    label: str
    figure: str
    unit: str
    target: bool = True
    measured: bool = False
    traced: bool = False
    per_node: NodeCounter | None = None


KINDS = (
    CostKind("macs", "MACs", "macs", "count", traced=True, per_node=node_macs),
    CostKind("params", "parameters", "params", "count"),
    CostKind("size", "file size", "bytes", "bytes"),
    CostKind("activations", "peak activations", "activations", "bytes", target=False, traced=True),
    CostKind("memory", "memory", "memory", "bytes", traced=True),
    CostKind("latency", "latency", "", "seconds", measured=True, traced=True),
)
"""Costs of a model, in the order of reports.

    macs          multiply-accumulates for one run at the traced size
    params        elements of floating-point constants and of quantised weights
    size          bytes of the serialised model
    activations   peak bytes of activations, see `cost.memory`
    memory        bytes of all constants ("weights" in a cost model) + activations
    latency       seconds of one run, see `cost.latency`

The target `channels` is none of them: every group keeps that fraction of its units.
"""

FIGURES: Mapping[str, str] = {kind.name: kind.figure for kind in KINDS if kind.figure}
"""Kind -> what reports call it in the figures of a model."""


class CostModel(Protocol):
    """Says what a cut leaves of every kind of cost."""

    @property
    def whole(self) -> Mapping[str, float]:
        """What fractions refer to: the cost of the uncut model, or of one it was made from."""

    def after(self, removed: Units) -> Mapping[str, float]:
        """Return the cost of the model without the units `removed`, by kind."""

    def touched(self, group: Group, removed: Units) -> Mapping[str, float]:
        """Return the part of the cost that depends on a group, with units of any groups removed."""

    def saved_by(self, group: Group, removed: Units) -> Mapping[str, float]:
        """Return what removing units of one group saves in that part."""

    def near(self, removed: Units) -> CostModel:
        """Return the model whose parts add up best near a cut, for kinds that are no sums."""


class Costs(Mapping[str, float]):
    """Costs by kind, each worked out when it is first asked for.

    Args:
        counters: kind -> what counts it.
    """

    def __init__(self, counters: Mapping[str, Callable[[], float]]) -> None:
        self._counters = {kind: cache(count) for kind, count in counters.items()}

    def __getitem__(self, kind: str) -> float:
        return self._counters[kind]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._counters)

    def __len__(self) -> int:
        return len(self._counters)
