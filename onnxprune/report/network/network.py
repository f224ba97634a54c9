"""A network as people draw it: the layers that have a width, and what flows between them.

Everything else is an edge: what works element by element, moves data or normalises it lies between
two layers, shapes and constants are left out. Where two different branches meet (a residual sum, a
gate, a concatenation, a product of activations) there is a node of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.coupling.groups import Group, Refused
from onnxprune.coupling.labels import AxisLabel
from onnxprune.coupling.operators import RULES
from onnxprune.coupling.trace import Coupling
from onnxprune.model.bodies import captured, subgraphs

_MICROSOFT = "com.microsoft"
_CHANNELS_SECOND = frozenset(
    {
        *(("", op) for op in ("Conv", "ConvTranspose", "ConvInteger", "DeformConv", "QLinearConv")),
        *((_MICROSOFT, op) for op in ("FusedConv", "QLinearConv", "ConvTransposeWithDynamicPads")),
    }
)
_CHANNELS_LAST = frozenset(
    {
        *(("", op) for op in ("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul", "Einsum")),
        *(("", op) for op in ("LSTM", "GRU", "RNN", "Gather")),
        *((_MICROSOFT, op) for op in ("NhwcFusedConv", "FusedGemm", "QGemm", "GemmFastGelu")),
        *((_MICROSOFT, op) for op in ("FusedMatMul", "FusedMatMulActivation", "TransposeMatMul")),
        *((_MICROSOFT, op) for op in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")),
        *((_MICROSOFT, op) for op in ("MatMulNBits", "MatMulBnb4", "QLinearMatMul")),
        *((_MICROSOFT, op) for op in ("DynamicQuantizeLSTM", "Attention", "QAttention")),
        *((_MICROSOFT, op) for op in ("EmbedLayerNormalization", "GatherBlockQuantized")),
    }
)
_SHAPES = frozenset({("", "Shape"), ("", "Size")})


@dataclass(frozen=True)
class Segment:
    """A part of a layer's width.

    Attributes:
        group: number of the group it belongs to, from 0; None for what cannot be cut.
        before: channels of the original.
        after: channels that are left.
    """

    group: int | None
    before: int
    after: int


@dataclass(frozen=True)
class NetworkNode:
    """A layer, a meeting of branches, or an end of the network.

    Attributes:
        kind: `input`, `layer`, `join` or `output`.
        name: of the node, or of the graph's input or output.
        operator: op type, with the size of a kernel.
        segments: the width by group; empty where there is none.
        sources: indices of the nodes it reads, ascending.
        reason: why what has no group cannot be cut, as far as known.
    """

    kind: str
    name: str
    operator: str
    segments: tuple[Segment, ...]
    sources: tuple[int, ...]
    reason: str = ""

    @property
    def before(self) -> int:
        """Width in the original."""
        return sum(segment.before for segment in self.segments)

    @property
    def after(self) -> int:
        """Width that is left."""
        return sum(segment.after for segment in self.segments)


@dataclass(frozen=True)
class Network:
    """The nodes of a network, in an order in which every node comes after those it reads.

    Attributes:
        nodes: layers, joins and ends.
        groups: names of the groups, by number.
        cut: whether something was removed, so that widths before and after make sense.
    """

    nodes: tuple[NetworkNode, ...]
    groups: tuple[str, ...]
    cut: bool = False


def find_network(
    graph: ir.Graph,
    coupling: Coupling,
    groups: Sequence[Group],
    refused: Sequence[Refused] = (),
    removed: Iterable[int] = (),
) -> Network:
    """Find the layers of a model and how they are connected.

    Args:
        graph: the main graph of the original.
        coupling: its labels.
        groups: its groups, in the order of their numbers.
        refused: axes that cannot be cut, and why.
        removed: units that are removed; none before pruning.
    """
    units = list(removed)
    widths = _Widths(coupling, groups, units)
    walk = _Walk(widths, refused)
    for value in graph.inputs:
        if value.name and value.name not in coupling.facts.constants:
            walk.begin(value.name)
    for node in graph:
        walk.pass_through(node)
    for value in graph.outputs:
        walk.end(value.name or "")
    return Network(_connected(walk.nodes), tuple(group.name for group in groups), bool(units))


class _Widths:
    """Which part of an axis belongs to which group, and what is left of it."""

    def __init__(self, coupling: Coupling, groups: Sequence[Group], removed: list[int]) -> None:
        self.coupling = coupling
        self._group = np.full(coupling.relations.count, -1, np.int64)
        for number, group in enumerate(groups):
            self._group[group.all_units] = number
        self._alive = np.ones(coupling.relations.count, bool)
        self._alive[removed] = False

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor at the traced size; empty when it is unknown."""
        labels = self.coupling.tensors.get(name)
        return labels.shape if labels else self.coupling.facts.first.shapes.get(name, ())

    def along(self, name: str, axis: int) -> tuple[Segment, ...]:
        """Segments of an axis of a tensor; empty when the tensor has no such axis."""
        shape = self.shape(name)
        if not -len(shape) <= axis < len(shape):
            return ()
        axis %= len(shape)
        labels = self.coupling.tensors.get(name)
        axis_labels = [
            label for label in (labels.axis_labels if labels else ()) if axis in label.axes
        ]
        if not axis_labels:
            return (Segment(None, shape[axis], shape[axis]),)
        return self._segments(min(axis_labels, key=lambda label: len(label.axes)), axis)

    def only(self, name: str) -> tuple[Segment, ...]:
        """Segments of the label labelled axis of a tensor; empty when it has several or none."""
        labels = self.coupling.tensors.get(name)
        axes = {axis for label in (labels.axis_labels if labels else ()) for axis in label.axes}
        return self.along(name, axes.pop()) if len(axes) == 1 else ()

    def _segments(self, label: AxisLabel, axis: int) -> tuple[Segment, ...]:
        classes: NDArray[np.int32] = self.coupling.unit_of[label.atoms]
        rows = np.moveaxis(classes, label.axes.index(axis), 0)
        rows = rows.reshape(len(rows), -1)
        groups = self._group[rows].max(axis=1)
        alive = self._alive[rows].any(axis=1)
        before, after = Counter(groups.tolist()), Counter(groups[alive].tolist())
        return tuple(
            Segment(group if group >= 0 else None, before[group], after[group]) for group in before
        )


