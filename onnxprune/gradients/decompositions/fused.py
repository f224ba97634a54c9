"""A fused node as the writer of its body sees it, and what bodies are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx.parser
import onnx_ir as ir

from onnxprune.gradients.step import NoGradient
from onnxprune.model.observe import Observation

CONVOLUTION = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
"""Attributes of a convolution."""


@dataclass(frozen=True)
class Decomposition:
    """What a node is made of.

    Attributes:
        inputs: names of its inputs in the body, by slot.
        outputs: of its outputs.
        nodes: in the order in which they run.
    """

    inputs: Sequence[str]
    outputs: Sequence[str]
    nodes: Sequence[onnx.NodeProto]


@dataclass(frozen=True)
class Fused:
    """A node that may be taken apart.

    Attributes:
        node: the node.
        seen: a run of its model.
        opset: of the model.
    """

    node: ir.Node
    seen: Observation
    opset: int

    def has(self, slot: int) -> bool:
        """Whether the optional input `slot` is there."""
        return slot < len(self.node.inputs) and self.node.inputs[slot] is not None

    def gives(self, slot: int) -> bool:
        """Whether the optional output `slot` is read."""
        if slot >= len(self.node.outputs):
            return False
        value = self.node.outputs[slot]
        return bool(value.uses()) or value.is_graph_output()

    def shape(self, slot: int) -> tuple[int, ...]:
        """Shape of an input in the run."""
        value = self.node.inputs[slot]
        return self.seen.shapes[(value.name or "") if value is not None else ""]

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute, or the default."""
        found = self.node.attributes.get(name)
        return default if found is None else found.value

    def given(self, *names: str) -> str:
        """Attributes in ONNX text, those that the node has."""
        found = [(name, self.attribute(name)) for name in names if name in self.node.attributes]
        texts = (f"{name} = {_text(value)}" for name, value in found)
        return f"<{', '.join(texts)}>" if found else ""

    def require(self, holds: bool, expected: str) -> None:
        """Refuse a form of the node that its body does not cover.

        Raises:
            NoGradient: saying what was expected.
        """
        if not holds:
            raise NoGradient(f"expected {expected}")


def body(inputs: str, outputs: str, text: str) -> Decomposition:
    """A body from ONNX text; names of inputs and outputs by slot, separated by commas."""
    function = onnx.parser.parse_function(
        f'<domain: "fused", opset_import: ["": 18]> f ({inputs}) => ({outputs}) {{ {text} }}'
    )
    return Decomposition(list(function.input), list(function.output), list(function.node))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_text, value))}]"
    return repr(value)
