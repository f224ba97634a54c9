"""What a coupling rule sees of the node it describes, and what it may note about it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.coupling.labels import (
    AxisLabel,
    AxisLabels,
    Operand,
    TensorLabels,
    broadcast_axes,
    collapse,
    join,
    rename,
    simplify,
)
from onnxprune.coupling.relations import Relations
from onnxprune.model.bodies import node_id
from onnxprune.model.node_view import NodeView


class Refusal(Exception):
    """A rule cannot describe a node; all its inputs are frozen for the given reason."""


@dataclass(frozen=True)
class Consumer:
    """A contraction that reads a labelled axis: where a removal is felt and repaired.

    Attributes:
        node: id of the node (name of its first output).
        tensor: the activation read.
        axis: its contracted axis.
        weight: the constant it is multiplied with, or None for another activation.
        weight_axis: the contracted axis of the weight.
        group: number of convolution groups.
        body: key of the body that the node is in; empty for the main graph.
    """

    node: str
    tensor: str
    axis: int
    weight: str | None = None
    weight_axis: int = 0
    group: int = 1
    body: str = ""


Place: TypeAlias = tuple[str, int]
"""Statistics are named by the id of their node and the axis they run over."""


@dataclass(frozen=True)
class Statistic:
    """Statistics that run over a labelled axis, which the user has allowed to be cut.

    Attributes:
        node: id of the node.
        tensor: the activation they are taken of.
        axis: the axis.
        widened: the node runs on its input padded back to full width with zeros; otherwise it is
            a mean that is rescaled to the original count.
        exact: what is removed is zero there, so the cut model has the statistics of the masked
            one; otherwise they run over what is kept.
    """

    node: str
    tensor: str
    axis: int
    widened: bool
    exact: bool

    @property
    def place(self) -> Place:
        """The node and the axis."""
        return self.node, self.axis


class Walk(Protocol):
    """The walk a step belongs to: what is known so far, and how to walk along a subgraph.

    Attributes:
        relations: what ties units together.
        tensors: labels of every tensor so far, by name.
        held: removed parts are held at zero to check the cut; not so where the interface is cut.
    """

    relations: Relations
    tensors: dict[str, TensorLabels]
    held: bool

    def along(self, graph: ir.Graph) -> None:
        """Apply the rule of every node of a graph."""

    def rehearse(self, graph: ir.Graph) -> Mapping[str, TensorLabels]:
        """Labels of every tensor after a walk along a subgraph, of which nothing is kept."""


@dataclass(frozen=True)
class Step(NodeView):
    """One node during the trace: labels of its inputs, integers, attributes, and the outputs.

    A rule *reads* the slots whose labels it understands; every other slot is frozen afterwards.

    Attributes:
        opset: version of the node's domain.
        walk: the walk this is a step of.
        normalised: statistics may run over an axis that is cut: all, or those named.
        consumers: contractions noted by the rule.
        statistics: statistics over cut axes noted by the rule.
        understood: input slots the rule has read.
        zero_points: quantised constant -> tensor with its zero point, and the axis it lies on.
    """

    opset: int
    walk: Walk
    normalised: bool | Collection[Place] = False
    consumers: list[Consumer] = field(default_factory=list)
    statistics: list[Statistic] = field(default_factory=list)
    understood: set[int] = field(default_factory=set)
    zero_points: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def relations(self) -> Relations:
        """What ties units together, so far."""
        return self.walk.relations

    @property
    def tensors(self) -> dict[str, TensorLabels]:
        """Labels of every tensor, so far."""
        return self.walk.tensors

    def known(self, slot: int) -> bool:
        """Whether the tensor at an input slot was observed."""
        return self.name(slot) in self.tensors

    def peek(self, slot: int) -> TensorLabels:
        """Labels of an input that the rule does not take over."""
        return self.tensors[self.name(slot)]

    def read(self, slot: int = 0) -> TensorLabels:
        """Labels of an input; declares that the rule understands this slot."""
        self.understood.add(slot)
        labels = self.peek(slot)
        labels.integer = False
        return labels

    def read_weight(self, slot: int) -> TensorLabels:
        """Like `read`, where an integer constant is data: weights of quantised ops, indices."""
        integer = self.peek(slot).integer
        labels = self.read(slot)
        labels.pristine = labels.pristine or integer
        return labels

    def shape(self, slot: int = 0) -> tuple[int, ...]:
        """Concrete shape of an input."""
        return self.peek(slot).shape

    def output_shape(self, slot: int = 0) -> tuple[int, ...]:
        """Concrete shape of an output.

        Raises:
            Refusal: the shape was not observed.
        """
        try:
            return super().output_shape(slot)
        except KeyError:
            raise Refusal(
                f"the shape of {self.output_name(slot) or 'an output'} is unknown"
            ) from None

    def inputs(self) -> list[int]:
        """Slots of the inputs that are given."""
        return [slot for slot in range(len(self.node.inputs)) if self.has(slot)]

    def outputs(self) -> list[int]:
        """Slots of the outputs that are really used."""
        return [slot for slot in range(len(self.node.outputs)) if self.has_output(slot)]

    def integers(self, slot: int, attribute: str) -> list[int] | None:
        """Integers given as input `slot` (newer opsets) or as attribute (older ones).

        Raises:
            Refusal: the input is there but its value is not known before run time.
        """
        value = self.constant(slot) if self.has(slot) else self.attribute(attribute)
        if value is None and self.has(slot):
            raise Refusal(f"{self.name(slot)} is only known at run time")
        return None if value is None else [int(v) for v in np.atleast_1d(value).tolist()]

    def emit(
        self,
        axis_labels: Iterable[AxisLabel],
        slot: int = 0,
        *,
        zero: bool = False,
        constant: bool = False,
    ) -> TensorLabels:
        """Set the labels of an output (brought to normal form).

        Raises:
            Refusal: the shape was not observed, or is not the one that the labels are made for.
        """
        shape = self.output_shape(slot)
        axis_labels = simplify(self.relations, axis_labels)
        extents = dict(enumerate(shape))
        if any(tuple(map(extents.get, label.axes)) != label.atoms.shape for label in axis_labels):
            raise Refusal(f"{self.node.op_type} returned another shape than its rule expects")
        name = self.output_name(slot)
        self.tensors[name] = TensorLabels(name, shape, axis_labels, constant, zero=zero)
        return self.tensors[name]

    def emitted(self, slot: int = 0) -> TensorLabels:
        """Labels of an output already emitted; they may still be changed."""
        return self.tensors[self.output_name(slot)]

    def pass_on(
        self, labels: TensorLabels, axis_labels: Iterable[AxisLabel], slot: int = 0
    ) -> None:
        """Emit the labels of an output that only moves the data of a tensor."""
        self.emit(axis_labels, slot, zero=labels.zero, constant=labels.constant)

    def note_consumer(
        self,
        labels: TensorLabels,
        axis: int,
        weight: str | None = None,
        weight_axis: int = 0,
        group: int = 1,
    ) -> None:
        """Note that the node contracts an axis of a tensor; see `Consumer`."""
        node = node_id(self.node)
        self.consumers.append(Consumer(node, labels.name, axis, weight, weight_axis, group))

    def note_zero_point(self, slot: int, zero_point: int, axis: int = 0) -> None:
        """Say what stands for zero in a quantised constant: a scalar, or a vector along `axis`."""
        if self.has(zero_point) and self.peek(slot).constant:
            self.zero_points[self.name(slot)] = (self.name(zero_point), axis)

    def cut_statistics(self, labels: TensorLabels, axis: int, *, widened: bool) -> bool:
        """Let an axis be cut although statistics run over it, where that is allowed and sound.

        Returns:
            False when the axis has to be fixed: not asked for, a joint label, or nothing there.
        """
        plain = any(label.axes == (axis,) for label in labels.axis_labels)
        node, wanted = node_id(self.node), self.normalised
        allowed = wanted if isinstance(wanted, bool) else (node, axis) in wanted
        if not (allowed and plain) or (widened and not labels.zero):
            return False
        self.statistics.append(Statistic(node, labels.name, axis, widened, labels.zero))
        return True

    def fix(self, labels: TensorLabels, axes: Iterable[int], text: str) -> AxisLabels:
        """Freeze the labels of some axes (tie joint ones along them); return the remaining ones."""
        for axis in axes:
            labels.axis_labels = collapse(self.relations, labels.axis_labels, axis, text)
        return labels.axis_labels

    def add_bias(self, output: TensorLabels, slot: int, axes: Sequence[int]) -> None:
        """Join an additive input with an output already emitted."""
        if self.has(slot):
            bias = Operand(self.read_weight(slot), tuple(axes))
            output.axis_labels = join(self.relations, [Operand.of(output), bias])
            output.zero = output.zero and bias.blanks(output.axis_labels)

    def join_inputs(self, slots: Sequence[int]) -> tuple[list[Operand], AxisLabels]:
        """Broadcast inputs against each other; returns the operands and the result's labels."""
        rank = len(self.output_shape())
        inputs = [self.read(slot) for slot in slots]
        operands = [Operand(labels, broadcast_axes(len(labels.shape), rank)) for labels in inputs]
        return operands, join(self.relations, operands)

    def move(self, labels: TensorLabels, axes: Mapping[int, int]) -> AxisLabels:
        """Labels of a tensor under new axis numbers; labels on axes that vanish are left out."""
        labels.materialise(self.relations)
        kept = [label for label in labels.axis_labels if all(axis in axes for axis in label.axes)]
        return rename(kept, dict(axes))


Rule: TypeAlias = Callable[[Step], None]
"""Relates the labels of a node's inputs and outputs; raises Refusal where it cannot."""

RuleTable: TypeAlias = dict[tuple[str, str], Rule]
"""(domain, op type) -> rule; the default domain is the empty string."""
