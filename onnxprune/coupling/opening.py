"""What of a model's interface may be cut, when that is asked for: output axes and lookup tables.

Usually every output is frozen, what reads an axis as a whole (Softmax, ArgMax, TopK) freezes it,
and so does a lookup with indices that come from outside. An `Opening` names the output axes and
the nodes for which this is not so, and the rules such nodes then have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnxprune.coupling.labels import Layer, movable
from onnxprune.coupling.step import Refusal

if TYPE_CHECKING:
    from onnxprune.coupling.step import Step

__all__ = ["Opening", "looks_up", "picks_among", "reads_all"]


@dataclass(frozen=True)
class Opening:
    """Parts of the interface that may be cut.

    Attributes:
        axes: output -> its axes that may lose entries.
        rules: node id -> rule in place of the one of its op.
        renumbered: ids of the lookups whose indices will speak of what is left of their table.
    """

    axes: Mapping[str, frozenset[int]] = field(default_factory=dict)
    rules: Mapping[str, Callable[[Step], None]] = field(default_factory=dict)
    renumbered: frozenset[str] = frozenset()


def reads_all(step: Step) -> None:
    """Softmax and its relatives, where they are to run over what is left of an axis."""
    labels = step.read()
    step.emit(step.move(labels, {axis: axis for axis in range(len(labels.shape))}))


def picks_among(step: Step) -> None:
    """ArgMax, ArgMin, TopK, where they are to choose among what is left of an axis.

    Raises:
        Refusal: when the entries of that axis differ from row to row.
    """
    labels = step.read()
    rank = len(labels.shape)
    axis = step.axis(rank, -1 if step.node.op_type == "TopK" else 0)
    layers = _across(movable(step.relations, labels), axis, step.node.op_type)
    if step.node.op_type != "TopK" and step.attribute("keepdims", 1) != 1:
        layers = [Layer(tuple(a - (a > axis) for a in one.axes), one.atoms) for one in layers]
    for slot in step.outputs():
        step.emit(layers, slot)


def looks_up(step: Step) -> None:
    """Gather on the first axis of a table, where the indices will be renumbered.

    Raises:
        Refusal: when the rows of the table differ in what they can lose.
    """
    table = step.read_weight(0)
    shift = len(step.shape(1)) - 1
    layers = _across(movable(step.relations, table), 0, "Gather")
    moved = [Layer(tuple(a + shift for a in one.axes), one.atoms, one.flexible) for one in layers]
    step.emit(moved, zero=table.zero)


def _across(layers: tuple[Layer, ...], axis: int, op_type: str) -> list[Layer]:
    """Layers that lie on other axes than one."""
    if any(axis in layer.axes and len(layer.axes) > 1 for layer in layers):
        raise Refusal(f"{op_type} runs along an axis whose entries differ from row to row")
    return [layer for layer in layers if axis not in layer.axes]
