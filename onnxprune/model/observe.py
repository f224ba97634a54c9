"""Shapes, integers and constants of a graph.

Shapes and integers are observed in onnxruntime at two sizes: declared shapes are missing or wrong
in many exports, so nothing declared is believed. The model is run once for each size with a `Shape`
node behind every tensor, which costs no more memory than inference. Two batch sizes tell which
entries of a computed shape depend on the input. Values of constants include those behind Transpose,
Identity, Cast and the like.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.errors import InputError, RuntimeFailure
from onnxprune.model.bodies import nodes_within
from onnxprune.model.execution import Execution, open_session, run
from onnxprune.model.inputs import (
    InputSpec,
    input_specs,
    larger_sizes,
    part_version,
    random_feed,
    size_choices,
)
from onnxprune.model.protobuf import has_map, skeleton
from onnxprune.model.runtime import Runtime
from onnxprune.model.tensors import extents

_SMALL = 4096  # entries up to which integers are kept
_HIGHEST_INTEGERS = (2, 1)  # 1: only zeros, for tables with one row


@dataclass(frozen=True)
class Observation:
    """One run of the model.

    Attributes:
        feed: what it was run on.
        shapes: shape of every tensor that ran.
        integers: values of integer and boolean tensors of at most 4096 entries.
        outputs: what the model returned.
        types: element type of every tensor that ran.
    """

    feed: Mapping[str, NDArray[Any]]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    integers: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    types: Mapping[str, ir.DataType] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What is known of a graph at its traced sizes.

    Attributes:
        first: the run the labels are traced on.
        second: a run at another batch size, or the first again for a fixed batch.
        constants: initializers and Constant outputs by name; values are read when asked for.
    """

    first: Observation
    second: Observation
    constants: Mapping[str, ir.TensorProtocol]

    def value(self, name: str) -> NDArray[Any] | None:
        """Value of a constant or of an observed integer tensor, at the first size."""
        if name in self.constants:
            return self.constants[name].numpy()
        return self.first.integers.get(name)


