"""A model with its backward graph: what is fed, what it gives, and where gradients do not get.

All of it runs in single precision, whatever the model's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.coupling.groups import Reading
from onnxprune.errors import InputError
from onnxprune.gradients.backward import Added, Edge, add_backward
from onnxprune.gradients.emitter import QUANTISED, Emitter
from onnxprune.gradients.preparation import Expansion, expand, to_single_precision, upgraded
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
        return _seeded(self.seeds, feed, seeds)


def _seeded(
    names: Sequence[str], feed: Mapping[str, NDArray[Any]], seeds: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    nothing = np.zeros((0,), np.float32)
    slopes = {f"{_SEED}/{name}": seeds.get(name, nothing).astype(np.float32) for name in names}
    return {**single(feed), **slopes}


def single(feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """A feed in single precision."""
    return {
        name: array.astype(np.float32) if array.dtype in _CAST else array
        for name, array in feed.items()
    }


@dataclass(frozen=True)
class Squared:
    """A model that gives squared gradients of some of its tensors, added up over some axes.

    Attributes:
        model: the model with its backward graph.
        rows: by tensor, the name of the output that holds them added up over the axes asked for.
        columns: by tensor, the same over all other axes.
        blocked: by tensor, why there is no gradient.
        seeds: tensors that the gradient of the loss is given for.
        batch_axes: by tensor, the axis whose extent goes with the number of samples, if there is.
        activation_bytes: of all activations of the sample that it was observed on.
    """

    model: ir.Model
    rows: Mapping[str, str]
    columns: Mapping[str, str]
    blocked: Mapping[str, str]
    seeds: Sequence[str]
    batch_axes: Mapping[str, int]
    activation_bytes: int

    def feed(
        self, feed: Mapping[str, NDArray[Any]], seeds: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """What to run the model on; see `Differentiated.feed`."""
        return _seeded(self.seeds, feed, seeds)


@dataclass(frozen=True)
class EmittedLoss:
    """A loss as part of a graph.

    Attributes:
        slopes: its gradient with respect to tensors of the model, by name.
        inputs: of the graph that the loss reads besides, such as targets.
        later: by name of a tensor, what appends the gradient of a part of the loss that knows the
            gradient of all others there, as `backward.Added` has it.
        outputs: appends what the graph gives besides, such as the loss itself, after all gradients.
    """

    slopes: Mapping[str, ir.Value]
    inputs: Sequence[ir.Value] = ()
    later: Mapping[str, Added] = field(default_factory=dict)
    outputs: Callable[[], Sequence[ir.Value]] = tuple


@dataclass(frozen=True)
class Trainable:
    """A model with a loss and the gradients of its weights, which are inputs.

    Attributes:
        model: the model with its backward graph, in single precision.
        gradients: by name of a weight, the output that holds its gradient; none for weights that
            the loss does not depend on.
        blocked: by name of a weight, why it has none.
        activation_bytes: of all activations of the sample that it was observed on.
    """

    model: ir.Model
    gradients: Mapping[str, str]
    blocked: Mapping[str, str]
    activation_bytes: int


@dataclass(frozen=True)
class _Prepared:
    """A copy of a model in single precision that a backward graph may be appended to."""

    model: ir.Model
    emit: Emitter
    values: Mapping[str, ir.Value]
    expansion: Expansion
    facts: Facts
    zeros: Mapping[Edge, ir.Value]


def _prepared(
    model: ir.Model,
    edges: Set[Edge],
    sample: Mapping[str, NDArray[Any]],
    runtime: Runtime,
    rng: np.random.Generator,
    weights: Sequence[str] = (),
) -> _Prepared:
    probe = upgraded(model.clone(), weights)
    to_single_precision(probe)
    whole = facts = observe(probe, runtime, rng, single(sample))
    zeros = _zero_points(probe, edges, facts)
    expansion = expand(probe, facts.first)
    if expansion.owners:
        facts = observe(probe, runtime, rng, single(sample))
        _require_same(whole.first.outputs, facts.first.outputs)
    emit = Emitter(probe, (facts.first, facts.second))
    values = {value.name or "": value for node in probe.graph for value in node.outputs}
    values |= {value.name or "": value for value in probe.graph.inputs}
    return _Prepared(probe, emit, values, expansion, facts, zeros)


def _seeds_of(ready: _Prepared, seeded: Sequence[str]) -> dict[str, ir.Value]:
    """New inputs for gradients of the loss.

    Raises:
        InputError: when no output has a slope.
    """
    emit, values = ready.emit, ready.values
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
    return seeds


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
    edges = {reading: Edge(reading.consumer.node, reading.consumer.tensor) for reading in readings}
    try:
        ready = _prepared(model, set(edges.values()), sample, runtime, rng)
    except InputError as error:
        raise InputError(f"{error}; take another criterion") from error
    probe, emit, values = ready.model, ready.emit, ready.values
    seeds = _seeds_of(ready, seeded)
    backward = add_backward(probe, emit, seeds, set(edges.values()), ready.expansion)
    del probe.graph.outputs[:]
    outputs = {
        reading: _reduced(
            emit,
            _centred(emit, values[edge.tensor], reading, means.get(reading), ready.zeros.get(edge)),
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
    return Differentiated(probe, outputs, blocked, list(seeds), _bytes(ready.facts))


def differentiate_tensors(
    model: ir.Model,
    seeded: Sequence[str],
    tensors: Mapping[str, Sequence[int]],
    sample: Mapping[str, NDArray[Any]],
    runtime: Runtime,
    rng: np.random.Generator,
) -> Squared:
    """Add a backward graph that gives squared gradients of some tensors.

    Args:
        model: unchanged.
        seeded: tensors that gradients of the loss will be given for.
        tensors: by name, the axes to add up over: all but those of the rows.
        sample: a feed to observe the model on.
        runtime: how to run.
        rng: for a second feed.

    Raises:
        InputError: when no output has a slope, or fused operators compute something else than what
            they are made of.
    """
    ready = _prepared(model, set(), sample, runtime, rng)
    probe, emit = ready.model, ready.emit
    seeds = _seeds_of(ready, seeded)
    backward = add_backward(probe, emit, seeds, (), ready.expansion, set(tensors))
    del probe.graph.outputs[:]
    rows, columns = {}, {}
    for name, gradient in backward.tensors.items():
        real = emit.op("Cast", gradient, to=int(ir.DataType.FLOAT))
        squares = emit.op("Mul", real, real)
        rank, axes = emit.rank(ready.values[name]), list(tensors[name])
        others = [axis for axis in range(rank) if axis not in axes]
        rows[name] = _output(emit, emit.reduce("ReduceSum", squares, axes))
        columns[name] = _output(emit, emit.reduce("ReduceSum", squares, others))
    probe.graph.inputs.extend(seeds.values())
    facts = ready.facts
    axes_of = {name: _batch_axis(facts, name) for name in rows}
    batch_axes = {name: axis for name, axis in axes_of.items() if axis is not None}
    return Squared(probe, rows, columns, backward.stuck, list(seeds), batch_axes, _bytes(facts))


def differentiate_weights(
    model: ir.Model,
    weights: Sequence[str],
    loss: Callable[[Emitter, Mapping[str, ir.Value]], EmittedLoss],
    sample: Mapping[str, NDArray[Any]],
    runtime: Runtime,
    rng: np.random.Generator,
) -> Trainable:
    """Add a loss and the gradients of weights to a copy of a model, whose weights become inputs.

    Args:
        model: unchanged.
        weights: names of initializers of its main graph.
        loss: appends the loss, given the tensors of the model by name.
        sample: a feed to observe the model on.
        runtime: how to run.
        rng: for a second feed.

    Raises:
        InputError: when fused operators compute something else than what they are made of.
    """
    ready = _prepared(model, set(), sample, runtime, rng, weights)
    graph, emit = ready.model.graph, ready.emit
    emitted = loss(emit, ready.values)
    backward = add_backward(
        ready.model, emit, emitted.slopes, (), ready.expansion, set(weights), emitted.later
    )
    del graph.outputs[:]
    graph.outputs.extend(emitted.outputs())
    gradients = {
        name: _output(emit, backward.tensors[name]) for name in weights if name in backward.tensors
    }
    graph.inputs.extend(emitted.inputs)
    for name in gradients:
        value = graph.initializers.pop(name)
        value.const_value = None
        if not value.is_graph_input():  # old files list initializers among the inputs
            graph.inputs.append(value)
    return Trainable(ready.model, gradients, backward.stuck, _bytes(ready.facts))


def _batch_axis(facts: Facts, name: str) -> int | None:
    """The first axis of a tensor whose extent goes with that of the inputs' first axis."""
    runs = facts.first, facts.second
    counts = [
        max((each.shape[0] for each in run.feed.values() if each.ndim), default=0) for run in runs
    ]
    for axis, extents in enumerate(zip(*(run.shapes[name] for run in runs), strict=True)):
        if extents[0] != extents[1] and extents[0] * counts[1] == extents[1] * counts[0]:
            return axis
    return None


def _output(emit: Emitter, value: ir.Value) -> str:
    """Append an output of the graph and return its name."""
    output = emit.op("Identity", value)
    output.type = ir.TensorType(ir.DataType.FLOAT)
    emit.graph.outputs.append(output)
    return output.name or ""


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
                f"{name!r} would differ by {apart:.2g}"
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
    return _output(emit, emit.reduce("ReduceSum", product, others))
