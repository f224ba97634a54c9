"""Ops that take or put entries at places given along some axes; the other axes go through.

Messages between the nodes of a graph are gathered and added up along the axis of nodes; their
features pass. Places along an axis mean something, so that axis is fixed. ScatterElements and
GatherElements want an index for every entry: the axes that are cut are cut in it too, whether it is
expanded from one index per row or stored whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.coupling.labels import Operand, TensorLabels, join
from onnxprune.coupling.step import RuleTable, Step

_PLACES = "its entries are put at places given at run time"
_TAKEN = "its entries are looked up at run time"


def _scatter_elements(step: Step) -> None:
    """Updates and indices have one shape; an axis where data is longer is fixed."""
    tensors = [step.read(0), step.read_weight(1), step.read(2)]
    operands = _apart(step, tensors, step.axis(0), _PLACES)
    axis_labels = join(step.relations, operands)
    # a product with anything is zero where data is; other reductions need both to be
    parts = operands[:1] if step.attribute("reduction", "none") == "mul" else operands[::2]
    step.emit(axis_labels, zero=all(operand.blanks(axis_labels) for operand in parts))


def _gather_elements(step: Step) -> None:
    """The output has the shape of the indices."""
    tensors = [step.read(0), step.read_weight(1)]
    data, indices = _apart(step, tensors, step.axis(0), _TAKEN)
    axis_labels = join(step.relations, [data, indices])
    step.emit(axis_labels, zero=data.blanks(axis_labels))


def _apart(step: Step, tensors: Sequence[TensorLabels], axis: int, text: str) -> list[Operand]:
    """Operands that meet on every axis but one, and but those where one is longer: these are fixed.

    Args:
        step: the node.
        tensors: of one rank.
        axis: along which places are given.
        text: the reason why that axis is not cut.
    """
    rank = len(tensors[0].shape)
    shorter = [a for a in range(rank) if a != axis and len({t.shape[a] for t in tensors}) > 1]
    apart = {axis, *shorter}
    for tensor in tensors:
        step.fix(tensor, [axis], text)
        step.fix(tensor, shorter, f"{step.node.op_type} reaches a part of it")
    axes = tuple(None if a in apart else a for a in range(rank))
    return [Operand(tensor, axes) for tensor in tensors]


def _scatter_nd(step: Step) -> None:
    """The first axes of data are looked up; behind them data and updates are alike."""
    data, updates = step.read(0), step.read(2)
    *outer, depth = step.shape(1)
    rank = len(data.shape)
    step.fix(data, range(depth), _PLACES)
    step.fix(updates, range(len(outer)), _PLACES)
    operands = [
        Operand(data, tuple(None if axis < depth else axis for axis in range(rank))),
        Operand(updates, (*(None for _ in outer), *range(depth, rank))),
    ]
    axis_labels = join(step.relations, operands)
    parts = operands[:1] if step.attribute("reduction", "none") == "mul" else operands
    step.emit(axis_labels, zero=all(operand.blanks(axis_labels) for operand in parts))


RULES: RuleTable = {
    **{("", op): _scatter_elements for op in ("Scatter", "ScatterElements")},
    ("", "GatherElements"): _gather_elements,
    ("", "ScatterND"): _scatter_nd,
}
