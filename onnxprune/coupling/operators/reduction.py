"""Ops that reduce axes or pool over them: reduced axes collapse, the others go on.

A sum over fewer entries is exact when the removed ones are zero: ReduceSum and its relatives then
collapse nothing.
"""

from __future__ import annotations

from onnxprune.coupling.labels import project, rename
from onnxprune.coupling.step import RuleTable, Step

_EXACT = ["ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"]
_STATISTICS = [f"Reduce{kind}" for kind in ("Mean", "Max", "Min", "Prod", "LogSum", "LogSumExp")]
_GLOBAL_POOLS = ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"]
_POOLS = ["AveragePool", "MaxPool", "LpPool"]


def _reduce(step: Step) -> None:
    labels = step.read()
    rank = len(labels.shape)
    axis_labels = labels.materialise(step.relations)
    axes = step.integers(1, "axes")
    if not axes:
        axes = [] if step.attribute("noop_with_empty_axes", 0) else list(range(rank))
    reduced = {axis % rank for axis in axes}
    exact = step.node.op_type in _EXACT and labels.zero
    mean = step.node.op_type == "ReduceMean"
    for axis in sorted(reduced):
        if exact and any(axis in label.axes for label in axis_labels):
            step.note_consumer(labels, axis)
        elif not exact and not (mean and step.cut_statistics(labels, axis, widened=False)):
            axis_labels = step.fix(labels, [axis], f"{step.node.op_type} takes statistics over it")
    kept = [axis for axis in range(rank) if axis not in reduced]
    rest = [label for label in axis_labels if set(label.axes) & set(kept)]
    rest = [project(step.relations, label, kept) for label in rest]
    position = {axis: i for i, axis in enumerate(kept)}
    if step.attribute("keepdims", 1) == 1:
        position = {axis: axis for axis in kept}
    zero = labels.zero and step.node.op_type not in ("ReduceLogSum", "ReduceLogSumExp")
    step.emit(rename(rest, position), zero=zero)


def _pick(step: Step) -> None:
    """ArgMax, ArgMin, TopK: positions along the axis mean something."""
    labels = step.read()
    axis = step.axis(-1 if step.node.op_type == "TopK" else 0)
    labels.materialise(step.relations)
    axis_labels = step.fix(labels, [axis], f"{step.node.op_type} names positions along it")
    if step.attribute("keepdims", 1) != 1:
        axis_labels = rename(axis_labels, {a: a - (a > axis) for a in range(len(labels.shape))})
    for slot in step.outputs():
        step.emit(axis_labels, slot)


def _pool(step: Step) -> None:
    """Pools run over the spatial axes; the indices MaxPool may give count across all axes."""
    labels = step.read()
    first = 2 if step.outputs() == [0] else 0
    over = range(first, len(labels.shape))
    axis_labels = step.fix(labels, over, f"{step.node.op_type} runs over it")
    for slot in step.outputs():
        step.emit(axis_labels, slot, zero=labels.zero and slot == 0)


RULES: RuleTable = {
    **{("", op): _reduce for op in (*_EXACT, *_STATISTICS)},
    **{("", op): _pick for op in ("ArgMax", "ArgMin", "TopK")},
    **{("", op): _pool for op in (*_GLOBAL_POOLS, *_POOLS)},
}
