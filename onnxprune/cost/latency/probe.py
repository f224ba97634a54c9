"""Timing with onnxruntime's profiler: one operator alone, and every node of a model.

The profiler gives the time of the kernel itself; what onnxruntime does around it when the operator
is alone (bringing tensors into the blocked layout of its convolutions and back) is left out.
Weights are made inside the model by ConstantOfShape, which onnxruntime folds when it loads the
model, so that a layer of 400 MB is a file of 300 bytes.

In a profile of a whole model a kernel is traced back to a node of the file by its name, or, where a
convolution was moved into the blocked layout, by the name of its output; what was fused into it is
counted with it. Kernels that belong to no node (layout changes, patterns that became one operator)
are spread over the nodes that have no kernel, by the elements that these write.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune.cost.latency.kernels import Family, Shapes, Widths, family_of
from onnxprune.errors import RuntimeFailure
from onnxprune.model.execution import open_session, run
from onnxprune.model.node_view import ShapeOf
from onnxprune.model.runtime import Runtime

_FATAL = 4  # log level of onnxruntime
_AROUND = frozenset({"ReorderInput", "ReorderOutput", "QuantizeLinear", "DequantizeLinear"})
_BUDGET = 12e-3  # seconds for each kernel and width
_FEWEST, _MOST = 4, 150  # runs
_AGREEING = 1.06  # ratio of times that count as the same
_PATIENCE = 8  # budgets to spend on a busy machine
_FILL = 0.01  # entries of weights, small so that nothing overflows
_MICROSECONDS = 1e-6


@dataclass(frozen=True)
class Operand:
    """One input of the operator.

    Attributes:
        dtype: element type the operator, or the DequantizeLinear before it, reads.
        constant: made inside the model instead of fed.
        value: what a constant of one element is, None for one that is filled.
        quantised: a DequantizeLinear stands between.
    """

    dtype: ir.DataType
    constant: bool
    value: NDArray[Any] | None = None
    quantised: bool = False


@dataclass(frozen=True, eq=False)
class Kernel:
    """An operator with everything its time depends on.

    Attributes:
        node: the node with plain names for inputs and outputs and without a name.
        family: how it depends on widths.
        operands: its inputs; None where one is left out.
        shapes: shapes of the inputs in the original.
        widths: its widths there.
        quantised_output: element type of the QuantizeLinear behind it, None without.
        opsets: of the model.
    """

    node: onnx.NodeProto
    family: Family
    operands: tuple[Operand | None, ...]
    shapes: Shapes
    widths: Widths
    quantised_output: ir.DataType | None
    opsets: Mapping[str, int]

    def key(self) -> dict[str, str]:
        """What tells kernels apart: the operator, and its shapes with all widths at 1."""
        shapes = self.family.resized(self.family.slots, self.shapes, self.widths, self.ones())
        kept = onnx.NodeProto()
        kept.CopyFrom(self.node)
        derived = self.family.attributes(self.widths)
        attributes = [a for a in kept.attribute if a.name not in derived]
        described = sorted(f"{a.name}={helper.get_attribute_value(a)}" for a in attributes)
        operands = [
            "-" if op is None else f"{op.dtype.name}{'c' * op.constant}{'q' * op.quantised}"
            for op in self.operands
        ]
        return {
            "operator": f"{self.node.domain}::{self.node.op_type}",
            "opset": str(self.opsets.get(self.node.domain, 1)),
            "attributes": ", ".join(described),
            "operands": " ".join(operands),
            "output": self.quantised_output.name if self.quantised_output else "-",
            "shapes": str([list(shape) for shape in shapes]),
        }

    def repeated(self, times: int) -> Kernel:
        """The kernel on so many times the samples; itself where there are none."""
        slot = self.family.slots.data
        if times == 1 or not self.family.batched:
            return self
        shapes = list(self.shapes)
        shapes[slot] = (times * shapes[slot][0], *shapes[slot][1:])
        return replace(self, shapes=tuple(shapes))

    def ones(self) -> Widths:
        """All widths at 1."""
        return (1,) * len(self.widths)


def kernel_of(
    node: ir.Node,
    shape_of: ShapeOf,
    constants: Mapping[str, ir.TensorProtocol],
    opsets: Mapping[str, int],
) -> Kernel | None:
    """Describe a node as a kernel that can be timed alone; None when it cannot.

    Args:
        node: a node of the original.
        shape_of: shape of a tensor by name.
        constants: constants of the graph by name, without those that a caller may override.
        opsets: versions of the model's operator sets.
    """
    family = family_of(node)
    if family is None:
        return None
    try:
        shapes = tuple(
            shape_of(value.name or "") if value is not None else () for value in node.inputs
        )
        output = shape_of(node.outputs[0].name or "")
        widths = family.widths(family.slots, shapes, output)
    except (KeyError, ValueError, IndexError):
        return None
    proto = ir.serde.serialize_node(node)
    proto.ClearField("name")
    proto.ClearField("doc_string")
    proto.ClearField("metadata_props")
    del proto.input[:], proto.output[:]
    proto.input.extend(f"i{n}" if value is not None else "" for n, value in enumerate(node.inputs))
    proto.output.extend(f"o{n}" if value.name else "" for n, value in enumerate(node.outputs))
    weight = node.inputs[family.slots.weight]
    operands = tuple(_operand(value, weight, constants) for value in node.inputs)
    return Kernel(proto, family, operands, shapes, widths, _quantised_output(node), dict(opsets))


def time_kernel(kernel: Kernel, widths: Widths, runtime: Runtime) -> float:
    """Seconds of a kernel at some widths.

    Raises:
        RuntimeFailure: when onnxruntime refuses the operator at these widths.
    """
    import onnxruntime as ort

    model, feed = _alone(kernel, widths)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = runtime.threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = ort.InferenceSession(
                model.SerializeToString(), options, providers=list(runtime.providers)
            )
            run_often(session, feed, _BUDGET)
        except Exception as error:
            raise RuntimeFailure(f"{kernel.node.op_type} at {widths} does not run alone") from error
        events = read_profile(session.end_profiling())
    return sum(typical(calls) for (_, op), calls in events.items() if op not in _AROUND)


def read_profile(path: str) -> dict[tuple[str, str], list[float]]:
    """Seconds of every kernel call in a profile that onnxruntime wrote, by (name, operator)."""
    calls: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in json.loads(Path(path).read_bytes()):
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            operator = event.get("args", {}).get("op_name", "")
            seconds = event["dur"] * _MICROSECONDS
            calls[name.removesuffix("_kernel_time"), operator].append(seconds)
    return calls


def typical(seconds: list[float]) -> float:
    """Time of a call undisturbed by others: the mean of the fastest calls that agree.

    The fastest, since noise only adds; a mean, since the profiler counts whole microseconds.
    """
    ordered = sorted(seconds)
    limit = ordered[0] * _AGREEING + _MICROSECONDS
    fastest = [call for call in ordered[: max(1, len(ordered) // 3)] if call <= limit]
    return sum(fastest) / len(fastest)


def run_often(
    session: ort.InferenceSession,
    feed: Mapping[str, NDArray[Any]],
    budget: float,
    most: int = _MOST,
) -> list[float]:
    """Run until the fastest run was seen again, to a few percent, and the budget is used up.

    Args:
        session: the model.
        feed: what it runs on.
        budget: seconds to spend; several times that on a machine that is busy otherwise.
        most: number of runs to stop at.

    Returns:
        seconds of every run but the first, which warms up.

    Raises:
        RuntimeFailure: when onnxruntime refuses the feed.
    """
    run(session, feed)
    walls: list[float] = []
    start = time.perf_counter()
    while len(walls) < _FEWEST or (len(walls) < most and not _done(walls, start, budget)):
        before = time.perf_counter()
        run(session, feed)
        walls.append(time.perf_counter() - before)
    return walls


def _done(walls: list[float], start: float, budget: float) -> bool:
    spent = time.perf_counter() - start
    if spent < budget:
        return False
    ordered = sorted(walls)
    return ordered[_FEWEST - 2] <= _AGREEING * ordered[0] or spent > _PATIENCE * budget


def _operand(
    value: ir.Value | None, weight: ir.Value | None, constants: Mapping[str, ir.TensorProtocol]
) -> Operand | None:
    if value is None:
        return None
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        inner = producer.inputs[0]
        assert inner is not None
        dtype = _dtype(inner, constants) or ir.DataType.UINT8
        return Operand(dtype, inner.name in constants, None, quantised=True)
    tensor = constants.get(value.name or "")
    if tensor is None:
        fallback = _dtype(weight, constants) if weight is not None else None
        dtype = _dtype(value, constants) or fallback or ir.DataType.FLOAT
        return Operand(dtype, False)
    single = tensor.numpy() if tensor.shape.numpy() in ((), (1,)) else None
    return Operand(tensor.dtype, True, single)


def _dtype(value: ir.Value, constants: Mapping[str, ir.TensorProtocol]) -> ir.DataType | None:
    tensor = constants.get(value.name or "")
    return tensor.dtype if tensor is not None else value.dtype


def _quantised_output(node: ir.Node) -> ir.DataType | None:
    """Element type behind the QuantizeLinear that is the only reader of a node."""
    readers = list(node.outputs[0].uses())
    if len(readers) != 1 or readers[0].node.op_type != "QuantizeLinear":
        return None
    inputs = readers[0].node.inputs
    point = inputs[2] if len(inputs) > 2 else None
    return (point.dtype if point is not None else None) or ir.DataType.UINT8


def _alone(kernel: Kernel, widths: Widths) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]]]:
    """A model of the operator at some widths, and a feed for it."""
    family = kernel.family
    shapes = family.resized(family.slots, kernel.shapes, kernel.widths, widths)
    model, feed = _Parts(), {}
    node = onnx.NodeProto()
    node.CopyFrom(kernel.node)
    for slot, (operand, shape) in enumerate(zip(kernel.operands, shapes, strict=True)):
        if operand is not None:
            name = f"i{slot}q" if operand.quantised else f"i{slot}"
            if operand.constant:
                model.constant(name, operand, shape)
            else:
                model.inputs.append(helper.make_tensor_value_info(name, operand.dtype, shape))
                feed[name] = _values(operand.dtype, shape)
            if operand.quantised:
                point = model.scale(name, operand.dtype)
                inputs = [name, *point]
                model.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"i{slot}"]))
    _set_attributes(node, family.attributes(widths))
    model.nodes.append(node)
    output = next(name for name in node.output if name)
    if kernel.quantised_output is not None:
        point = model.scale(output, kernel.quantised_output)
        model.nodes.append(helper.make_node("QuantizeLinear", [output, *point], ["q"]))
        output = "q"
    # onnxruntime finds out the type of an output that has none
    outputs = [onnx.ValueInfoProto(name=output)]
    graph = helper.make_graph(model.nodes, "probe", model.inputs, outputs, model.weights)
    opsets = [helper.make_opsetid(*entry) for entry in sorted(kernel.opsets.items())]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), feed


class _Parts:
    """Parts of a model that is put together."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, name: str, operand: Operand, shape: tuple[int, ...]) -> None:
        """A constant of a shape."""
        if operand.value is not None:
            self.weights.append(numpy_helper.from_array(operand.value, name))
            return
        filled = np.full(1, _FILL if operand.dtype.is_floating_point() else 1)
        value = ir.serde.serialize_tensor(ir.Tensor(filled.astype(operand.dtype.numpy())))
        extents = numpy_helper.from_array(np.array(shape, np.int64), f"{name}s")
        self.weights.append(extents)
        self.nodes.append(helper.make_node("ConstantOfShape", [extents.name], [name], value=value))

    def scale(self, name: str, dtype: ir.DataType) -> tuple[str, str]:
        """Scale and zero point of a quantised tensor."""
        names = f"{name}_scale", f"{name}_point"
        self.weights.append(numpy_helper.from_array(np.array(_FILL, np.float32), names[0]))
        point = ir.serde.serialize_tensor(ir.Tensor(np.zeros((), dtype.numpy()), name=names[1]))
        self.weights.append(point)
        return names


