"""A node with the shapes and the constants around it: what a rule about an operator looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import onnx_ir as ir
from numpy.typing import NDArray

ShapeOf: TypeAlias = Callable[[str], tuple[int, ...]]
"""Concrete shape of a tensor by name; raises KeyError when it is unknown."""

ValueOf: TypeAlias = "Callable[[str], NDArray[Any] | None]"
"""Value of a tensor by name; None when it is not a constant."""


def _no_shape(name: str) -> tuple[int, ...]:
    raise KeyError(name)


def _no_value(name: str) -> None:
    """No tensor has a known value."""


@dataclass(frozen=True)
class NodeView:
    """A node as rules read it; rooms extend it by what their rules need besides.

    Attributes:
        node: the node.
        shape_of: concrete shape of a tensor by name; raises KeyError when it is unknown.
        value_of: value of a tensor by name; None when it is not a constant.
    """

    node: ir.Node
    shape_of: ShapeOf = field(default=_no_shape, kw_only=True)
    value_of: ValueOf = field(default=_no_value, kw_only=True)

    def has(self, slot: int) -> bool:
        """Whether the optional input `slot` is there."""
        return slot < len(self.node.inputs) and self.node.inputs[slot] is not None

    def has_output(self, slot: int) -> bool:
        """Whether the optional output `slot` is there."""
        return slot < len(self.node.outputs) and bool(self.node.outputs[slot].name)

    def name(self, slot: int = 0) -> str:
        """Name of the tensor at an input slot; empty when there is none."""
        value = self.node.inputs[slot] if slot < len(self.node.inputs) else None
        return (value.name or "") if value is not None else ""

    def output_name(self, slot: int = 0) -> str:
        """Name of the tensor at an output slot; empty for an optional output left out."""
        return self.node.outputs[slot].name or ""

    def shape(self, slot: int = 0) -> tuple[int, ...]:
        """Concrete shape of an input.

        Raises:
            KeyError: when it is unknown.
        """
        return self.shape_of(self.name(slot))

    def output_shape(self, slot: int = 0) -> tuple[int, ...]:
        """Concrete shape of an output.

        Raises:
            KeyError: when it is unknown.
        """
        return self.shape_of(self.output_name(slot))

    def rank(self, slot: int = 0) -> int:
        """Number of axes of an input."""
        return len(self.shape(slot))

    def constant(self, slot: int) -> NDArray[Any] | None:
        """Value of an input; None when it is not there or not a constant."""
        return self.value_of(self.name(slot)) if self.has(slot) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute of any type, or the default."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    def get_int(self, name: str, default: int) -> int:
        """Value of an integer attribute, or the default."""
        return self.node.attributes.get_int(name, default)

    def get_ints(self, name: str) -> list[int] | None:
        """Value of an attribute that lists integers; None where it is not given."""
        values = self.node.attributes.get_ints(name)
        return None if values is None else list(values)

    def get_float(self, name: str, default: float) -> float:
        """Value of a floating-point attribute, or the default."""
        return self.node.attributes.get_float(name, default)

    def get_string(self, name: str, default: str = "") -> str:
        """Value of a text attribute, or the default."""
        return self.node.attributes.get_string(name, default)

    def axis(self, default: int, *, slot: int = 0, name: str = "axis") -> int:
        """The attribute `axis` of an input slot, counted from the front; 0 for a scalar."""
        return self.get_int(name, default) % max(self.rank(slot), 1)
