"""Bytes: what a tensor takes, and what of a serialised graph is no constant."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import onnx_ir as ir

from onnxprune.coupling.subgraph_shapes import captured
from onnxprune.model.node_view import ShapeOf
from onnxprune.model.observe import Observation, constants_of
from onnxprune.model.tensors import swapped


def tensor_bytes(shape: tuple[int, ...], kind: ir.DataType) -> int:
    """Bytes of a tensor, entries below a byte packed; 0 for strings, whose length is their own."""
    if kind in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return 0
    return -(-prod(shape) * kind.bitwidth // 8)


def observed_bytes(observed: Observation, name: str, shape_of: ShapeOf | None = None) -> int:
    """Bytes of a tensor at its observed shape, or another.

    Returns:
        0 for what has no shape: sequences, tensors in closed bodies.
    """
    if name not in observed.shapes:
        return 0
    shape = observed.shapes[name] if shape_of is None else shape_of(name)
    return tensor_bytes(shape, observed.types.get(name, ir.DataType.FLOAT))


def is_parameter(tensor: ir.TensorProtocol) -> bool:
    """Whether a constant counts as parameters: floats, and the integers of quantised weights."""
    return bool(
        tensor.dtype.is_floating_point() or tensor.dtype.bitwidth <= 8
    ) and tensor.dtype not in (ir.DataType.BOOL, ir.DataType.STRING)


def all_constants(graph: ir.Graph) -> Iterator[ir.TensorProtocol]:
    """Yield the values of initializers and Constant nodes, those in the bodies of nodes too."""
    for one in (graph, *graph.subgraphs()):
        yield from constants_of(one).values()


def stored_parameters(graph: ir.Graph) -> int:
    """Parameters that a graph holds, those in the bodies of nodes too; see `is_parameter`."""
    return sum(prod(one.shape.numpy()) for one in all_constants(graph) if is_parameter(one))


def rest_bytes(graph: ir.Graph) -> int:
    """Bytes of a serialised graph without the data of its constants: what a cut leaves as it is.

    Names and types of the constants belong to it, and all of their strings. (Surgery forgets the
    shapes declared inside the graph and adds a constant here and there, which is about as much.)
    """
    empty: dict[ir.Value, ir.TensorProtocol] = {}
    inside = 0
    for one in (graph, *graph.subgraphs()):
        for name, tensor in constants_of(one).items():
            value = one.initializers.get(name)
            if tensor.dtype == ir.DataType.STRING:
                continue
            if value is None:
                inside += tensor.nbytes
            else:
                empty[value] = ir.Tensor(np.zeros(0, np.float32), name=name)
    with swapped(empty):
        return int(ir.to_proto(graph).ByteSize()) - inside


def tensors_of(node: ir.Node) -> Iterator[str]:
    """Names of the tensors a node reads or makes, those its bodies read included."""
    yield from (value.name for value in node.inputs if value is not None and value.name)
    yield from (value.name for value in node.outputs if value.name)
    yield from captured(node)
