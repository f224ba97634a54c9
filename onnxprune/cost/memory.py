"""Bytes: of tensors, of a serialised graph, and of activations alive at the same time.

Nodes run one after the other in graph order. An activation is alive from the node that makes it to
the last node that reads it; inputs of the model all the time, outputs to the end. While a node runs
its inputs and outputs are both alive: nothing is computed in place, and no tensor is a view of
another. A body runs once between the inputs and outputs of its node, with tensors of its own.
Tensors that follow from constants alone are computed when a model is loaded and belong to no run.

This is what the graph needs, whatever an allocator makes of it: onnxruntime reuses buffers and
computes some ops in place, and its kernels take room to work in.

The peak is a maximum, and no sum over groups of units. Near a given cut it is made one::

    peak ~ sum over tensors of  bytes * (sum over the moments it is alive of w)
    w ~ (bytes alive at a moment / peak) ** 16,  normalised
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.model.bodies import captured, subgraphs
from onnxprune.model.node_view import ShapeOf
from onnxprune.model.observe import Observation, constants_of
from onnxprune.model.tensors import extents, swapped


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
    for scope in (graph, *graph.subgraphs()):
        yield from constants_of(scope).values()


def stored_parameters(graph: ir.Graph) -> int:
    """Parameters that a graph holds, those in the bodies of nodes too; see `is_parameter`."""
    return sum(prod(extents(t)) for t in all_constants(graph) if is_parameter(t))


def rest_bytes(graph: ir.Graph) -> int:
    """Bytes of a serialised graph without the data of its constants: what a cut leaves as it is.

    Names and types of the constants belong to it, and all of their strings. (Surgery forgets the
    shapes declared inside the graph and adds a constant here and there, which is about as much.)
    """
    empty: dict[ir.Value, ir.TensorProtocol] = {}
    inside = 0
    for scope in (graph, *graph.subgraphs()):
        for name, tensor in constants_of(scope).items():
            value = scope.initializers.get(name)
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


BytesOf = Callable[[str], int]
"""Bytes of a tensor by name, 0 where nothing is known of it."""

_SHARPNESS = 16  # exponent: moments 10 % below the peak count 0.19
_NEGLIGIBLE = 1e-4  # share of a byte in the peak


@dataclass(frozen=True)
class Lifetimes:
    """When each activation of a graph is alive.

    Attributes:
        names: the activations.
        first: moment at which each is made, int [activations].
        last: moment at which each is read for the last time, int [activations].
        moments: number of moments: nodes, those of bodies included.
    """

    names: tuple[str, ...]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    moments: int

    @classmethod
    def of(cls, graph: ir.Graph) -> Lifetimes:
        """Lifetimes of the activations of a graph and the bodies of its nodes."""
        walk = _Walk()
        inputs = [v.name for v in graph.inputs if v.name and v.name not in graph.initializers]
        for name in inputs:
            walk.make(name)
        walk.along(graph)
        end = max(walk.moment - 1, 0)
        for name in (*inputs, *(value.name or "" for value in graph.outputs)):
            walk.read(name, end)
        names = tuple(walk.first)
        return cls(
            names,
            np.array([walk.first[name] for name in names], np.int64),
            np.array([walk.last[name] for name in names], np.int64),
            end + 1,
        )

    def alive(self, bytes_of: BytesOf) -> NDArray[np.int64]:
        """Bytes that are alive at each moment, int [moments]."""
        sizes = np.array([bytes_of(name) for name in self.names], np.int64)
        change = np.zeros(self.moments + 1, np.int64)
        np.add.at(change, self.first, sizes)
        np.subtract.at(change, self.last + 1, sizes)
        return np.cumsum(change)[:-1]

    def peak(self, bytes_of: BytesOf) -> int:
        """Most bytes that are alive at one moment."""
        return int(self.alive(bytes_of).max(initial=0))

    def shares(self, bytes_of: BytesOf) -> dict[str, float]:
        """By how much the peak falls with each byte of an activation, near the sizes given.

        Activations that are never alive anywhere near the peak are left out.
        """
        alive = self.alive(bytes_of).astype(np.float64)
        weights = (alive / max(alive.max(initial=0), 1.0)) ** _SHARPNESS
        total = np.concatenate([[0.0], np.cumsum(weights / max(weights.sum(), 1e-30))])
        parts = total[self.last + 1] - total[self.first]
        pairs = zip(self.names, parts.tolist(), strict=True)
        return {name: part for name, part in pairs if part > _NEGLIGIBLE}


class _Walk:
    """Along the nodes in the order they run, one moment each."""

    def __init__(self) -> None:
        self.moment = 0
        self.first: dict[str, int] = {}
        self.last: dict[str, int] = {}
        self._fixed: set[str] = set()

    def make(self, name: str) -> None:
        """A tensor comes into being now, if it has a name."""
        if name:
            self.first.setdefault(name, self.moment)
            self.last.setdefault(name, self.moment)

    def read(self, name: str, moment: int) -> None:
        """A tensor is needed at some moment."""
        if name in self.last:
            self.last[name] = max(self.last[name], moment)

    def along(self, graph: ir.Graph) -> None:
        """Run the nodes of a graph."""
        self._fixed |= constants_of(graph).keys()
        for node in graph:
            inputs = [value.name for value in node.inputs if value is not None and value.name]
            inputs += captured(node)
            outputs = [value.name for value in node.outputs if value.name]
            if inputs and self._fixed.issuperset(inputs):
                self._fixed.update(outputs)
            if self._fixed.issuperset(outputs):
                continue
            # `captured` names what lies inside the bodies as well, which goes before their node
            around = [name for name in inputs if name in self.last]
            for name in outputs:
                self.make(name)
            bodies = subgraphs(node)
            for body in bodies:
                self._run(body)
            self.moment += 0 if bodies else 1
            for name in (*around, *outputs):
                self.read(name, self.moment - 1)

    def _run(self, body: ir.Graph) -> None:
        """Run a body once; it takes a moment even when it has no nodes."""
        start = self.moment
        for value in body.inputs:
            self.make(value.name or "")
        self.along(body)
        self.moment = max(self.moment, start + 1)
        for value in body.outputs:
            self.read(value.name or "", self.moment - 1)
