"""Normalised axes that may be cut without being asked for: those of hidden layers.

Statistics over an axis can go on counting removed entries as zeros, which is exact where they are
zero (`surgery/operators/normalisation.py`). That is sound for any axis, but not equally cheap: the
width of a residual stream is read, normalised and added to by every layer, so that each unit of it
is dear, while a hidden axis is made in one place and read in another. So hidden axes are cut by
default and streams only when asked for (docs/benchmarks.md has the figures).

An axis belongs to a *stream* when something that depends on it enters it again: a layer further on
whose output has the units that its input was computed from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.coupling.groups import find_groups
from onnxprune.coupling.step import Statistic
from onnxprune.coupling.trace import Coupling, trace
from onnxprune.model.bodies import captured, subgraphs
from onnxprune.model.observe import Facts

_FIRST_OPSET = 13
"""Operator set from which on the nodes exist that keep statistics as they were."""

_NOTHING: frozenset[int] = frozenset()


def trace_hidden(
    model: ir.Model, facts: Facts, given: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
) -> Coupling:
    """Label every tensor, normalised axes of hidden layers like any other.

    Args:
        model: unchanged.
        facts: as for `trace`.
        given: as for `trace`.
    """
    if model.opset_imports.get("", 1) < _FIRST_OPSET:
        return trace(model, facts, given=given)
    everything = trace(model, facts, normalised=True, given=given)
    if not everything.statistics:
        return everything
    allowed = frozenset(statistic.place for statistic in _hidden(model, everything))
    if len(allowed) == len({statistic.place for statistic in everything.statistics}):
        return everything
    return trace(model, facts, normalised=allowed, given=given)


def _hidden(model: ir.Model, coupling: Coupling) -> list[Statistic]:
    """Statistics of which every axis is hidden, and exact when cut."""
    group_of = np.full(coupling.relations.count, -1, np.int64)
    for number, group in enumerate(find_groups(coupling)):
        group_of[group.all_units] = number
    groups = {
        statistic: _groups_at(coupling, group_of, statistic.tensor, (statistic.axis,))
        for statistic in coupling.statistics
    }
    whole = {number for s, numbers in groups.items() if not s.exact for number in numbers}
    whole |= _streams(model, coupling, group_of, _NOTHING.union(*groups.values()))
    return [statistic for statistic, numbers in groups.items() if not numbers & whole]


def _groups_at(
    coupling: Coupling,
    group_of: NDArray[np.int64],
    tensor: str,
    axes: tuple[int, ...] | None = None,
) -> frozenset[int]:
    """Groups that label a tensor, or some axes of it alone."""
    labels = coupling.tensors.get(tensor)
    found = [
        np.unique(group_of[coupling.unit_of[label.atoms]])
        for label in (labels.axis_labels if labels is not None else ())
        if axes is None or label.axes == axes
    ]
    return frozenset(int(number) for numbers in found for number in numbers if number >= 0)


def _streams(
    model: ir.Model, coupling: Coupling, group_of: NDArray[np.int64], groups: Set[int]
) -> set[int]:
    """Of some groups, those that something enters that depends on them."""
    if not groups:
        return set()
    carried = {name: _groups_at(coupling, group_of, name) & groups for name in coupling.tensors}
    behind: dict[str, frozenset[int]] = {}
    streams: set[int] = set()
    for node in model.graph:
        if node.op_type in ("Shape", "Size") and not node.domain:
            continue  # sizes are no values
        read = [name for name in _read(node) if name not in coupling.facts.constants]
        made = [value.name for value in node.outputs if value.name]
        depends, carries = _union(behind, read), _union(carried, made)
        streams |= (carries - _union(carried, read)) & depends
        behind |= dict.fromkeys(made, depends | carries)
    return streams


def _read(node: ir.Node) -> Iterator[str]:
    """Names that a node reads, its bodies included."""
    yield from (value.name for value in node.inputs if value is not None and value.name)
    if subgraphs(node):
        yield from captured(node)


def _union(groups: Mapping[str, frozenset[int]], names: Sequence[str]) -> frozenset[int]:
    return _NOTHING.union(*(groups.get(name, _NOTHING) for name in names))
