"""Weights, scales and zero points for tests of quantised graphs."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike, NDArray

ONE_STEP = 2e-2
"""Rounding to 8 bits may fall either way when sums are formed in another order."""


def whole(*shape: int, dtype: DTypeLike = np.int8, seed: int = 0) -> NDArray[np.generic]:
    """Weights over the whole range of an 8-bit type."""
    limits = np.iinfo(dtype)  # type: ignore[type-var]
    rng = np.random.default_rng(seed)
    return rng.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)


def scales(size: int) -> NDArray[np.float32]:
    return np.linspace(0.004, 0.008, size, dtype=np.float32)


def points(size: int, dtype: DTypeLike = np.uint8) -> NDArray[np.generic]:
    return np.linspace(90, 150, size).astype(dtype)


LEVELS = {
    "xs": np.float32(0.03),
    "xz": np.uint8(128),
    "hs": np.float32(0.1),
    "hz": np.uint8(100),
    "ys": np.float32(0.3),
    "yz": np.uint8(140),
}
"""Scales and zero points of activations x, h and y."""
INPUT_LEVELS = {name: LEVELS[name] for name in ("xs", "xz")}


CONV_WEIGHTS: dict[str, object] = {
    "a": whole(8, 4, 1, 1),
    "b": whole(3, 8, 1, 1, seed=1),
    "c": np.linspace(-2000, 2000, 8).astype(np.int32),
    "as": np.float32(0.01),
    "bs": np.float32(0.01),
    "az": np.int8(0),
    "bz": np.int8(0),
}
SHIFTED_CONV_WEIGHTS = CONV_WEIGHTS | {
    "a": whole(8, 4, 1, 1, dtype=np.uint8),
    "b": whole(3, 8, 1, 1, dtype=np.uint8, seed=1),
    "az": np.uint8(130),
    "bz": np.uint8(110),
}
MATMUL_WEIGHTS: dict[str, object] = {
    "a": whole(4, 8, dtype=np.uint8),
    "b": whole(8, 3, dtype=np.uint8, seed=1),
    "as": np.float32(0.01),
    "bs": np.float32(0.01),
    "az": np.uint8(130),
    "bz": np.uint8(110),
}
HELD = {"a": np.uint8(130), "b": np.uint8(110)}