def _values(dtype: ir.DataType, shape: tuple[int, ...]) -> NDArray[Any]:
    if dtype.is_floating_point():
        return np.random.default_rng(0).random(shape, np.float32).astype(dtype.numpy())
    return np.ones(shape, dtype.numpy())


def _set_attributes(node: onnx.NodeProto, attributes: Mapping[str, int]) -> None:
    kept = [a for a in node.attribute if a.name not in attributes]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(helper.make_attribute(*item) for item in attributes.items())


_NAME = "onnxprune_node_"
_BODY = "onnxprune_body_"
_BLOCKED = "_nchwc"
_SECONDS = 0.6  # budget of a profile
_MOST_RUNS = 300
_FUSED = 6  # nodes before an output among which its fused kernel is looked for
_LONGEST_CALL = 2e-6  # seconds; more comes from a machine that is busy with something else
_CONSTANT = ("Constant", "Identity")


@dataclass(frozen=True)
class Profile:
    """Where the time of a model goes.

    Attributes:
        kernels: seconds of the kernels of each node, in graph order.
        call: seconds that running a node costs besides its kernels, for each node that has any.
        total: seconds of one run.
    """

    kernels: tuple[float, ...]
    call: float
    total: float


def profile_model(
    model: ir.Model,
    feed: Mapping[str, NDArray[Any]],
    shapes: Mapping[str, tuple[int, ...]],
    runtime: Runtime,
) -> Profile:
    """Profile a model on one feed.

    Args:
        model: unchanged.
        feed: what it runs on.
        shapes: shape of every tensor on this feed.
        runtime: providers and threads.

    Raises:
        RuntimeFailure: when onnxruntime refuses the model or the feed.
    """
    named = model.clone()
    for number, node in enumerate(named.graph):
        node.name = node_name(number)
    for number, node in enumerate(ir.traversal.RecursiveGraphIterator(named.graph)):
        if not (node.name or "").startswith(_NAME):
            node.name = f"{_BODY}{number}"
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        session = open_session(named, runtime, profile=str(Path(folder) / "profile"))
        runs = 1 + len(run_often(session, feed, _SECONDS, _MOST_RUNS))
        events = read_profile(session.end_profiling())
    del session
    # what a body computes is part of the time of its node
    seconds = {
        event: typical(times)
        for event, times in events.items()
        if not event[0].startswith(_BODY) and len(times) <= runs
    }
    session = open_session(model, runtime)
    walls = run_often(session, feed, _SECONDS, _MOST_RUNS)
    kernels = seconds_by_node(named.graph, seconds, shapes)
    running = max(sum(time_ > 0 for time_ in kernels), 1)
    call = min(max(min(walls) - sum(kernels), 0.0) / running, _LONGEST_CALL)
    return Profile(kernels, call, sum(kernels) + running * call)


