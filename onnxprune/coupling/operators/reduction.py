"""Ops that reduce axes or pool over them: reduced axes collapse, the others go on.

A sum over fewer entries is exact when the removed ones are zero: ReduceSum and its relatives then
collapse nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.coupling.labels import AxisLabel, movable, project
from onnxprune.coupling.step import Consumer, Step, node_id

_EXACT = ["ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"]
_STATISTICS = [
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceLogSum",
    "ReduceLogSumExp",
]
_GLOBAL_POOLS = ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"]
_POOLS = ["AveragePool", "MaxPool", "LpPool"]


def _reduce(step: Step) -> None:
    labels = step.read()
    rank = len(labels.shape)
    axis_labels = movable(step.relations, labels)
    axes = step.integers(1, "axes")
    if not axes:
        axes = [] if step.attribute("noop_with_empty_axes", 0) else list(range(rank))
    reduced = {axis % rank for axis in axes}
    exact = step.node.op_type in _EXACT and labels.zero
    mean = step.node.op_type == "ReduceMean"
    for axis in sorted(reduced):
        if exact and any(axis in label.axes for label in axis_labels):
            step.consumers.append(Consumer(node_id(step.node), labels.name, axis))
        elif not exact and not (mean and step.cut_statistics(labels, axis, widened=False)):
            axis_labels = step.fix(labels, [axis], f"{step.node.op_type} takes statistics over it")
    kept = [axis for axis in range(rank) if axis not in reduced]
    left = [project(step.relations, one, kept) for one in axis_labels if set(one.axes) & set(kept)]
    position = {axis: i for i, axis in enumerate(kept)}
    if step.attribute("keepdims", 1) == 1:
        position = {axis: axis for axis in kept}
    result = [
        AxisLabel(tuple(position[a] for a in one.axes), one.atoms, one.flexible) for one in left
    ]
    zero = labels.zero and step.node.op_type not in ("ReduceLogSum", "ReduceLogSumExp")
    step.emit(result, zero=zero)


def _pick(step: Step) -> None:
    """ArgMax, ArgMin, TopK: positions along the axis mean something."""
    labels = step.read()
    rank = len(labels.shape)
    axis = step.axis(rank, -1 if step.node.op_type == "TopK" else 0)
    movable(step.relations, labels)
    axis_labels = step.fix(labels, [axis], f"{step.node.op_type} names positions along it")
    if step.attribute("keepdims", 1) != 1:
        axis_labels = tuple(
            AxisLabel(tuple(a - (a > axis) for a in one.axes), one.atoms) for one in axis_labels
        )
    for slot in step.outputs():
        step.emit(axis_labels, slot)


def _pool(step: Step) -> None:
    """Pools run over the spatial axes; the indices MaxPool may give count across all axes."""
    labels = step.read()
    first = 2 if step.outputs() == [0] else 0
    axis_labels = step.fix(
        labels, range(first, len(labels.shape)), f"{step.node.op_type} runs over it"
    )
    for slot in step.outputs():
        step.emit(axis_labels, slot, zero=labels.zero and slot == 0)


RULES: dict[tuple[str, str], Callable[[Step], None]] = {
    **{("", op): _reduce for op in (*_EXACT, *_STATISTICS)},
    **{("", op): _pick for op in ("ArgMax", "ArgMin", "TopK")},
    **{("", op): _pool for op in (*_GLOBAL_POOLS, *_POOLS)},
}