class _Walk:
    """The nodes found so far, and which of them every tensor comes from."""

    def __init__(self, widths: _Widths, refused: Sequence[Refused]) -> None:
        self.nodes: list[NetworkNode] = []
        self._widths = widths
        self._reasons = {refusal.axis: refusal.reason for refusal in refused}
        self._source: dict[str, int] = {}

    def begin(self, name: str) -> None:
        """Add an input of the graph."""
        self._add(NetworkNode("input", name, "input", (), ()), [name])

    def end(self, name: str) -> None:
        """Add an output of the graph."""
        if name in self._source:
            self.nodes.append(NetworkNode("output", name, "output", (), (self._source[name],)))

    def pass_through(self, node: ir.Node) -> None:
        """Add a node, or let its outputs come from what its inputs come from."""
        outputs = [value.name for value in node.outputs if value.name]
        sources = {self._source[name] for name in _reads(node) if name in self._source}
        if not sources or not outputs or (node.domain, node.op_type) in _SHAPES:
            return
        if self._is_layer(node):
            self._add(self._layer(node, sources), outputs)
            return
        branches = self._branches(node, outputs[0]) or sources
        if len(branches) == 1:
            self._source |= dict.fromkeys(outputs, branches.pop())
            return
        segments = self._widths.only(outputs[0])
        joined = NetworkNode("join", _name(node), node.op_type, segments, tuple(sorted(branches)))
        self._add(joined, outputs)

    def _add(self, node: NetworkNode, outputs: Iterable[str]) -> None:
        self._source |= dict.fromkeys(outputs, len(self.nodes))
        self.nodes.append(node)

    def _weights(self, node: ir.Node) -> list[str]:
        """Inputs that do not depend on the graph's and have at least two axes."""
        names = [value.name for value in node.inputs if value is not None and value.name]
        return [name for name in names if name not in self._source and self._rank(name) > 1]

    def _rank(self, name: str) -> int:
        return len(self._widths.shape(name))

    def _is_layer(self, node: ir.Node) -> bool:
        op = (node.domain, node.op_type)
        if op == ("", "Gather"):  # with a table; else it picks from activations
            return self._weights(node)[:1] == [getattr(node.inputs[0], "name", None)]
        if op in _CHANNELS_SECOND | _CHANNELS_LAST or op not in RULES:
            return bool(self._weights(node))
        return any(_has_parameters(body) for body in subgraphs(node))

    def _layer(self, node: ir.Node, sources: set[int]) -> NetworkNode:
        output, weights = node.outputs[0].name or "", self._weights(node)
        segments = self._width(node, output, weights)
        operator = node.op_type
        if (node.domain, node.op_type) in _CHANNELS_SECOND:
            kernel = self._widths.shape(weights[0])[2:]
            operator += " " + "\u00d7".join(map(str, kernel)) if kernel else ""
        whole = sum(segment.before for segment in segments if segment.group is None)
        reason = self._reason(weights, whole) if whole else ""
        return NetworkNode("layer", _name(node), operator, segments, tuple(sorted(sources)), reason)

    def _width(self, node: ir.Node, output: str, weights: list[str]) -> tuple[Segment, ...]:
        op = (node.domain, node.op_type)
        if op in _CHANNELS_SECOND:
            return self._widths.along(output, 1)
        if op not in _CHANNELS_LAST:
            return ()
        first = node.inputs[0]
        on_the_left = op == ("", "MatMul") and first is not None and first.name in weights
        return self._widths.along(output, -2 if on_the_left else -1)

    def _reason(self, weights: list[str], width: int) -> str:
        """Why no axis of that width of the weights can be cut."""
        for name in weights:
            for axis, extent in enumerate(self._widths.shape(name)):
                reason = self._reasons.get(f"{name}[{axis}]")
                if reason and extent == width:
                    return reason
        return ""

    def _branches(self, node: ir.Node, output: str) -> set[int]:
        """Sources that meet in a node; an input that is broadcast, such as a mask, is none."""
        shape = self._widths.shape(output)
        return {
            source
            for name in _reads(node)
            if (source := self._source.get(name)) is not None
            and (self.nodes[source].kind != "input" or self._widths.shape(name) == shape)
        }


def _reads(node: ir.Node) -> Iterator[str]:
    yield from (value.name for value in node.inputs if value is not None and value.name)
    yield from captured(node)


def _name(node: ir.Node) -> str:
    return node.name or next((value.name for value in node.outputs if value.name), None) or ""


def _has_parameters(body: ir.Graph) -> bool:
    """Whether a body multiplies with weights of its own or from outside."""
    return any((node.domain, node.op_type) in _CHANNELS_SECOND | _CHANNELS_LAST for node in body)


def _connected(nodes: Sequence[NetworkNode]) -> tuple[NetworkNode, ...]:
    """Leave out the nodes that nothing reads, and what only these read; outputs are kept."""
    kept: set[int] = set()
    for index in reversed(range(len(nodes))):
        if nodes[index].kind in ("output", "layer") or index in kept:
            kept.add(index)
            kept.update(nodes[index].sources)
    number: Mapping[int, int] = {old: new for new, old in enumerate(sorted(kept))}
    return tuple(
        replace(nodes[old], sources=tuple(number[source] for source in nodes[old].sources))
        for old in number
    )
