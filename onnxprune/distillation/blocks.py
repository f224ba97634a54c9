"""Cutting a student into blocks that are trained one after the other, where the whole does not fit.

    x -> [tuned before] -> s -> [block] -> t

A block goes from one tensor to another, through which everything behind depends on trained weights
before; masks and the like, which depend on none, are computed in every block that reads them. It is
trained on what the blocks before it give, tuned as they are, to give what the teacher has at its
end. Training takes the activations of the smallest run, and of every weight its value, gradient and
both moments of Adam. Source: Li et al. 2021 (BRECQ).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.distillation.losses import Feature
from onnxprune.distillation.parameters import with_values
from onnxprune.distillation.student import Values
from onnxprune.gradients.differentiated import single
from onnxprune.model.execution import Execution, KnownValues, node_reads, piece_of
from onnxprune.model.observe import Facts
from onnxprune.model.runtime import Runtime

_WEIGHT_BYTES = 16
"""Of a weight that is trained: value, gradient and two moments."""
_ACTIVATION_BYTES = 4

Feed: TypeAlias = Mapping[str, NDArray[Any]]
Nodes: TypeAlias = Set[ir.Node]


@dataclass(frozen=True)
class Block:
    """A part of a student.

    Attributes:
        model: gives `end`; reads `start` and what it needs of the student's inputs.
        start: tensor that it begins with; empty for the inputs of the student.
        end: tensor that it ends with; empty for the outputs of the student.
        features: tensors in it that are compared with the teacher's, the end among them.
        fixed: weights that other blocks read as well.
    """

    model: ir.Model
    start: str = ""
    end: str = ""
    features: tuple[Feature, ...] = ()
    fixed: frozenset[str] = frozenset()


class Blocks:
    """Cuts a student.

    Args:
        student: in single precision, all of its constants initializers; unchanged.
        weights: names of those that are trained.
        facts: runs of it.
        share: of the activations of the first run, that the smallest run has.
    """

    def __init__(
        self, student: ir.Model, weights: Sequence[str], facts: Facts, share: float
    ) -> None:
        self._student, self._facts, self._share = student, facts, share
        self._weights = set(weights)
        self._values = {v.name or "": v for node in student.graph for v in node.outputs}
        self._all = frozenset(student.graph)
        self._readers: dict[ir.Value, list[ir.Node]] = {}
        self._tuned: set[ir.Value] = set()
        for node in student.graph:
            reads = list(node_reads(node))
            for value in reads:
                self._readers.setdefault(value, []).append(node)
            if any(value in self._tuned or value.name in self._weights for value in reads):
                self._tuned.update(node.outputs)

    def bytes(self, nodes: Iterable[ir.Node] | None = None) -> int:
        """Memory that training takes.

        Args:
            nodes: of a block; None for the whole.
        """
        shapes, types = self._facts.first.shapes, self._facts.first.types
        weights: dict[str, int] = {}
        activations = 0
        for node in self._all if nodes is None else nodes:
            weights |= {v.name or "": _size(v) for v in node_reads(node) if v.name in self._weights}
            names = [value.name for value in node.outputs if value.name in types]
            activations += sum(math.prod(shapes[name]) for name in names if name)
        of_weights = _WEIGHT_BYTES * sum(weights.values())
        return of_weights + int(_ACTIVATION_BYTES * self._share * activations)

    def within(self, limit: int, features: Sequence[Feature]) -> list[Block]:
        """Cut the student into as few blocks as fit a limit, as far as it can be cut.

        Args:
            limit: of memory, in bytes.
            features: tensors to cut at, in graph order.

        Returns:
            blocks in order, the last without an end.
        """
        ends, done = [""], frozenset[ir.Node]()
        last = ""
        for cut, nodes in [*self._cuts(features), ("", self._all)]:
            if last and self.bytes(nodes - done) > limit:
                ends.append(last)
                done = self._before(last)
            last = cut
        pairs = list(zip(ends, [*ends[1:], ""], strict=True))
        pieces = [self._piece(start, end) for start, end in pairs]
        read = [name for piece in pieces for name in piece.graph.initializers]
        shared = frozenset(name for name in self._weights if read.count(name) > 1)
        return [
            Block(piece, *pair, tuple(f for f in features if self._lies_in(f, piece)), shared)
            for pair, piece in zip(pairs, pieces, strict=True)
        ]

    def reader(self, block: Block, values: Values, runtime: Runtime) -> Callable[[Feed], Feed]:
        """What computes the inputs of a block from those of the student.

        Args:
            block: one of those the student was cut into.
            values: of weights before it.
            runtime: how to run.
        """
        wanted = [value.name or "" for value in block.model.graph.inputs]
        if not block.start:
            return lambda feed: single({name: feed[name] for name in wanted})
        before = with_values(self._piece("", block.start), values)
        execution = Execution(before, runtime)
        needed = [value.name or "" for value in before.graph.inputs]

        def read(feed: Feed) -> Feed:
            given = single(feed)
            made = execution.run({name: given[name] for name in needed})
            return {name: made[name] if name in made else given[name] for name in wanted}

        return read

    def _cuts(self, features: Sequence[Feature]) -> list[tuple[str, frozenset[ir.Node]]]:
        """Features that the student can be cut at, with the nodes before, in order."""
        cuts: list[tuple[str, frozenset[ir.Node]]] = []
        for feature in features:
            value = self._values.get(feature.name)
            if value is None or value not in self._tuned:
                continue
            before = self._before(feature.name)
            if cuts and not (cuts[-1][1] < before):
                continue
            if self._is_only_way(value, before):
                cuts.append((feature.name, before))
        return cuts

    def _is_only_way(self, value: ir.Value, before: Nodes) -> bool:
        """Whether nothing but a value, behind some nodes, depends on weights before."""
        returned = set(self._student.graph.outputs)
        for node in before:
            for made in node.outputs:
                if made is value or made not in self._tuned:
                    continue
                if made in returned or not before >= set(self._readers.get(made, ())):
                    return False
        reads = (each for node in self._all - before for each in node_reads(node))
        return value not in returned and any(each.name in self._weights for each in reads)

    def _before(self, name: str, start: str = "") -> frozenset[ir.Node]:
        """All nodes that a value depends on, up to another one."""
        return self._behind([self._values[name]], start)

    def _behind(self, ends: Sequence[ir.Value], start: str) -> frozenset[ir.Node]:
        found: set[ir.Node] = set()
        waiting = [end.producer() for end in ends]
        while waiting:
            node = waiting.pop()
            if node is None or node in found:
                continue
            found.add(node)
            waiting += [v.producer() for v in node_reads(node) if not start or v.name != start]
        return frozenset(found)

    def _piece(self, start: str, end: str) -> ir.Model:
        """A model of its own from one tensor to another; see `Block`."""
        graph = self._student.graph
        ends = [self._values[end]] if end else list(graph.outputs)
        nodes = self._behind(ends, start)
        known = KnownValues({})
        if start:
            known.types[start] = self._kind(start)
            known.shapes[start] = self._shape(start)
        names = [value.name or "" for value in ends]
        piece, _ = piece_of(self._student, [n for n in graph if n in nodes], names, known)
        for value in piece.graph.outputs:
            if value.name and value.name in self._facts.first.types:
                value.type = self._kind(value.name)
        return piece

    def _kind(self, name: str) -> ir.TensorType:
        kind = self._facts.first.types[name]
        return ir.TensorType(ir.DataType.FLOAT if kind.is_floating_point() else kind)

    def _shape(self, name: str) -> ir.Shape:
        """Declared shape of a tensor that a block begins with: what varies has a symbol."""
        first, second = self._facts.first, self._facts.second
        symbols = {
            (first.shapes[value.name][axis], second.shapes[value.name][axis]): str(dim.value)
            for value in self._student.graph.inputs
            if value.shape is not None and value.name and value.name in first.feed
            for axis, dim in enumerate(value.shape.dims)
            if isinstance(dim, ir.SymbolicDim) and dim.value
        }
        dims = [
            before
            if before == after and second is not first
            else symbols.get((before, after), f"{name}/{axis}")
            for axis, (before, after) in enumerate(
                zip(first.shapes[name], second.shapes[name], strict=True)
            )
        ]
        return ir.Shape(dims)

    @staticmethod
    def _lies_in(feature: Feature, piece: ir.Model) -> bool:
        return any(value.name == feature.name for node in piece.graph for value in node.outputs)


def activation_bytes(facts: Facts) -> int:
    """Memory of all activations of the first run, in single precision."""
    first = facts.first
    sizes = (
        math.prod(shape)
        for name, shape in first.shapes.items()
        if name in first.types and name not in facts.constants
    )
    return _ACTIVATION_BYTES * sum(sizes)


def weight_bytes(values: Values) -> int:
    """Memory of weights that are trained."""
    return _WEIGHT_BYTES * sum(value.size for value in values.values())


def _size(value: ir.Value) -> int:
    return value.const_value.size if value.const_value is not None else 0
