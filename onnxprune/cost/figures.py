"""Figures for reports: cost of every node, traced sizes, what convolutions waste on padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.sample_axes import SampleAxes
from onnxprune.cost.macs import node_macs
from onnxprune.cost.memory import is_parameter, observed_bytes, tensors_of
from onnxprune.coupling.cut import Cut
from onnxprune.coupling.trace import Coupling
from onnxprune.model.bodies import places
from onnxprune.model.inputs import InputSpec
from onnxprune.model.node_view import ShapeOf


@dataclass(frozen=True)
class NodeCost:
    """What one node costs, the bodies in its attributes included.

    Attributes:
        node: display name.
        op_type: its op type.
        macs: multiply-accumulates for one run at the traced size.
        parameters: elements of the parameters it reads.
        bytes: bytes of these.
        activations: bytes of its outputs at the traced size.
    """

    node: str
    op_type: str
    macs: int
    parameters: int
    bytes: int
    activations: int


def made_in_idle_bodies(graph: ir.Graph, coupling: Coupling) -> frozenset[str]:
    """Names of what bodies make that no sample runs: their nodes cost nothing in a run."""
    idle = (place for key, place in places(graph).items() if key in coupling.idle)
    nodes = (node for place in idle for node in place.graph)
    return frozenset(value.name for node in nodes for value in node.outputs if value.name)


def seen_shapes(hidden: frozenset[str], shape_of: ShapeOf) -> ShapeOf:
    """The same shapes, with those of some tensors unknown."""

    def seen(name: str) -> tuple[int, ...]:
        if name in hidden:
            raise KeyError(name)
        return shape_of(name)

    return seen if hidden else shape_of


def node_costs(graph: ir.Graph, coupling: Coupling) -> list[NodeCost]:
    """Cost of every node that multiplies or reads parameters, in graph order.

    Args:
        graph: the main graph.
        coupling: constants, shapes and types; a parameter counts where it is first read.
    """
    facts = coupling.facts
    shape_of = seen_shapes(made_in_idle_bodies(graph, coupling), facts.first.shapes.__getitem__)
    seen = facts.first
    left = {name for name, tensor in facts.constants.items() if is_parameter(tensor)}
    costs = []
    for node in graph:
        read = left.intersection(tensors_of(node)) if node.op_type != "Constant" else set()
        left -= read
        macs = node_macs(node, shape_of)
        if not (macs or read):
            continue
        outputs = [value.name for value in node.outputs if value.name in seen.shapes]
        costs.append(
            NodeCost(
                node.name or node.outputs[0].name or "",
                node.op_type,
                macs,
                sum(prod(seen.shapes[name]) for name in read),
                sum(observed_bytes(facts.first, name) for name in read),
                sum(observed_bytes(facts.first, name) for name in outputs if name),
            )
        )
    return costs


def dynamic_extents(specs: Sequence[InputSpec], feed: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Extents of the axes of the inputs whose size the model leaves open, the batch first.

    Args:
        specs: what the model declares of its inputs.
        feed: what it was run on.

    Returns:
        "batch", the number of samples, whether it is open or not; every other open axis by its
        symbol, or as `input[axis]` where it has none.
    """
    shapes = {name: array.shape for name, array in feed.items()}
    axes = SampleAxes.of(specs)
    extents = {"batch": batch_rows(specs, feed)}
    rows = {spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], str)}
    for spec in specs:
        traced = shapes.get(spec.name, ())
        declared = spec.shape if spec.shape is not None else (None,) * len(traced)
        for axis, (extent, size) in enumerate(zip(declared, traced, strict=True)):
            batch = axis == axes.axes[spec.name] if spec.name in axes.axes else axis == 0
            if isinstance(extent, int) or batch or (not axes.axes and extent in rows):
                continue
            extents.setdefault(extent or f"{spec.name}[{axis}]", size)
    return extents


def batch_rows(specs: Sequence[InputSpec], feed: Mapping[str, NDArray[Any]]) -> int:
    """Samples in a feed; where nothing ties its inputs, entries along the first axis of the first.

    Args:
        specs: what the model declares of its inputs.
        feed: what it was run on.
    """
    rows = SampleAxes.of(specs).rows(feed)
    if rows is not None:
        return rows
    first = next((array for array in feed.values() if array.ndim), None)
    return int(first.shape[0]) if first is not None else 1


BLOCKS = (8, 16)
"""Channels that common kernels compute together."""


def padded_macs(
    graph: ir.Graph, coupling: Coupling, removed: Sequence[int], block: int
) -> tuple[int, int]:
    """Multiply-accumulates of the convolutions that a cut changes.

    Args:
        graph: the original's main graph.
        coupling: its labels.
        removed: removed units.
        block: channels that are computed together.

    Returns:
        as they are, and with every width that was cut rounded up to whole blocks; 0 and 0 where no
        convolution is cut. Grouped convolutions are not counted.
    """
    cut, before = Cut(coupling, removed), coupling.facts.first.shapes
    plain = padded = 0
    for node in graph:
        if node.op_type != "Conv" or node.attributes.get_int("group", 1) > 1:
            continue
        weight = node.inputs[1]
        name = (weight.name or "") if weight is not None else ""
        if name not in before or not cut.touches(name):
            continue
        was, now = before[name][:2], cut.shape(name)[:2]
        macs = node_macs(node, cut.shape)
        whole = [-(-n // block) * block if n != w else n for n, w in zip(now, was, strict=True)]
        plain += macs
        padded += macs * prod(whole) // prod(now)
    return plain, padded
