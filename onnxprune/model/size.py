"""How many bytes a model takes."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.model.protobuf import to_proto
from onnxprune.model.tensors import INLINE_LIMIT, external_initializers, inline_bytes

__all__ = ["model_bytes"]


def model_bytes(model: ir.Model) -> int:
    """Bytes of the model when saved, external data included."""
    outside = sum(tensor.nbytes for tensor in external_initializers(model))
    if inline_bytes(model) > INLINE_LIMIT:
        return outside + inline_bytes(model)
    return outside + int(to_proto(model).ByteSize())
