"""How many bytes a model takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxprune.model.protobuf import hollow, to_proto
from onnxprune.model.save import external_values
from onnxprune.model.sparse import store_sparse
from onnxprune.model.tensors import external_initializers, swapped

if TYPE_CHECKING:
    from onnxprune.model.load import LoadedModel

__all__ = ["loaded_bytes", "model_bytes"]


def model_bytes(model: ir.Model) -> int:
    """Bytes of the model when saved, external data included; weights outside are not read."""
    outside = external_values(model)
    with swapped({value: hollow(value) for value in outside}):
        inside = int(store_sparse(model, to_proto(model)).ByteSize())
    tensors = (value.const_value for value in outside)
    return inside + sum(tensor.nbytes for tensor in tensors if tensor is not None)


def loaded_bytes(loaded: LoadedModel) -> int:
    """Bytes of a model as it was given: its file with external data, or what saving would take."""
    if loaded.path is None:
        return model_bytes(loaded.model)
    outside = sum(tensor.nbytes for tensor in external_initializers(loaded.model))
    return loaded.path.stat().st_size + outside
