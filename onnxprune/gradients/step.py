"""What a gradient rule sees of the node it goes back through."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.gradients.emitter import Emitter
from onnxprune.model.node_view import NodeView


class NoGradient(Exception):
    """A rule cannot go back through a node; the message says why.

    Args:
        message: why.
        slots: input slots that are to blame; empty where it is the node as a whole.

    Attributes:
        slots: as given.
    """

    def __init__(self, message: str, slots: Collection[int] = ()) -> None:
        super().__init__(message)
        self.slots = frozenset(slots)


@dataclass(frozen=True)
class GradientStep(NodeView):
    """One node on the way back from the loss.

    Attributes:
        emit: appends nodes.
        gradients: of the loss with respect to each output; None where it does not depend on it.
        wanted: input slots whose gradient is asked for; a rule may give others as well.
    """

    emit: Emitter
    gradients: Sequence[ir.Value | None]
    wanted: frozenset[int]

    @property
    def gradient(self) -> ir.Value:
        """Gradient of the loss with respect to the first output.

        Raises:
            NoGradient: when the loss depends on another output only.
        """
        if self.gradients[0] is None:
            raise NoGradient("its first output does not reach the loss, but another one does")
        return self.gradients[0]

    @property
    def output(self) -> ir.Value:
        """The first output."""
        return self.node.outputs[0]

    def input(self, slot: int = 0) -> ir.Value:
        """The tensor at an input slot that has one."""
        value = self.node.inputs[slot]
        assert value is not None
        return value

    def rank(self, slot: int = 0) -> int:
        """Number of axes of an input."""
        return self.emit.rank(self.input(slot))

    def constant(self, slot: int) -> NDArray[Any]:
        """Value of an input that has to be a constant, or integers that were never anything else.

        Raises:
            NoGradient: when it is none.
        """
        tensor = ir.convenience.get_const_tensor(self.input(slot))
        if tensor is not None:
            return np.asarray(tensor.numpy())
        seen = self.emit.integers_seen(self.input(slot))
        if seen is None:
            raise NoGradient(f"its input {slot} is computed, expected a constant")
        return seen

    def axes(self, slot: int = 1) -> tuple[int, ...]:
        """Axes of an attribute or input, counted from the front; all where there are none."""
        rank = self.rank()
        axes = self.attribute("axes")
        if axes is None and self.has(slot):
            axes = self.constant(slot).tolist()
        if not axes:
            nothing = bool(self.attribute("noop_with_empty_axes", 0))
            return () if nothing else tuple(range(rank))
        return tuple(sorted(int(axis) % rank for axis in axes))


Rule: TypeAlias = Callable[[GradientStep], Mapping[int, ir.Value]]
"""Emits the gradients with respect to inputs, by slot; a slot left out has none."""
