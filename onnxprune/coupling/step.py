"""What a coupling rule sees of the node it describes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.coupling.join import Operand, broadcast_axes, join
from onnxprune.coupling.labels import (
    AxisLabel,
    AxisLabels,
    TensorLabels,
    collapse,
    rename,
    simplify,
)
from onnxprune.coupling.relations import Relations

Rule = "Callable[[Step], None]"


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
    """

    node: str
    tensor: str
    axis: int
    weight: str | None = None
    weight_axis: int = 0
    group: int = 1


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


def node_id(node: ir.Node) -> str:
    """Name a node by its first output: unique, and stable when nodes are added around it."""
    return next((value.name for value in node.outputs if value.name), node.name or "") or ""


class Walker(Protocol):
    """What a rule needs of the walk to follow the body of its node."""

    def along(self, graph: ir.Graph) -> None:
        """Apply the rule of every node of a body."""

    def rehearse(self, graph: ir.Graph) -> Mapping[str, TensorLabels]:
        """Labels of every tensor after a walk along a body that leaves no trace."""


class Step:
    """One node during the trace: labels of its inputs, integers, attributes, and the outputs.

    A rule *reads* the slots whose labels it understands; every other slot is frozen afterwards.
    Where something is removed it is *held* at zero to check the cut, unless the interface is cut.
    """

    def __init__(
        self,
        node: ir.Node,
        opset: int,
        relations: Relations,
        tensors: dict[str, TensorLabels],
        shapes: Mapping[str, tuple[int, ...]],
        values: Callable[[str], NDArray[Any] | None],
        walker: Walker,
        *,
        normalised: bool = False,
        held: bool = True,
    ) -> None:
        self.node = node
        self.opset = opset
        self.relations = relations
        self.normalised = normalised
        self.held = held
        self.consumers: list[Consumer] = []
        self.statistics: list[Statistic] = []
        self.understood: set[int] = set()
        self.zero_points: dict[str, tuple[str, int]] = {}
        self.tensors = tensors
        self.shapes = shapes
        self.values = values
        self.walker = walker

    def has(self, slot: int) -> bool:
        """Whether the optional input `slot` is there."""
        return slot < len(self.node.inputs) and self.node.inputs[slot] is not None

    def name(self, slot: int) -> str:
        """Name of the tensor at an input slot."""
        value = self.node.inputs[slot]
        return (value.name or "") if value is not None else ""

    def known(self, slot: int) -> bool:
        """Whether the tensor at an input slot was observed."""
        return self.name(slot) in self.tensors

    def read(self, slot: int = 0) -> TensorLabels:
        """Labels of an input; declares that the rule understands this slot."""
        self.understood.add(slot)
        labels = self.tensors[self.name(slot)]
        labels.integer = False
        return labels

    def read_weight(self, slot: int) -> TensorLabels:
        """Like `read`, where an integer constant is data: the weights of quantised ops."""
        self.understood.add(slot)
        labels = self.tensors[self.name(slot)]
        labels.pristine, labels.integer = labels.pristine or labels.integer, False
        return labels

    def peek(self, slot: int) -> TensorLabels:
        """Labels of an input that the rule does not take over."""
        return self.tensors[self.name(slot)]

    def shape(self, slot: int = 0) -> tuple[int, ...]:
        """Concrete shape of an input."""
        return self.tensors[self.name(slot)].shape

    def out_shape(self, slot: int = 0) -> tuple[int, ...]:
        """Concrete shape of an output.

        Raises:
            Refusal: the shape was not observed.
        """
        name = self.node.outputs[slot].name or ""
        if name not in self.shapes:
            raise Refusal(f"the shape of {name or 'an output'} is unknown")
        return self.shapes[name]

    def outputs(self) -> list[int]:
        """Slots of the outputs that are really used."""
        return [i for i, value in enumerate(self.node.outputs) if value.name]

    def value(self, slot: int) -> NDArray[Any] | None:
        """Known value of an input: a constant or an observed integer tensor; None if absent."""
        return self.values(self.name(slot)) if self.has(slot) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute, or the default."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    def integers(self, slot: int, attribute: str) -> list[int] | None:
        """Integers given as input `slot` (newer opsets) or as attribute (older ones).

        Raises:
            Refusal: the input is there but its value is not known before run time.
        """
        if self.has(slot):
            value = self.value(slot)
            if value is None:
                raise Refusal(f"{self.name(slot)} is only known at run time")
            return [int(v) for v in np.atleast_1d(value).tolist()]
        found = self.attribute(attribute)
        return None if found is None else [int(v) for v in np.atleast_1d(found).tolist()]

    def axis(self, rank: int, default: int, name: str = "axis") -> int:
        """The `axis` attribute, made non-negative."""
        return int(self.attribute(name, default)) % max(rank, 1)

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
        name = self.node.outputs[slot].name or ""
        shape = self.out_shape(slot)
        axis_labels = simplify(self.relations, axis_labels)
        extents = dict(enumerate(shape))
        if any(tuple(map(extents.get, one.axes)) != one.atoms.shape for one in axis_labels):
            raise Refusal(f"{self.node.op_type} returned another shape than its rule expects")
        labels = TensorLabels(name, shape, axis_labels, constant, False, zero)
        self.tensors[name] = labels
        return labels

    def emitted(self, slot: int = 0) -> TensorLabels:
        """Labels of an output already emitted; they may still be changed."""
        return self.tensors[self.node.outputs[slot].name or ""]

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
        if not (self.normalised and plain) or (widened and not labels.zero):
            return False
        node = node_id(self.node)
        self.statistics.append(Statistic(node, labels.name, axis, widened, labels.zero))
        return True

    def fix(self, labels: TensorLabels, axes: Iterable[int], text: str) -> AxisLabels:
        """Freeze the labels of some axes (tie joint ones along them) and return what is left."""
        for axis in axes:
            labels.axis_labels = collapse(self.relations, labels.axis_labels, axis, text)
        return labels.axis_labels

    def add_bias(self, output: TensorLabels, slot: int, axes: Sequence[int]) -> None:
        """Join an additive input with an output already emitted."""
        if not self.has(slot):
            return
        bias = self.read_weight(slot)
        operands = [Operand(output, tuple(range(len(output.shape)))), Operand(bias, tuple(axes))]
        output.axis_labels = join(self.relations, operands)
        output.zero = output.zero and Operand(bias, tuple(axes)).blanks(output.axis_labels)

    def join_inputs(self, slots: Sequence[int]) -> tuple[list[Operand], AxisLabels]:
        """Broadcast inputs against each other; returns the operands and the result's labels."""
        rank = len(self.out_shape())
        labels = [self.read(slot) for slot in slots]
        operands = [Operand(one, broadcast_axes(len(one.shape), rank)) for one in labels]
        return operands, join(self.relations, operands)

    def move(self, labels: TensorLabels, axes: Mapping[int, int]) -> AxisLabels:
        """Labels of a tensor under new axis numbers; labels on axes that vanish are left out."""
        labels.materialise(self.relations)
        kept = [label for label in labels.axis_labels if all(axis in axes for axis in label.axes)]
        return rename(kept, dict(axes))