def node_name(position: int) -> str:
    """What a node is called while the model is profiled."""
    return f"{_NAME}{position}"


def seconds_by_node(
    graph: ir.Graph, seconds: Mapping[tuple[str, str], float], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[float, ...]:
    """Share the time of kernels out among the nodes of the file.

    Args:
        graph: nodes named after their position, `node_name(position)`.
        seconds: time of every kernel, by its (name, operator).
        shapes: shape of every tensor.
    """
    nodes = list(graph)
    number_of = {id(node): number for number, node in enumerate(nodes)}
    kernels = [0.0] * len(nodes)
    left = 0.0
    moved: list[tuple[str, str, float]] = []
    for (name, operator), time_ in seconds.items():
        known = re.match(rf"{_NAME}(\d+)(?!\d)", name)
        if known:
            kernels[int(known[1])] += time_
        elif name.endswith(_BLOCKED):
            moved.append((name.removesuffix(_BLOCKED), operator, time_))
        else:
            left += time_
    makers = {value.name: node for node in nodes for value in node.outputs if value.name}
    for name, operator, time_ in moved:
        node = _behind(makers.get(name), operator, lambda free: not kernels[number_of[id(free)]])
        if node is None:
            left += time_
        else:
            kernels[number_of[id(node)]] += time_
    written = [
        0.0 if time_ or node.op_type in _CONSTANT else _elements(node, shapes)
        for node, time_ in zip(nodes, kernels, strict=True)
    ]
    if not sum(written):
        written = [_elements(node, shapes) for node in nodes]
    share = left / max(sum(written), 1.0)
    return tuple(time_ + share * size for time_, size in zip(kernels, written, strict=True))


def _behind(node: ir.Node | None, operator: str, free: Any) -> ir.Node | None:
    """The nearest node of an operator before the value that its fused kernel is named after."""
    waiting, seen = deque([node] if node is not None else []), set[int]()
    while waiting and len(seen) <= _FUSED:
        near = waiting.popleft()
        if near.op_type == operator and free(near):
            return near
        seen.add(id(near))
        for value in near.inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and id(producer) not in seen:
                waiting.append(producer)
    return None


def _elements(node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> float:
    return float(sum(prod(shapes.get(value.name or "", (0,))) for value in node.outputs))
