"""The weights of a model, wherever they live: listed, checked and swapped, never read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

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
