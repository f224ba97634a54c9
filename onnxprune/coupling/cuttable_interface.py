"""What of a model's interface may be cut, when that is asked for: output axes and lookup tables.

Usually every output is frozen, what reads an axis as a whole (Softmax, ArgMax, ReduceMax) freezes
it, and so does a lookup with indices that come from outside. A `CuttableInterface` names the output
axes and the nodes for which this is not so, and the rules such nodes then have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from onnxprune.coupling.labels import AxisLabel, TensorLabels, project, rename
from onnxprune.coupling.step import Refusal, Rule, Step


@dataclass(frozen=True)
class CuttableInterface:
    """Parts of the interface that may be cut.

    Attributes:
        axes: output -> its axes that may lose entries.
        rules: node id -> rule in place of the one of its op.
        renumbered: ids of the lookups whose indices will speak of what is left of their table.
    """

    axes: Mapping[str, frozenset[int]] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=dict)
    renumbered: frozenset[str] = frozenset()


def reads_all(step: Step) -> None:
    """Softmax and its relatives, where they are to run over what is left of an axis."""
    labels = step.read()
    step.emit(step.move(labels, {axis: axis for axis in range(len(labels.shape))}))


def picks_among(step: Step) -> None:
    """ArgMax, ArgMin, TopK, where they are to choose among what is left of an axis."""
    axis = step.axis(-1 if step.node.op_type == "TopK" else 0)
    keeps = step.node.op_type == "TopK" or step.attribute("keepdims", 1) == 1
    _emit_without(step, {axis}, keeps=keeps)


def reduces_among(step: Step) -> None:
    """ReduceMax and its like, where they are to run over what is left of an axis.

    Raises:
        Refusal: when the axes are only known at run time.
    """
    rank = len(step.shape())
    axes = step.integers(1, "axes")
    if not axes:
        axes = [] if step.attribute("noop_with_empty_axes", 0) else list(range(rank))
    _emit_without(step, {axis % rank for axis in axes}, keeps=step.attribute("keepdims", 1) == 1)


def suppresses_among(step: Step) -> None:
    """NonMaxSuppression, where scores [samples, classes, boxes] may lose classes."""
    scores = step.read(1)
    step.fix(scores, [0, 2], "NonMaxSuppression names positions along it")
    for slot in step.outputs():
        step.emit([], slot)


def _emit_without(step: Step, removed: set[int], *, keeps: bool) -> None:
    """Emit the labels of all axes but the removed ones, which keep one entry or vanish."""
    labels = step.read()
    left = [axis for axis in range(len(labels.shape)) if axis not in removed]
    place = {axis: axis if keeps else number for number, axis in enumerate(left)}
    axis_labels = [
        label for label in labels.materialise(step.relations) if set(label.axes) & set(left)
    ]
    axis_labels = [project(step.relations, label, left) for label in axis_labels]
    for slot in step.outputs():
        step.emit(rename(axis_labels, place), slot)


def _gather(table: int) -> Rule:
    """Gather on the first axis of a table, where the indices will be renumbered."""

    def rule(step: Step) -> None:
        labels = step.read_weight(table)
        shift = len(step.shape(1)) - 1
        axes = {axis: axis + shift for axis in range(1, len(labels.shape))}
        step.emit(rename(_columns(step, labels), axes), zero=labels.zero)

    return rule


def _embed(table: int) -> Rule:
    """EmbedLayerNormalization and its relatives: statistics run over what is looked up."""

    def rule(step: Step) -> None:
        labels = step.read_weight(table)
        _columns(step, labels)
        step.fix(labels, [1], "LayerNormalization takes statistics over it")
        for slot in step.outputs():
            step.emit([], slot)

    return rule


LOOKUP_RULES: Mapping[str, Callable[[int], Rule]] = {
    "Gather": _gather,
    "EmbedLayerNormalization": _embed,
    "QEmbedLayerNormalization": _embed,
}
"""Op type of a lookup -> rule, given the input slot of the table whose rows may go."""


def _columns(step: Step, table: TensorLabels) -> list[AxisLabel]:
    """Labels of a table's other axes than its first.

    Raises:
        Refusal: when the rows of the table differ in what they can lose.
    """
    axis_labels = table.materialise(step.relations)
    if any(0 in label.axes and len(label.axes) > 1 for label in axis_labels):
        raise Refusal(
            f"{step.node.op_type} runs along an axis whose entries differ from row to row"
        )
    return [label for label in axis_labels if 0 not in label.axes]
