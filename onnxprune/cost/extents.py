"""The sizes of dynamic axes that costs refer to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from onnxprune.model.inputs import InputSpec


def dynamic_extents(specs: Sequence[InputSpec], feed: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Extents of the axes of the inputs whose size the model leaves open, the batch first.

    Args:
        specs: what the model declares of its inputs.
        feed: what it was run on.

    Returns:
        "batch", the first axis of the first input, whether it is open or not; every other open axis
        by its symbol, or as `input[axis]` where it has none.
    """
    shapes = {name: array.shape for name, array in feed.items()}
    first = next(iter(shapes.values()), ())
    found = {"batch": first[0] if first else 1}
    rows = {spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], str)}
    for spec in specs:
        traced = shapes.get(spec.name, ())
        declared = spec.shape if spec.shape is not None else (None,) * len(traced)
        for axis, (extent, size) in enumerate(zip(declared, traced, strict=True)):
            if axis > 0 and not isinstance(extent, int) and (extent is None or extent not in rows):
                found.setdefault(extent or f"{spec.name}[{axis}]", size)
    return found
