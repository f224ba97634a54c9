"""What a gradient rule sees of the node it goes back through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.gradients.emitter import Emitter


class NoGradient(Exception):
    """A rule cannot go back through a node; the message says why."""


@dataclass(frozen=True)
class GradientStep:
    """One node on the way back from the loss.

    Attributes:
        node: the node.
        emit: appends nodes.
        gradients: of the loss with respect to each output; None where it does not depend on it.
        wanted: input slots whose gradient is asked for; a rule may give others as well.
    """

    node: ir.Node
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

    def has(self, slot: int) -> bool:
        """Whether the optional input `slot` is there."""
        return slot < len(self.node.inputs) and self.node.inputs[slot] is not None

    def input(self, slot: int = 0) -> ir.Value:
        """The tensor at an input slot that has one."""
        value = self.node.inputs[slot]
        assert value is not None
        return value

    def rank(self, slot: int = 0) -> int:
        """Number of axes of an input."""
        return self.emit.rank(self.input(slot))

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute, or the default."""
        found = self.node.attributes.get(name)
        return default if found is None else found.value

    def axis(self, default: int, slot: int = 0) -> int:
        """The attribute `axis`, counted from the front."""
        return int(self.attribute("axis", default)) % self.rank(slot)

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
        """Axes given as attribute or input, counted from the front; all where none are given."""
        rank = self.rank()
        given = self.attribute("axes")
        if given is None and self.has(slot):
            given = self.constant(slot).tolist()
        if not given:
            nothing = bool(self.attribute("noop_with_empty_axes", 0))
            return () if nothing else tuple(range(rank))
        return tuple(sorted(int(axis) % rank for axis in given))


Rule: TypeAlias = Callable[[GradientStep], Mapping[int, ir.Value]]
"""Emits the gradients with respect to inputs, by slot; a slot left out has none."""
