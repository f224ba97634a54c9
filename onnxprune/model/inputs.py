"""What a model wants to be fed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["InputSpec", "input_specs"]

_OPEN = ("", "?")


@dataclass(frozen=True)
class InputSpec:
    """One true input of a graph (an initializer with a default value is none).

    Attributes:
        name: the tensor's name.
        dtype: element type (ml_dtypes for bfloat16 and the like, object for strings); None when
            the input is no tensor (a sequence, optional or map) or declares no type.
        shape: per axis a size, a symbol, or None for unknown; None when even the rank is unknown.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...] | None


def input_specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """Describe the inputs a caller has to feed, in graph order."""
    return tuple(
        _spec(value) for value in model.graph.inputs if value.name not in model.graph.initializers
    )


def _spec(value: ir.Value) -> InputSpec:
    name = value.name or ""
    if not isinstance(value.type, ir.TensorType):
        return InputSpec(name, None, None)
    dtype = np.dtype(object) if value.dtype == ir.DataType.STRING else value.type.dtype.numpy()
    if value.shape is None:
        return InputSpec(name, dtype, None)
    return InputSpec(name, dtype, tuple(_extent(dim) for dim in value.shape))


def _extent(dim: int | ir.SymbolicDim) -> int | str | None:
    """Size or symbol; exporters also write -1 and "?" for what is open."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return dim.value if dim.value not in _OPEN else None
