"""The weights of a model, wherever they are stored: in the file, in a data file, without zeros.

Weights that are mostly zeros are stored as `sparse_initializer`. onnx-ir knows dense tensors only,
and so does onnxruntime: it fills in the zeros when it loads the file. A sparse tensor has 8 bytes
of position for every value, so it is smaller only where less than a third of a float32 tensor (a
fifth of a float16 one) is not zero.

Marks in Value.meta say which initializers came from a data file and which are to be stored sparse:
clone() copies them, they are never serialised.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from onnxprune.errors import InputError

INLINE_LIMIT = 2_000_000_000
"""Bytes of weights beyond which a model no longer fits one protobuf message (2 GiB)."""

# Marks an initializer that came from an external data file, so that it goes back to one even
# when its tensor has been replaced in between. Value.meta is copied by clone(), never serialised.
_DATA_FILE = "onnxprune.data_file"


def initializers(model: ir.Model) -> Iterator[ir.Value]:
    """Yield every initializer that has a tensor, subgraphs and functions included, in order."""
    graphs = list(model.graphs())
    for function in model.functions.values():
        graphs.extend(function.graph.subgraphs())
    for graph in graphs:
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value


def extents(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """Shape of a tensor; that of one that is there is made of numbers."""
    dims: Sequence[Any] = tensor.shape.dims
    return tuple(dims)


def initializer_bytes(value: ir.Value) -> int:
    """Bytes of an initializer's tensor; 0 for a value without one."""
    return 0 if value.const_value is None else value.const_value.nbytes


def external_initializers(model: ir.Model) -> list[ir.ExternalTensor]:
    """Return the tensors of the initializers that still live in an external data file."""
    return [
        value.const_value
        for value in initializers(model)
        if isinstance(value.const_value, ir.ExternalTensor)
    ]


def inline_bytes(model: ir.Model) -> int:
    """Return how many bytes of initializers a serialised model would carry in itself."""
    return sum(
        value.const_value.nbytes
        for value in initializers(model)
        if value.const_value is not None
        and not isinstance(value.const_value, ir.ExternalTensor)
        and value.const_value.dtype != ir.DataType.STRING
    )


def data_file_of(value: ir.Value) -> Path | None:
    """Return the external data file an initializer was read from, None for an inline one."""
    if isinstance(value.const_value, ir.ExternalTensor):
        return Path(value.const_value.path)
    path = value.meta.get(_DATA_FILE)
    return None if path is None else Path(path)


@contextlib.contextmanager
def swapped(tensors: Mapping[ir.Value, ir.TensorProtocol]) -> Iterator[None]:
    """Give initializers other tensors for the time of a with block."""
    before = {value: value.const_value for value in tensors}
    try:
        for value, tensor in tensors.items():
            value.const_value = tensor
        yield
    finally:
        for value, original in before.items():
            value.const_value = original


def adopt_external_data(model: ir.Model, name: str) -> None:
    """Check that all external data is there and inside the model's folder, without reading it.

    Initializers are marked with the file they came from (see `data_file_of`). External tensors in
    node attributes, which hardly any exporter writes, are read into memory.

    Args:
        model: a model of ours; its external tensors must have their base_dir.
        name: how messages call the model.

    Raises:
        InputError: for a data file that is missing, too short, or outside the model's folder.
    """
    for value in initializers(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            _check_external(value.const_value, name)
            value.meta[_DATA_FILE] = os.path.abspath(value.const_value.path)
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in ir.traversal.RecursiveGraphIterator(graph):
            for attribute in list(node.attributes.values()):
                if isinstance(attribute.value, ir.ExternalTensor):
                    tensor = attribute.value
                    _check_external(tensor, name)
                    copied = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)
                    node.attributes[attribute.name] = ir.AttrTensor(attribute.name, copied)


def _check_external(tensor: ir.ExternalTensor, name: str) -> None:
    location = os.fspath(tensor.location)
    subject = f"{name}: the external data of {tensor.name!r}"
    folder = os.path.realpath(os.fspath(tensor.base_dir) or ".")
    path = os.path.join(folder, location)
    real = os.path.realpath(path)
    if os.path.isabs(location) or os.path.commonpath([folder, real]) != folder:
        raise InputError(
            f"{subject} lies at {location!r}, outside the model's folder; "
            "copy the data file beside the model"
        )
    if not os.path.isfile(real):
        raise InputError(
            f"{subject} is missing: no file {path!r}; put the data file beside the model"
        )
    status = os.stat(real)
    if status.st_nlink > 1:
        raise InputError(f"{subject} lies in {path!r}, which is a hard link; make it a real copy")
    end = (tensor.offset or 0) + max(tensor.length or 0, tensor.nbytes)
    if (tensor.length is not None and tensor.length < tensor.nbytes) or status.st_size < end:
        available = min(status.st_size, (tensor.offset or 0) + (tensor.length or tensor.nbytes))
        raise InputError(
            f"{subject} is incomplete: {path!r} holds {available} bytes of the {end} needed; "
            "copy the data file again"
        )