def constants_of(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """Initializers and outputs of Constant nodes of a graph (without its subgraphs), by name."""
    constants: dict[str, ir.TensorProtocol] = {}
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            constants[name] = value.const_value
    for node in graph:
        if node.op_type == "Constant" and node.domain == "" and node.outputs[0].name:
            tensor = ir.convenience.get_const_tensor(node.outputs[0])
            if tensor is not None:
                constants[node.outputs[0].name] = tensor
    return constants


def observe(
    model: ir.Model,
    runtime: Runtime,
    rng: np.random.Generator,
    sample: Mapping[str, NDArray[Any]] | None = None,
) -> Facts:
    """Run a model at two sizes and note shapes and integers.

    Args:
        model: unchanged.
        runtime: how to run it.
        rng: for randomly generated inputs.
        sample: a real feed; it sets the first size, else one that runs is generated.

    Raises:
        InputError: when no sample is given and no feed that runs can be generated.
        RuntimeFailure: when the model does not run on the sample.
    """
    constants = constants_of(model.graph)
    instrumented, shape_of, types = _with_shape_outputs(model, constants)
    execution = Execution(instrumented, runtime, optimise=False, arena=False)
    returned = {value.name for value in model.graph.outputs}
    types |= {name: ir.DataType(tensor.dtype) for name, tensor in constants.items()}
    fixed = {name: extents(tensor) for name, tensor in constants.items()}
    probe = _Probe(execution, shape_of, types, fixed, returned)
    specs = input_specs(model)
    first = _first_that_runs(probe, specs, rng) if sample is None else probe.run(sample)
    second = _at_larger_size(probe, specs, first, rng)
    return Facts(first, second, constants)


@dataclass(frozen=True)
class _Probe:
    """An instrumented model.

    Attributes:
        execution: the model.
        shape_of: which of its outputs is the shape of which tensor.
        types: element types of these tensors, and of constants.
        constants: shapes of initializers and Constant outputs of the original.
        returned: outputs of the original.
    """

    execution: Execution
    shape_of: Mapping[str, str]
    types: Mapping[str, ir.DataType]
    constants: Mapping[str, tuple[int, ...]]
    returned: Set[str | None]

    def run(self, feed: Mapping[str, NDArray[Any]]) -> Observation:
        shapes: dict[str, tuple[int, ...]] = {name: tuple(a.shape) for name, a in feed.items()}
        shapes |= self.constants
        types = {name: ir.DataType.from_numpy(a.dtype) for name, a in feed.items()}
        types |= self.types
        integers: dict[str, NDArray[Any]] = {}
        results = self.execution.run(feed)
        for name, result in results.items():
            if name in self.shape_of:
                shapes[self.shape_of[name]] = tuple(int(n) for n in result)
            elif isinstance(result, np.ndarray):
                shapes[name] = result.shape
                types[name] = ir.DataType.from_numpy(result.dtype)
                if result.dtype.kind in "iub" and result.size <= _SMALL:
                    integers[name] = result
        outputs = {name: value for name, value in results.items() if name in self.returned}
        return Observation(feed, shapes, integers, outputs, types)


def _first_that_runs(
    probe: _Probe, specs: Sequence[InputSpec], rng: np.random.Generator
) -> Observation:
    problem = ""
    for sizes in size_choices(specs):
        for highest in _HIGHEST_INTEGERS:
            try:
                return probe.run(random_feed(specs, sizes, rng, highest))
            except RuntimeFailure as error:
                problem = problem or str(error)
    raise InputError(f"the model does not run on random inputs, give --calibration ({problem})")


def _at_larger_size(
    probe: _Probe, specs: Sequence[InputSpec], first: Observation, rng: np.random.Generator
) -> Observation:
    """Run at another size: all dynamic axes if possible, else the batch alone, else not at all."""
    for sizes in larger_sizes(specs, first.feed):
        for highest in _HIGHEST_INTEGERS:
            try:
                return probe.run(random_feed(specs, sizes, rng, highest))
            except (RuntimeFailure, InputError):
                continue
    return first


def _with_shape_outputs(
    model: ir.Model, constants: Mapping[str, ir.TensorProtocol]
) -> tuple[ir.Model, dict[str, str], dict[str, ir.DataType]]:
    """A copy of the model that also returns the shape, or the small integers, of every tensor.

    Returns:
        the copy, the tensor that each shape belongs to, and the element types of these tensors.
    """
    probe = model.clone()
    _infer_types(probe)
    graph = probe.graph
    taken = {value.name for node in graph for value in (*node.inputs, *node.outputs) if value}
    known = {value.name for value in graph.outputs}
    shape_of: dict[str, str] = {}
    types: dict[str, ir.DataType] = {}
    for node in list(graph):
        for value in node.outputs:
            if not value.name or value.name in known or value.name in constants:
                continue
            kind = value.type.dtype if isinstance(value.type, ir.TensorType) else None
            if kind is not None and kind.is_floating_point():
                name = f"onnxprune/shape/{value.name}"
                while name in taken:
                    name += "/"
                shape = ir.Node("", "Shape", [value], num_outputs=1, name=name)
                shape.outputs[0].name = name
                shape.outputs[0].type = ir.TensorType(ir.DataType.INT64)
                graph.insert_after(node, shape)
                graph.outputs.append(shape.outputs[0])
                shape_of[name] = value.name
                types[value.name] = kind
            else:
                graph.outputs.append(value)
    return probe, shape_of, types


def _infer_types(model: ir.Model) -> None:
    """Fill in types; shapes are dropped, declared ones may be wrong."""
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton(model)).graph.value_info
        types = {
            info.name: ir.serde.deserialize_type_proto_for_type(info.type)
            for info in inferred
            if not has_map(info.type)
        }
    except Exception:  # tensors of unknown type are fetched whole
        return
    for node in model.graph:
        for value in node.outputs:
            value.type = types.get(value.name or "", value.type)


