"""A node to be patched, with the cut and the integers it sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.coupling.cut import CutError
from onnxprune.surgery.integers import set_attribute

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from onnxprune.coupling.cut import Cut
    from onnxprune.surgery.arithmetic import IntegerValues
    from onnxprune.surgery.integers import Editor

__all__ = ["Site"]


@dataclass(frozen=True)
class Site:
    """A node to be patched, with the cut and the integers it sees."""

    editor: Editor
    node: ir.Node
    opset: int
    cut: Cut
    integers: IntegerValues

    def input(self, slot: int) -> str:
        """Name of an input, empty when there is none."""
        value = self.node.inputs[slot] if slot < len(self.node.inputs) else None
        return (value.name or "") if value is not None else ""

    def output(self, slot: int = 0) -> str:
        """Name of an output."""
        return self.node.outputs[slot].name or ""

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute, or the default."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    def constant(self, slot: int) -> bool:
        """Whether an input is a constant of the original graph."""
        return self.input(slot) in self.cut.coupling.facts.constants

    def old_shape(self, name: str) -> tuple[int, ...]:
        """Shape before the cut, at the first size."""
        return self.cut.coupling.facts.first.shapes[name]

    def vector(self, slot: int, attribute: str) -> NDArray[np.int64] | None:
        """Integers of an input in the cut model, or of the attribute older opsets use."""
        if self.input(slot):
            value = self.integers.get(self.input(slot))
            if value is None:
                raise CutError(self.output(), f"{self.input(slot)} is only known at run time")
            return np.atleast_1d(value).astype(np.int64)
        value = self.attribute(attribute)
        return None if value is None else np.atleast_1d(np.asarray(value, np.int64))

    def put(self, slot: int, attribute: str, wanted: NDArray[np.int64]) -> None:
        """Write integers to where they come from: attribute, literal, or computed input."""
        if not self.input(slot):
            set_attribute(self.node, attribute, wanted.tolist())
        elif self.constant(slot):
            self.editor.set_literal(self.node, slot, wanted)
        else:
            self.overrule(slot, wanted, wanted)

    def overrule(self, slot: int, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        """Correct the wrong entries of a computed input that do not depend on the input's size."""
        name = self.input(slot)
        computed = [self.integers.get(name, second=which) for which in (False, True)]
        if computed[0] is None or computed[1] is None:
            raise CutError(self.output(), f"{name} is only known at run time")
        wrong = (computed[0] != first) | (computed[1] != second)
        if (first != second)[wrong].any():
            raise CutError(self.output(), f"{name} depends on the batch and on what is removed")
        dtype = computed[0].dtype
        self.editor.replace_computed(self.node, slot, first.astype(dtype), np.asarray(wrong))
