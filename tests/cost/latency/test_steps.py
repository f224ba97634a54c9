"""Steps are found in times, and not where there are none."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.cost.latency.grid import slower_between, step_of_times, widths_to_time, worthwhile


def staircase(full: int, step: int, fixed: float = 1.0, noise: float = 0.0) -> dict[int, float]:
    rng = np.random.default_rng(0)
    return {
        width: (fixed + -(-width // step) * step) * (1 + noise * rng.random())
        for width in widths_to_time(full)
    }


@pytest.mark.parametrize("step", [1, 8, 16, 32])
@pytest.mark.parametrize("fixed", [0.0, 10.0])
@pytest.mark.parametrize("full", [64, 100, 768])
def test_the_step_of_a_staircase_is_found(step: int, fixed: float, full: int) -> None:
    assert step_of_times(staircase(full, step, fixed)) == step


def test_a_staircase_so_fine_that_it_can_hardly_be_seen_is_none() -> None:
    assert step_of_times(staircase(64, 4)) == 4
    assert step_of_times(staircase(64, 4, fixed=100.0)) == 1


@pytest.mark.parametrize("step", [1, 8, 16])
def test_two_percent_of_noise_do_not_matter(step: int) -> None:
    assert step_of_times(staircase(256, step, noise=0.02)) == step


def test_a_constant_time_has_no_step() -> None:
    assert step_of_times(dict.fromkeys(widths_to_time(64), 1.0)) == 1


def test_widths_that_another_kernel_computes_do_not_hide_the_staircase() -> None:
    times = staircase(64, 16)
    slow = {width: seconds * (1.3 if width % 4 else 1.0) for width, seconds in times.items()}
    assert step_of_times(slow) == 16
    assert slower_between(slow)
    assert not slower_between(times)


def test_slower_between_without_a_staircase_asks_for_four() -> None:
    times = {width: width * (1.5 if width % 4 else 1.0) for width in widths_to_time(64)}
    assert step_of_times(times) == 4


@pytest.mark.parametrize("full", [1, 3, 15])
def test_an_axis_shorter_than_a_block_is_not_looked_at(full: int) -> None:
    assert widths_to_time(full) == ()
    assert step_of_times({}) == 1


@pytest.mark.parametrize("full", [16, 24, 40, 64, 1000])
def test_widths_to_time_fit_into_the_axis(full: int) -> None:
    widths = widths_to_time(full)
    assert all(0 < width <= full for width in widths)
    assert list(widths) == sorted(set(widths), reverse=True)


def test_rounding_is_worth_it_where_half_a_step_is_a_share_of_the_width() -> None:
    assert worthwhile(16, 64, slower=False) == 16
    assert worthwhile(16, 3072, slower=False) == 1
    assert worthwhile(16, 3072, slower=True) == 16
    assert worthwhile(1, 64, slower=False) == 1
