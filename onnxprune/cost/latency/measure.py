"""Latency measured in onnxruntime: models in alternation, so that all see the same machine.

The ratio of two models is the median over paired runs. Its confidence interval is that of the sign
test: between which order statistics of the ratios the true median lies, whatever the distribution
of the noise (Conover, Practical Nonparametric Statistics, 3.2). The time of the result is that
ratio times the median of the original's runs, so that the three figures agree::

    ratio = median(b_i / a_i)        before = median(a_i)        after = ratio * before
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, lgamma, log
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from onnxprune.model.execution import open_session, run
from onnxprune.model.runtime import Runtime

_LEAST_PAIRS, _ENOUGH_PAIRS, _MOST_PAIRS = 6, 25, 400  # in each session
_SHORTEST = 2e-3  # seconds of a timed run; shorter models are run several times
_SESSIONS = 3  # of each model
_CONFIDENCE = 0.95
_CLOSE_ENOUGH = 0.005  # half width of the interval of the ratio
_RELIABLE = 0.25  # width of the interval over the ratio
_LONGER = 2  # times as long where the interval is wider than that


@dataclass(frozen=True)
class Latency:
    """Times of two models on one feed, from the same paired runs.

    Attributes:
        original: seconds per run, the median.
        result: seconds per run: `original` times `ratio`.
        ratio: median of result / original over paired runs.
        low: lower quartile of that ratio.
        high: upper quartile.
        pairs: number of paired runs.
        interval: where the median of the ratio lies with 95 % confidence.
        noise: spread of the original's own runs, the range of the middle half over the median.
        batch: rows of the feed.
    """

    original: float
    result: float
    ratio: float
    low: float
    high: float
    pairs: int
    interval: tuple[float, float] = (0.0, float("inf"))
    noise: float = 0.0
    batch: int = 0

    @property
    def uncertainty(self) -> float:
        """Width of the interval over the ratio."""
        low, high = self.interval
        return (high - low) / self.ratio

    @property
    def reliable(self) -> bool:
        """Whether the interval is no wider than a quarter of the ratio.

        Otherwise the machine was busy with something else, and neither figure nor interval say
        what the model gains.
        """
        return self.uncertainty <= _RELIABLE

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {**vars(self), "interval": list(self.interval), "reliable": self.reliable}


def measure_pair(
    original: ir.Model,
    result: ir.Model,
    feed: Mapping[str, NDArray[Any]],
    runtime: Runtime,
    seconds: float = 0.5,
) -> Latency:
    """Time two models in alternation.

    Which of the two goes first changes from pair to pair, so that neither gains from a warm cache
    or a drifting clock. Where memory and threads come to lie can make a session faster or slower
    for good, so the pairs are spread over three sessions of each. A session ends early when the
    interval of its ratios is within half a percent. Where the interval of all is not reliable, the
    time is spent once more.

    Args:
        original: the reference.
        result: the model compared with it.
        feed: what both run on.
        runtime: providers and threads, the user's.
        seconds: time to spend at most, opening and warm-up excluded, or twice that; in each session
            at least six pairs are run. Models that take longer than that to open are opened once.

    Raises:
        RuntimeFailure: when onnxruntime refuses one of the models, or the feed.
    """

    def pairs() -> Iterator[list[tuple[float, float]]]:
        for _ in range(_SESSIONS):
            start = time.perf_counter()
            sessions = [open_session(m, runtime, alternating=True) for m in (original, result)]
            opening = time.perf_counter() - start
            yield _paired_times(sessions, feed, seconds / _SESSIONS)
            if opening > seconds:
                break

    rows = [array.shape[0] for array in feed.values() if array.ndim]
    latency = collect_pairs(pairs, _LONGER if seconds else 1)
    return replace(latency, batch=rows[0] if rows else 1)


def collect_pairs(
    pairs: Callable[[], Iterable[Sequence[tuple[float, float]]]], rounds: int
) -> Latency:
    """Collect paired times until the interval of their ratio is reliable.

    Args:
        pairs: measures and gives paired times, one list for each session.
        rounds: how often it is called at most.
    """
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        for session in pairs():
            times += session
        if compare_times(times).reliable:
            break
    return compare_times(times)


def _paired_times(
    sessions: Sequence[ort.InferenceSession], feed: Mapping[str, NDArray[Any]], seconds: float
) -> list[tuple[float, float]]:
    repeats = [_repeats(session, feed) for session in sessions]
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(times) < _LEAST_PAIRS or (time.perf_counter() < end and len(times) < _MOST_PAIRS):
        pair = [0.0, 0.0]
        for which in (0, 1) if len(times) % 2 else (1, 0):
            pair[which] = _time(sessions[which], feed, repeats[which])
        times.append((pair[0], pair[1]))
        if len(times) >= _ENOUGH_PAIRS and len(times) % _LEAST_PAIRS == 0 and _settled(times):
            break
    return times


def compare_times(times: Sequence[tuple[float, float]]) -> Latency:
    """Summarise paired times.

    Args:
        times: seconds of the original and of the result, one entry for each pair.
    """
    both = np.array(times, np.float64)
    ratios = both[:, 1] / both[:, 0]
    low, ratio, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
    below, before, above = np.quantile(both[:, 0], [0.25, 0.5, 0.75]).tolist()
    return Latency(
        original=before,
        result=before * ratio,
        ratio=ratio,
        low=low,
        high=high,
        pairs=len(both),
        interval=median_interval(ratios.tolist()),
        noise=(above - below) / before,
    )


def steadier(threads: int) -> str:
    """What makes a measurement more reliable than it was, as part of a sentence.

    Args:
        threads: that it was made with; 0 for as many as onnxruntime decides.
    """
    single = "" if threads == 1 else "give --threads 1, "
    return f"close other programs, {single}or time a larger --batch, and run again"


def median_interval(
    values: Sequence[float], confidence: float = _CONFIDENCE
) -> tuple[float, float]:
    """Confidence interval of a median, by order statistics.

    The median lies between the k-th smallest and the k-th largest of n values with probability
    1 - 2 P(Binomial(n, 1/2) < k); the largest k that keeps the confidence is taken. With fewer than
    six values none keeps 95 %, and the interval is their range.

    Args:
        values: at least one.
        confidence: between 0 and 1.
    """
    ordered, count = sorted(values), len(values)
    outside, rank = 2 * _share_of(count, 0), 0
    while rank < (count - 1) // 2:
        outside += 2 * _share_of(count, rank + 1)
        if outside > 1 - confidence:
            break
        rank += 1
    return ordered[rank], ordered[count - 1 - rank]


def _share_of(count: int, heads: int) -> float:
    """Probability of so many heads when a fair coin is thrown so often."""
    ways = lgamma(count + 1) - lgamma(heads + 1) - lgamma(count - heads + 1)
    return exp(ways - count * log(2))


def _settled(times: Sequence[tuple[float, float]]) -> bool:
    ratios = [after / before for before, after in times]
    low, high = median_interval(ratios)
    return (high - low) / 2 <= _CLOSE_ENOUGH * low


def _repeats(session: ort.InferenceSession, feed: Mapping[str, NDArray[Any]]) -> int:
    """Runs per measurement, so that the clock is not what is measured; also warms up."""
    _time(session, feed, 2)
    return max(1, int(_SHORTEST / max(_time(session, feed, 1), 1e-6)))


def _time(session: ort.InferenceSession, feed: Mapping[str, NDArray[Any]], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run(session, feed)
    return (time.perf_counter() - start) / repeats
