"""How many bytes a model takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxprune.model.protobuf import to_proto
from onnxprune.model.tensors import INLINE_LIMIT, external_initializers, inline_bytes

if TYPE_CHECKING:
    from onnxprune.model.load import LoadedModel

__all__ = ["loaded_bytes", "model_bytes"]


def model_bytes(model: ir.Model) -> int:
    """Bytes of the model when saved, external data included."""
    outside = sum(tensor.nbytes for tensor in external_initializers(model))
    if inline_bytes(model) > INLINE_LIMIT:
        return outside + inline_bytes(model)
    return outside + int(to_proto(model).ByteSize())


def loaded_bytes(loaded: LoadedModel) -> int:
    """Bytes of a model as it was given: its file with external data, or what saving would take."""
    if loaded.path is None:
        return model_bytes(loaded.model)
    outside = sum(tensor.nbytes for tensor in external_initializers(loaded.model))
    return loaded.path.stat().st_size + outside
