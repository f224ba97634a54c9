"""Multiply-accumulate operations and parameters of a graph, from shapes alone.

    Conv            outputs * (input channels / groups) * kernel size
    ConvTranspose   inputs * (output channels / groups) * kernel size
    Gemm, MatMul    outputs * summed extent
    Einsum          product of all letters

Everything else counts as zero, as the field's counters do.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


__all__ = ["NodeCost", "count_parameters", "is_parameter", "node_costs", "node_macs"]

if TYPE_CHECKING:
    ShapeOf = Callable[[str], tuple[int, ...]]


def is_parameter(tensor: ir.TensorProtocol) -> bool:
    """Whether a constant counts as parameters: floats, and the integers of quantised weights."""
    return bool(
        tensor.dtype.is_floating_point() or tensor.dtype.bitwidth <= 8
    ) and tensor.dtype not in (ir.DataType.BOOL, ir.DataType.STRING)


@dataclass(frozen=True)
class NodeCost:
    """What one node costs.

    Attributes:
        node: display name.
        op_type: its op type.
        macs: multiply-accumulates for one run at the traced size.
        parameters: elements of the floating-point constants it reads.
    """

    node: str
    op_type: str
    macs: int
    parameters: int


def node_macs(node: ir.Node, shape_of: ShapeOf) -> int:
    """Multiply-accumulates of a node at the shapes given.

    Args:
        node: any node.
        shape_of: concrete shape of a tensor by name; raises KeyError when unknown.
    """
    count = _COUNTERS.get(node.op_type) if node.domain == "" else None
    if count is None:
        return 0
    try:
        inputs = [shape_of(value.name or "") if value is not None else () for value in node.inputs]
        return count(node, inputs, shape_of(node.outputs[0].name or ""))
    except KeyError:
        return 0


def node_costs(graph: ir.Graph, shape_of: ShapeOf, constants: Iterable[str]) -> list[NodeCost]:
    """Cost of every node that multiplies or reads parameters, in graph order.

    Args:
        graph: the main graph.
        shape_of: concrete shape of a tensor by name.
        constants: names of the floating-point constants; each counts where it is first read.
    """
    left = set(constants)
    costs = []
    for node in graph:
        read = {value.name for value in node.inputs if value is not None} & left
        left -= read
        parameters = sum(prod(shape_of(name)) for name in read if name)
        macs = node_macs(node, shape_of)
        if macs or parameters:
            costs.append(
                NodeCost(node.name or node.outputs[0].name or "", node.op_type, macs, parameters)
            )
    return costs


def count_parameters(shape_of: ShapeOf, constants: Iterable[str]) -> int:
    """Elements of all floating-point constants."""
    return sum(prod(shape_of(name)) for name in constants)


def _conv(node: ir.Node, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    return prod(output) * prod(inputs[1][1:])


def _conv_transpose(node: ir.Node, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    return prod(inputs[0]) * prod(inputs[1][1:])


def _gemm(node: ir.Node, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    transposed = node.attributes.get("transA")
    return prod(output) * inputs[0][0 if transposed and transposed.as_int() else 1]


def _matmul(node: ir.Node, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    return prod(output) * inputs[0][-1]


def _einsum(node: ir.Node, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    terms = node.attributes["equation"].as_string().replace(" ", "").split("->")[0].split(",")
    if len(terms) < 2 or any(len(t) != len(s) for t, s in zip(terms, inputs, strict=True)):
        return 0
    extents: dict[str, int] = {}
    for term, shape in zip(terms, inputs, strict=True):
        for letter, extent in zip(term, shape, strict=True):
            extents[letter] = max(extent, extents.get(letter, 1))
    return prod(extents.values())


_COUNTERS = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Einsum": _einsum,
}
