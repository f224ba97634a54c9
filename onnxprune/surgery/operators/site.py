"""A node that has to follow a cut: what it says now, what it has to say, and how to write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.coupling.cut import Cut, CutError
from onnxprune.model.node_view import NodeView
from onnxprune.surgery.editor import Editor
from onnxprune.surgery.integer_values import IntegerValues


@dataclass(frozen=True)
class Site(NodeView):
    """A node to be patched; `shape` and `constant` are those of the original model.

    Attributes:
        editor: the graph it is in.
        opset: version of the default domain.
        cut: what is removed.
        integers: values of integer tensors in the cut model.
    """

    editor: Editor
    opset: int
    cut: Cut
    integers: IntegerValues

    @classmethod
    def of(
        cls, node: ir.Node, editor: Editor, opset: int, cut: Cut, integers: IntegerValues
    ) -> Site:
        """A node seen with the shapes and values that the trace has found."""
        shapes, value = cut.coupling.facts.first.shapes, cut.coupling.value
        return cls(node, editor, opset, cut, integers, shape_of=shapes.__getitem__, value_of=value)

    def new_shape(self, slot: int = 0) -> tuple[int, ...]:
        """Shape of an input in the cut model."""
        return self.cut.shape(self.name(slot))

    def is_constant(self, slot: int) -> bool:
        """Whether an input is a constant of the original graph."""
        return self.name(slot) in self.cut.coupling.facts.constants

    def unknown(self, name: str) -> CutError:
        """The error of a tensor that decides about a shape and is only known at run time."""
        return CutError(self.output_name(), f"{name} is only known at run time")

    def old_vector(self, slot: int, attribute: str) -> NDArray[np.int64]:
        """Integers of an input in the original model, or of the attribute older opsets use."""
        value = self.constant(slot) if self.name(slot) else self.attribute(attribute)
        if value is None:
            raise self.unknown(self.name(slot))
        return np.atleast_1d(np.asarray(value, np.int64))

    def vector(self, slot: int, attribute: str) -> NDArray[np.int64] | None:
        """Integers of an input in the cut model, or of the attribute older opsets use."""
        name = self.name(slot)
        value = self.integers.get(name) if name else self.attribute(attribute)
        if value is None and name:
            raise self.unknown(name)
        return None if value is None else np.atleast_1d(np.asarray(value, np.int64))

    def put(self, slot: int, attribute: str, wanted: NDArray[np.int64]) -> None:
        """Write integers to where they come from: attribute, literal, or computed input."""
        if not self.name(slot):
            self.put_attribute(attribute, wanted.tolist())
        elif self.is_constant(slot):
            self.editor.set_literal(self.node, slot, wanted)
        else:
            self.overrule(slot, wanted, wanted)

    def put_attribute(
        self, name: str, wanted: int | list[int], default: int | list[int] | None = None
    ) -> None:
        """Write an integer attribute, or a list of them, where it says something else.

        Args:
            name: name of the attribute.
            wanted: what it has to say.
            default: what the node does without the attribute.
        """
        present = self.attribute(name, default)
        if isinstance(wanted, int):
            if wanted != present:
                self.node.attributes[name] = ir.AttrInt64(name, wanted)
        elif present is None or list(present) != wanted:
            self.node.attributes[name] = ir.AttrInt64s(name, wanted)

    def overrule(self, slot: int, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        """Correct the wrong entries of a computed input that do not depend on the input's size."""
        name = self.name(slot)
        computed = [self.integers.get(name, second=which) for which in (False, True)]
        if computed[0] is None or computed[1] is None:
            raise self.unknown(name)
        wrong = (computed[0] != first) | (computed[1] != second)
        if (first != second)[wrong].any():
            text = f"{name} depends on the batch size and on what is removed"
            raise CutError(self.output_name(), text)
        dtype = computed[0].dtype
        self.editor.replace_computed(self.node, slot, first.astype(dtype), np.asarray(wrong))


SizeRule: TypeAlias = Callable[[Site], None]
"""Makes what a node says about sizes follow the cut; raises CutError where it cannot."""

SizeTable: TypeAlias = dict[tuple[str, str], SizeRule]
"""(domain, op type) -> rule; the default domain is the empty string."""
