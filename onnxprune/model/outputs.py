"""What the outputs of a model hold: which node makes them, and how class scores lie in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.model.bodies import subgraphs

SOFTMAX = ("Softmax", "LogSoftmax")
LINEAR = ("Gemm", "MatMul", "Add", "Conv")
"""Nodes whose output may be class scores or quantities."""

_PASSED_ON = ("Identity", "Cast")
_MOVED = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Concat")
_PROBABILITY = ("Sigmoid", "HardSigmoid")


def output_producer(value: ir.Value) -> ir.Node | None:
    """The node that computes an output, behind Identity and Cast; None for an input.

    Where all branches of an If give what nodes of one kind compute, it is that of the first.
    """
    node = value.producer()
    while node is not None and node.inputs and node.inputs[0] is not None:
        if node.op_type == "If" and not node.domain:
            makers = [output_producer(given) for given in _given_by_branches(node, value)]
            kinds = {maker.op_type for maker in makers if maker is not None}
            return makers[0] if len(kinds) == 1 and None not in makers else node
        if node.op_type not in _PASSED_ON:
            break
        value = node.inputs[0]
        node = value.producer()
    return node


def computing_ops(value: ir.Value) -> set[str]:
    """Operators that compute an output, behind whatever moves, cuts or joins their results.

    Returns:
        operator names; "" for an input of the model.
    """
    ops, waiting, seen = set(), [value], set()
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is not None and node.op_type == "If" and not node.domain:
            waiting += _given_by_branches(node, value)
        elif node is None or node.op_type not in (*_PASSED_ON, *_MOVED):
            ops.add(node.op_type if node is not None else "")
        elif node not in seen:
            seen.add(node)
            parts = node.inputs if node.op_type == "Concat" else node.inputs[:1]
            waiting += [part for part in parts if part is not None]
    return ops


def _given_by_branches(node: ir.Node, value: ir.Value) -> list[ir.Value]:
    """What the branches of an If return as one of its outputs."""
    slot = list(node.outputs).index(value)
    return [graph.outputs[slot] for graph in subgraphs(node)]


def gives_probabilities(value: ir.Value) -> bool:
    """Whether every entry of an output is the probability of something for itself."""
    return computing_ops(value) <= set(_PROBABILITY)


def gives_scores(producer: ir.Node | None) -> bool:
    """Whether an output computed by this node may hold class scores."""
    return producer is not None and producer.op_type in (*SOFTMAX, *LINEAR)


@dataclass(frozen=True)
class ScoreLayout:
    """How class scores lie in an output.

    Attributes:
        axis: along which they lie; from there on all axes where `flattened`.
        flattened: as Softmax does before operator set 13.
    """

    axis: int = -1
    flattened: bool = False

    @classmethod
    def of(cls, producer: ir.Node | None, opset: int) -> ScoreLayout:
        """Layout of what a node gives: the last axis, unless its operator says which.

        Args:
            producer: the node; None for an input of the model.
            opset: version of the standard operators.
        """
        if producer is not None and producer.op_type in SOFTMAX:
            axis = producer.attributes.get_int("axis", -1 if opset >= 13 else 1)
            return cls(axis, opset < 13)
        return cls(1 if producer is not None and producer.op_type == "Conv" else -1)

    def rows(self, array: NDArray[Any]) -> NDArray[Any]:
        """Scores as rows, [rows, classes]."""
        if not array.ndim:
            return array.reshape(1, 1)
        axis = self.axis % array.ndim
        if self.flattened:
            return array.reshape(-1, int(np.prod(array.shape[axis:])))
        return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])

    def from_rows(self, rows: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
        """The inverse of `rows`, for an array of this shape."""
        if self.flattened:
            return rows.reshape(shape)
        axis = self.axis % len(shape)
        moved = (*shape[:axis], *shape[axis + 1 :], shape[axis])
        return np.moveaxis(rows.reshape(moved), -1, axis)
