"""A model with its backward graph: what is fed, what it gives, and where gradients do not get.

All of it runs in single precision, whatever the model's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.coupling.groups import Reading
from onnxprune.errors import InputError
from onnxprune.gradients.backward import Edge, add_backward
from onnxprune.gradients.emitter import QUANTISED, Emitter
from onnxprune.gradients.preparation import expand, to_single_precision, upgraded
from onnxprune.model.bodies import node_id
from onnxprune.model.observe import Facts, observe
from onnxprune.model.runtime import Runtime

_SEED = "onnxprune/seed"
_SAME = 0.05
"""Share of the largest output by which a model may differ after fused nodes were expanded."""
_CAST = {np.dtype(np.float16), np.dtype(np.float64)}


@dataclass(frozen=True)
class Differentiated:
    """A model with its backward graph.

    Attributes:
        model: gives, for each reading, (x - x0) dL/dx added up over all axes but the first and
            those of the units.
        outputs: by reading, the name of that output; a reading that the loss does not depend on
            has none.
        blocked: by reading, why its gradient cannot be computed.
        seeds: tensors that the gradient of the loss is given for.
        activation_bytes: of all activations of the sample that it was observed on.
    """

    model: ir.Model
    outputs: Mapping[Reading, str]
    blocked: Mapping[Reading, str]
    seeds: Sequence[str]
    activation_bytes: int

    def feed(
        self, feed: Mapping[str, NDArray[Any]], seeds: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """What to run the model on.

        Args:
            feed: of the original.
            seeds: gradients of the loss, by tensor; empty where one is missing.
        """
        nothing = np.zeros((0,), np.float32)
        slopes = {
            f"{_SEED}/{name}": seeds.get(name, nothing).astype(np.float32) for name in self.seeds
        }
        return {**single(feed), **slopes}


def single(feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """A feed in single precision."""
    return {
        name: array.astype(np.float32) if array.dtype in _CAST else array
        for name, array in feed.items()
    }


def differentiate(
    model: ir.Model,
    seeded: Sequence[str],
    readings: Sequence[Reading],
    means: Mapping[Reading, NDArray[np.float64]],
    sample: Mapping[str, NDArray[Any]],
    runtime: Runtime,
    rng: np.random.Generator,
) -> Differentiated:
    """Add the backward graph to a copy of a model.

    Args:
        model: unchanged.
        seeded: tensors that gradients of the loss will be given for.
        readings: what gradients are asked for.
        means: x0 of each reading, shaped like its units; zero for one that is missing.
        sample: a feed to observe the model on.
        runtime: how to run.
        rng: for a second feed.

    Raises:
        InputError: when no output has a slope, or fused operators compute something else than what
            they are made of.
    """
    probe = upgraded(model.clone())
    to_single_precision(probe)
    facts = observe(probe, runtime, rng, single(sample))
    edges = {reading: Edge(reading.consumer.node, reading.consumer.tensor) for reading in readings}
    zeros = _zero_points(probe, set(edges.values()), facts)
    expansion = expand(probe, facts.first)
    if expansion.owners:
        whole, facts = facts, observe(probe, runtime, rng, single(sample))
        _require_same(whole.first.outputs, facts.first.outputs)
    emit = Emitter(probe, (facts.first, facts.second))
    values = {value.name: value for node in probe.graph for value in node.outputs}
    values |= {value.name: value for value in probe.graph.inputs}
    seeds = {
        name: _seed(name, emit.rank(values[name]))
        for name in dict.fromkeys(seeded)
        if emit.dtype(values[name]) is not None
    }
    if not seeds:
        raise InputError(
            "no output of the model is of floating point, so that no loss has a slope; take "
            "another criterion"
        )
    backward = add_backward(probe, emit, seeds, set(edges.values()), expansion)
    del probe.graph.outputs[:]
    outputs = {
        reading: _reduced(
            emit,
            _centred(emit, values[edge.tensor], reading, means.get(reading), zeros.get(edge)),
            backward.gradients[edge],
            reading,
            emit.rank(values[edge.tensor]),
        )
        for reading, edge in edges.items()
        if edge in backward.gradients
    }
    probe.graph.inputs.extend(seeds.values())
    blocked = {
        reading: backward.blocked[edge]
        for reading, edge in edges.items()
        if edge in backward.blocked
    }
    return Differentiated(probe, outputs, blocked, list(seeds), _bytes(facts))


def _zero_points(model: ir.Model, edges: Set[Edge], facts: Facts) -> dict[Edge, ir.Value]:
    """What stands for zero in the quantised tensors that edges read.

    Of all operators that read quantised tensors, it comes two inputs behind them.
    """
    zeros = {}
    for node in model.graph:
        for value, zero in zip(node.inputs, node.inputs[2:], strict=False):
            if value is None or zero is None:
                continue
            edge = Edge(node_id(node), value.name or "")
            if edge in edges and facts.first.types.get(edge.tensor) in QUANTISED:
                zeros[edge] = zero
    return zeros


def _require_same(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for name, value in before.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or not value.size:
            continue
        apart = float(np.abs(after[name] - value).max())
        if not apart <= _SAME * float(np.abs(value).max()):
            raise InputError(
                f"the fused operators of this model cannot be taken apart for gradients: output "
                f"{name!r} would differ by {apart:.2g}; take another criterion"
            )


def _bytes(facts: Facts) -> int:
    sizes = (
        math.prod(shape)
        for name, shape in facts.first.shapes.items()
        if name not in facts.constants and name in facts.first.types
    )
    return sum(sizes) * np.dtype(np.float32).itemsize


def _seed(name: str, rank: int) -> ir.Value:
    kind, shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None] * rank)
    return ir.Value(name=f"{_SEED}/{name}", type=kind, shape=shape)


def _centred(
    emit: Emitter,
    tensor: ir.Value,
    reading: Reading,
    mean: NDArray[np.float64] | None,
    zero: ir.Value | None,
) -> ir.Value:
    """Append x - x0."""
    value = emit.op("Cast", tensor, to=int(ir.DataType.FLOAT))
    # a mean by place has no fixed shape where samples and units share an axis
    if mean is not None and not (0 in reading.axes and emit.varies(tensor, 0)):
        order = np.argsort(reading.axes)
        extents = dict(zip(reading.axes, mean.shape, strict=True))
        shape = [extents.get(axis, 1) for axis in range(emit.rank(tensor))]
        centre = mean.transpose(order).reshape(shape).astype(np.float32)
        return emit.op("Sub", value, emit.constant(centre))
    if zero is not None:
        return emit.op("Sub", value, emit.op("Cast", zero, to=int(ir.DataType.FLOAT)))
    return value


def _reduced(
    emit: Emitter, value: ir.Value, gradient: ir.Value, reading: Reading, rank: int
) -> str:
    """Append (x - x0) dL/dx added up over all axes but the first and those of the units."""
    product = emit.op("Mul", value, emit.op("Cast", gradient, to=int(ir.DataType.FLOAT)))
    others = [axis for axis in range(1, rank) if axis not in reading.axes]
    output = emit.op("Identity", emit.reduce("ReduceSum", product, others))
    output.type = ir.TensorType(ir.DataType.FLOAT)
    emit.graph.outputs.append(output)
    return output.name or ""
