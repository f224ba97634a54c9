"""How far two runs of a model are apart, for any kind of output onnxruntime returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["largest_difference", "relative_difference"]


def relative_difference(reference: Any, other: Any, least: float = 0.0) -> float:
    """Largest absolute difference over the largest absolute reference value.

    Args:
        reference: an output: an array of any dtype, or a list or mapping of such (sequences, maps).
        other: the same output of another model.
        least: what an array is taken to reach at least.

    Returns:
        0 for equal values; for integers, booleans and strings the fraction of unequal entries;
        infinity when shapes differ or only one of the two is NaN or infinite somewhere.
    """
    if isinstance(reference, (list, tuple)):
        if not isinstance(other, (list, tuple)) or len(reference) != len(other):
            return np.inf
        found = map(relative_difference, reference, other, [least] * len(reference))
        return max(found, default=0.0)
    if isinstance(reference, dict):
        if not isinstance(other, dict) or reference.keys() != other.keys():
            return np.inf
        pairs = ((value, other[key]) for key, value in reference.items())
        return max((relative_difference(a, b, least) for a, b in pairs), default=0.0)
    return _array_difference(np.asarray(reference), np.asarray(other), least)


def largest_difference(
    reference: Mapping[str, Any], other: Mapping[str, Any], least: Mapping[str, float] | None = None
) -> float:
    """Largest `relative_difference` over all outputs of the reference.

    Args:
        reference: outputs by name.
        other: the same of another model.
        least: what some outputs are taken to reach at least.
    """
    known = least or {}
    return max(
        (
            relative_difference(value, other.get(name), known.get(name, 0.0))
            for name, value in reference.items()
        ),
        default=0.0,
    )


def _array_difference(
    reference: np.ndarray[Any, Any], other: np.ndarray[Any, Any], least: float
) -> float:
    if reference.shape != other.shape:
        return np.inf
    if reference.size == 0:
        return 0.0
    if reference.dtype.kind in "iubOSU":
        return float(np.mean(reference != other))
    first, second = reference.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(first)
    if not np.array_equal(finite, np.isfinite(second)):
        return np.inf
    if not np.array_equal(first[~finite], second[~finite], equal_nan=True):
        return np.inf
    if not finite.any():
        return 0.0
    scale = max(np.abs(first[finite]).max(), least)
    error = np.abs(first[finite] - second[finite]).max()
    return float(error / scale) if scale > 0 else float(error)
