"""Latency measured in onnxruntime: two models in alternation, so that both see the same machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.model.runtime import open_session, run

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir
    import onnxruntime as ort
    from numpy.typing import NDArray

    from onnxprune.model.runtime import Runtime

__all__ = ["Latency", "measure_pair"]

_LEAST_PAIRS = 5
_MOST_PAIRS = 200
_SHORTEST = 2e-3


@dataclass(frozen=True)
class Latency:
    """Median times of two models on one feed.

    Attributes:
        original: seconds per run.
        result: seconds per run.
        ratio: median of result / original over paired runs.
        low: lower quartile of that ratio.
        high: upper quartile.
        pairs: number of paired runs.
    """

    original: float
    result: float
    ratio: float
    low: float
    high: float
    pairs: int


def measure_pair(
    original: ir.Model,
    result: ir.Model,
    feed: Mapping[str, NDArray[Any]],
    runtime: Runtime,
    seconds: float = 0.5,
) -> Latency:
    """Time two models in alternation.

    Args:
        original: the reference.
        result: the model compared with it.
        feed: what both run on.
        runtime: providers and threads, the user's.
        seconds: time to spend; at least five pairs are run, after one warm-up each.
    """
    sessions = open_session(original, runtime), open_session(result, runtime)
    repeats = [_repeats(session, feed) for session in sessions]
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(times) < _LEAST_PAIRS or (time.perf_counter() < end and len(times) < _MOST_PAIRS):
        first, second = (_time(s, feed, n) for s, n in zip(sessions, repeats, strict=True))
        times.append((first, second))
    both = np.array(times)
    ratios = both[:, 1] / both[:, 0]
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
    before, after = np.median(both, axis=0).tolist()
    return Latency(before, after, middle, low, high, len(times))


def _repeats(session: ort.InferenceSession, feed: Mapping[str, NDArray[Any]]) -> int:
    """Runs per measurement, so that the clock is not what is measured; also warms up."""
    _time(session, feed, 1)
    return max(1, int(_SHORTEST / max(_time(session, feed, 1), 1e-6)))


def _time(session: ort.InferenceSession, feed: Mapping[str, NDArray[Any]], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run(session, feed)
    return (time.perf_counter() - start) / repeats
