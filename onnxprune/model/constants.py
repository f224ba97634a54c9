"""Values of constants, those behind Transpose, Identity, Cast and the like included."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.model.runtime import Runtime
from onnxprune.model.session import open_session, run

_BLOCK_BYTES = 8_000_000


def blocks(tensor: ir.TensorProtocol) -> Iterator[tuple[int, NDArray[Any]]]:
    """Read a tensor in blocks of whole entries along its first axis.

    Blocks of external data are read from the file rather than mapped: pages of a mapping would
    stay resident until the whole mapping goes.

    Args:
        tensor: of rank 1 or more.

    Yields:
        (index of the first entry, the entries from there on), at most 8 MB or one entry each.
    """
    shape = tuple(tensor.shape.numpy())
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
    """Reads constants by name; a derived one is computed in onnxruntime from what it is made of.

    Args:
        model: the graph they belong to.
        constants: its initializers and Constant outputs by name.
    """

    def __init__(self, model: ir.Model, constants: Mapping[str, ir.TensorProtocol]) -> None:
        self._constants = constants
        self._producers = {
            value.name: node for node in model.graph for value in node.outputs if value.name
        }
        self._opsets = [onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items()]
        self._ir_version = model.ir_version

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
            one = waiting.pop()
            if one in self._constants:
                leaves[one] = self._constants[one]
                continue
            node = self._producers[one]
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
