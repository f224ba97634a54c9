"""Weights that are mostly zeros, stored as `sparse_initializer`.

onnx-ir knows dense tensors only, and so does onnxruntime: it fills in the zeros when it loads the
file. A sparse tensor has 8 bytes of position for every value, so that it is smaller only where less
than a third of a float32 tensor (a fifth of a float16 one) is left.

Value.meta marks which initializers are to be stored so: it is copied by clone(), never serialised.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from onnxprune.errors import InputError

_MARK = "onnxprune.sparse"
_POSITION_BYTES = 8
_OVERHEAD_BYTES = 64
_LARGEST = 2**31


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
    found = set()
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
        found.add(called)
    del proto.graph.sparse_initializer[:]
    return found


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
    values, places = (numpy_helper.to_array(one) for one in (sparse.values, sparse.indices))
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