_BLOCK_BYTES = 8_000_000  # read at a time


def constant_array(value: ir.Value | None) -> NDArray[Any] | None:
    """Value of an initializer or of a Constant node's output; None for any other value."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def blocks(tensor: ir.TensorProtocol) -> Iterator[tuple[int, NDArray[Any]]]:
    """Read a tensor in blocks of whole entries along its first axis.

    Blocks of external data are read from the file rather than mapped: pages of a mapping would
    stay resident until the whole mapping goes.

    Args:
        tensor: of rank 1 or more.

    Yields:
        (index of the first entry, the entries from there on), at most 8 MB or one entry each.
    """
    shape = extents(tensor)
    row = math.prod(shape[1:])
    step = max(_BLOCK_BYTES * 8 // max(row * tensor.dtype.bitwidth, 1), 1)
    spans = [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
    if isinstance(tensor, ir.ExternalTensor) and tensor.dtype.bitwidth >= 8 and row:
        dtype = tensor.dtype.numpy().newbyteorder("<")
        for start, stop in spans:
            offset = (tensor.offset or 0) + start * row * dtype.itemsize
            flat = np.fromfile(tensor.path, dtype, (stop - start) * row, offset=offset)
            yield start, flat.reshape(stop - start, *shape[1:])
    else:
        whole = tensor.numpy()
        for start, stop in spans:
            yield start, whole[start:stop]


class ConstantValues:
    """Reads constants by name; a derived one is computed in onnxruntime.

    Args:
        model: the graph they belong to.
        constants: its initializers and Constant outputs by name.
    """

    def __init__(self, model: ir.Model, constants: Mapping[str, ir.TensorProtocol]) -> None:
        self._model = model
        self._constants = constants
        self._opsets = [onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items()]
        self._ir_version = part_version(model)

    @cached_property
    def _producers(self) -> dict[str, ir.Node]:
        nodes = nodes_within(self._model.graph)
        return {value.name: node for node in nodes for value in node.outputs if value.name}

    def __contains__(self, name: str) -> bool:
        return name in self._constants

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Value of a constant.

        Raises:
            KeyError: when the tensor depends on the model's input.
        """
        if name in self._constants:
            return self._constants[name].numpy()
        return self._derive(name)

    def blocks(self, name: str) -> Iterator[tuple[int, NDArray[Any]]]:
        """Value of a constant of rank 1 or more, block by block along its first axis.

        Raises:
            KeyError: when the tensor depends on the model's input.
        """
        if name in self._constants:
            yield from blocks(self._constants[name])
        else:
            yield 0, self._derive(name)

    def _derive(self, name: str) -> NDArray[Any]:
        nodes: dict[int, ir.Node] = {}
        leaves: dict[str, ir.TensorProtocol] = {}
        waiting = [name]
        while waiting:
            leaf = waiting.pop()
            if leaf in self._constants:
                leaves[leaf] = self._constants[leaf]
                continue
            node = self._producers[leaf]
            if id(node) not in nodes:
                nodes[id(node)] = node
                waiting += [value.name for value in node.inputs if value and value.name]
        ordered = [node for node in self._producers.values() if id(node) in nodes]
        graph = onnx.helper.make_graph(
            [ir.to_proto(node) for node in dict.fromkeys(ordered)],
            "constant",
            [],
            [onnx.ValueInfoProto(name=name)],
            [_named(tensor, leaf) for leaf, tensor in leaves.items()],
        )
        proto = onnx.helper.make_model(
            graph, opset_imports=self._opsets, ir_version=self._ir_version
        )
        return run(open_session(proto, Runtime(threads=1), optimise=False), {})[name]


def _named(tensor: ir.TensorProtocol, name: str) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(tensor.numpy(), name)
