"""Times of two models: what is made of them, and that both are run."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.oracle import ONE_THREAD, parse

from onnxprune.cost.latency.measure import (
    collect_pairs,
    compare_times,
    measure_pair,
    median_interval,
)
from onnxprune.errors import RuntimeFailure
from onnxprune.model.load import load


@pytest.mark.parametrize(
    ("count", "low", "high"),
    # Conover, Practical Nonparametric Statistics: order statistics that hold the median at 95 %
    [(6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (15, 4, 12), (20, 6, 15), (25, 8, 18)],
)
def test_the_interval_of_a_median_is_that_of_the_sign_test(count: int, low: int, high: int) -> None:
    values = np.random.default_rng(0).permutation(np.arange(1.0, count + 1)).tolist()
    assert median_interval(values) == (low, high)


def test_the_interval_of_few_values_is_their_range() -> None:
    low, high = median_interval([float(n) for n in range(10_000)])
    assert (low, high) == pytest.approx((5000 - 98, 5000 + 98), abs=2)
    assert median_interval([3.0]) == (3.0, 3.0)
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [median_interval(rng.exponential(size=21).tolist()) for _ in range(2000)]
    holds = np.mean([low <= np.log(2) <= high for low, high in intervals])
    assert 0.94 < holds < 0.985


def test_the_ratio_is_that_of_paired_runs() -> None:
    # the machine becomes three times slower half way: the pairs do not notice
    latency = compare_times([(2.0, 1.0)] * 10 + [(6.0, 3.0)] * 10)
    assert (latency.ratio, latency.low, latency.high, latency.interval) == (
        0.5,
        0.5,
        0.5,
        (0.5, 0.5),
    )
    assert (latency.original, latency.result, latency.pairs) == (4.0, 2.0, 20)
    assert latency.noise == 1.0  # the middle half reaches from 2 to 6, the median is 4


def test_an_outlier_moves_nothing() -> None:
    latency = compare_times([(1.0, 0.5)] * 19 + [(1.0, 50.0)])
    assert (latency.ratio, latency.interval, latency.noise) == (0.5, (0.5, 0.5), 0.0)


def test_before_after_and_ratio_agree() -> None:
    # the machine is slow in half of the pairs, in which the result gains less
    latency = compare_times([(2.0, 1.0)] * 11 + [(10.0, 8.0)] * 10)
    assert latency.ratio == 0.5
    assert latency.result / latency.original == latency.ratio
    # medians apart would say 1.0 of 2.0 or 8.0 of 10.0, by one pair
    other = compare_times([(2.0, 1.0)] * 10 + [(10.0, 8.0)] * 11)
    assert (other.original, other.result, other.ratio) == (10.0, 8.0, 0.8)


@pytest.mark.parametrize(("spread", "reliable"), [(0.0, True), (0.09, True), (0.2, False)])
def test_a_wide_interval_is_not_reliable(spread: float, reliable: bool) -> None:
    times = [(1.0, 0.5 * (1 + spread * (-1) ** n)) for n in range(20)]
    assert compare_times(times).reliable == reliable
    # 33 to 845 %: what a busy machine gives is marked
    assert not compare_times([(1.0, ratio) for ratio in (0.33, 0.5, 0.6, 2.0, 4.0, 8.45)]).reliable


def test_pairs_are_collected_again_where_the_machine_was_busy() -> None:
    busy = [[(1.0, 0.3), (1.0, 0.9)] * 4]
    quiet = [[(1.0, 0.5)] * 20, [(1.0, 0.5)] * 20]
    rounds = iter([busy, quiet, quiet])
    latency = collect_pairs(lambda: next(rounds), 2)
    assert (latency.pairs, latency.ratio, latency.reliable) == (48, 0.5, True)
    assert len(list(rounds)) == 1
    latency = collect_pairs(iter([quiet]).__next__, 2)
    assert latency.pairs == 40
    latency = collect_pairs(iter([busy, busy]).__next__, 2)
    assert (latency.pairs, latency.reliable) == (16, False)


TEXT = """<ir_version: 8, opset_import: ["": 17]>
    g (float[2, 4] x) => (float[2, 4] y) { y = Relu(x) }"""


def test_two_models_are_run_in_pairs() -> None:
    model = load(parse(TEXT)).model
    latency = measure_pair(model, model, {"x": np.ones((2, 4), np.float32)}, ONE_THREAD, 0.0)
    assert (latency.pairs, latency.batch) == (6, 2)
    assert latency.original > 0
    assert 0 < latency.interval[0] <= latency.ratio <= latency.interval[1]
    assert latency.low <= latency.ratio <= latency.high


def test_a_feed_that_does_not_fit_is_refused() -> None:
    model = load(parse(TEXT)).model
    with pytest.raises(RuntimeFailure):
        measure_pair(model, model, {"x": np.ones((3, 3), np.float32)}, ONE_THREAD, 0.0)
