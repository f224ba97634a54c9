"""A model of an old operator set in one whose operators gradients can be written in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import version_converter

from onnxprune.model.execution import is_heavy
from onnxprune.model.protobuf import from_proto, to_proto

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["upgraded"]

_OLDEST = 11
_WANTED = 13


def upgraded(model: ir.Model) -> ir.Model:
    """The same model, or a copy in operator set 13 where it is older than 11.

    Before 11 Slice takes no computed places and Equal no floats. What the converter cannot convert,
    or is too large for it, stays as it is.
    """
    if model.opset_imports.get("", _WANTED) >= _OLDEST or is_heavy(model):
        return model
    try:
        return from_proto(version_converter.convert_version(to_proto(model), _WANTED))
    except RuntimeError:
        return model