_MARK = "onnxprune.sparse"
_POSITION_BYTES = 8  # an int64 index for each value
_OVERHEAD_BYTES = 64  # names and shapes of a sparse tensor, roughly
_LARGEST = 2**31  # entries; a damaged shape must not fill the memory


def mark_sparse(value: ir.Value, wanted: bool = True) -> None:
    """Have an initializer stored without its zeros, where that makes the file smaller."""
    if wanted:
        value.meta[_MARK] = True
    else:
        value.meta.pop(_MARK, None)


def sparse_values(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the initializers of the main graph that will be stored without their zeros."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if _MARK not in value.meta or tensor is None or isinstance(tensor, ir.ExternalTensor):
            continue
        stays = value.is_graph_input() or value.is_graph_output()
        if stays or tensor.dtype.bitwidth % 8 or not tensor.dtype.is_floating_point():
            continue
        left = np.count_nonzero(tensor.numpy())
        each = tensor.dtype.bitwidth // 8 + _POSITION_BYTES
        if left and left * each + _OVERHEAD_BYTES < tensor.nbytes:
            yield value


def store_sparse(model: ir.Model, proto: onnx.ModelProto) -> onnx.ModelProto:
    """Move what is to be stored without its zeros; changes and returns the message.

    Args:
        model: carries the marks.
        proto: its message.
    """
    chosen = {value.name for value in sparse_values(model)}
    if not chosen:
        return proto
    dense = [tensor for tensor in proto.graph.initializer if tensor.name not in chosen]
    for tensor in proto.graph.initializer:
        if tensor.name in chosen:
            proto.graph.sparse_initializer.append(_sparse(tensor))
    kept = onnx.GraphProto(initializer=dense)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept.initializer)
    return proto


def fill_in(proto: onnx.ModelProto, name: str) -> set[str]:
    """Turn the sparse initializers of the main graph into dense ones, in place.

    Args:
        proto: a model as it was read.
        name: how messages call it.

    Returns:
        Their names.

    Raises:
        InputError: for one that is damaged.
    """
    names = set()
    for sparse in proto.graph.sparse_initializer:
        called = sparse.values.name
        try:
            dense = _dense(sparse)
        except Exception as error:  # numpy and onnx raise several types for damaged tensors
            raise InputError(
                f"{name}: the sparse initializer {called or '(unnamed)'!r} is damaged; "
                "export the model again"
            ) from error
        proto.graph.initializer.append(dense)
        names.add(called)
    del proto.graph.sparse_initializer[:]
    return names


def mark_filled(model: ir.Model, names: set[str]) -> None:
    """Have initializers stored as they were read."""
    for name in names:
        mark_sparse(model.graph.initializers[name])


def _sparse(tensor: onnx.TensorProto) -> onnx.SparseTensorProto:
    flat = numpy_helper.to_array(tensor).reshape(-1)
    places = np.flatnonzero(flat).astype(np.int64)
    values = numpy_helper.from_array(flat[places], tensor.name)
    values.data_type = tensor.data_type
    return onnx.SparseTensorProto(
        values=values, indices=numpy_helper.from_array(places), dims=tensor.dims
    )


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """Both forms of positions: [n] into the flat tensor, or [n, rank].

    Raises:
        ValueError: for positions outside the tensor, or without a name.
    """
    values, places = map(numpy_helper.to_array, (sparse.values, sparse.indices))
    shape = tuple(sparse.dims)
    if places.ndim == 2:
        places = np.ravel_multi_index(tuple(places.T), shape)
    size = prod(shape)
    fits = places.shape == values.shape and (places >= 0).all() and size <= _LARGEST
    if not sparse.values.name or not fits:
        raise ValueError("values, positions, size and name do not fit")
    array = np.zeros(size, values.dtype)
    array[places] = values
    dense = numpy_helper.from_array(array.reshape(shape), sparse.values.name)
    dense.data_type = sparse.values.data_type
    return dense
