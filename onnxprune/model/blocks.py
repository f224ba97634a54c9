"""Tensors read block by block, so that a large one never lies in memory as a whole."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["blocks"]

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
