"""Does onnxruntime load a model in the form in which it will be stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.errors import RuntimeFailure
from onnxprune.model.protobuf import to_proto
from onnxprune.model.runtime import open_session
from onnxprune.model.sparse import mark_sparse, sparse_values, store_sparse
from onnxprune.model.tensors import external_initializers

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxprune.model.runtime import Runtime

__all__ = ["keep_loadable"]


def keep_loadable(model: ir.Model, runtime: Runtime) -> bool:
    """Have weights stored with their zeros where onnxruntime does not take them without.

    Args:
        model: one that onnxruntime loads; its marks may change.
        runtime: how to load it.

    Returns:
        Whether all marks stayed.
    """
    chosen = list(sparse_values(model))
    if not chosen or external_initializers(model):
        return True
    try:
        open_session(store_sparse(model, to_proto(model)), runtime)
    except RuntimeFailure:
        for value in chosen:
            mark_sparse(value, wanted=False)
        return False
    return True
