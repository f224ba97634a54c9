"""Times between the widths that were timed, where the truth is a formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.kernel_clock import fallback, install, smooth, staircase
from helpers.oracle import ONE_THREAD, parse, traced

from onnxprune.cost.latency.cache import TimingCache, machine
from onnxprune.cost.latency.grid import KernelTimes
from onnxprune.cost.latency.probe import kernel_of
from onnxprune.model.runtime import Runtime


def conv(
    inner: int, outer: int, folder: Path | None = None, runtime: Runtime = ONE_THREAD
) -> KernelTimes:
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[1, {inner}, 2, 2] x) => (float[a, b, c, d] y) {{ y = Conv(x, w) }}"""
    one = traced(parse(text, {"w": np.ones((outer, inner, 1, 1), np.float32)}))
    facts = one.coupling.facts
    node = next(iter(one.model.graph))
    kernel = kernel_of(
        node, facts.first.shapes.__getitem__, facts.constants, one.model.opset_imports
    )
    assert kernel is not None
    return KernelTimes(kernel, runtime, TimingCache(folder), machine(runtime))


WIDTHS = [(128, 96), (128, 95), (100, 50), (64, 64), (60, 33), (17, 96), (16, 16), (112, 81)]


@pytest.mark.parametrize("widths", WIDTHS)
def test_a_staircase_is_followed_exactly(
    widths: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, staircase)
    assert conv(128, 96).seconds((1, *widths)) == pytest.approx(staircase((1, *widths)))


@pytest.mark.parametrize("widths", [*WIDTHS, (5, 4)])
def test_a_smooth_kernel_is_followed_exactly(
    widths: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, smooth)
    assert conv(128, 96).seconds((1, *widths)) == pytest.approx(smooth((1, *widths)))


@pytest.mark.parametrize("widths", [*WIDTHS, (127, 96), (99, 50), (61, 94)])
def test_widths_that_a_slower_kernel_computes_are_told_apart(
    widths: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, fallback)
    assert conv(128, 96).seconds((1, *widths)) == pytest.approx(fallback((1, *widths)))


@pytest.mark.parametrize("width", [1, 2, 7, 23, 30])
def test_every_width_of_a_short_axis_is_timed(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = install(monkeypatch, lambda widths: 1e-4 * (1 + widths[1] ** 2 % 7))
    assert conv(30, 64).seconds((1, width, 64)) == clock.formula((1, width, 64))


def test_steps_and_multiples(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, staircase)
    times = conv(128, 2048)
    assert (times.step(1), times.step(2)) == (16, 16)
    assert times.multiple(1) == 16
    assert times.multiple(2) == 1  # a block of 16 is less than a percent of 2048

    install(monkeypatch, fallback)
    assert conv(2048, 64).multiple(1) == 16  # but widths between would be twice as slow

    install(monkeypatch, smooth)
    assert (conv(128, 96).multiple(1), conv(128, 96).multiple(2)) == (1, 1)


def test_steps_are_found_on_one_thread_and_times_on_those_of_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = install(monkeypatch, staircase)
    times = conv(128, 96, runtime=Runtime(threads=2))
    times.step(1)
    assert {runtime.threads for runtime in clock.runtimes} == {1}
    clock.runtimes.clear()
    times.seconds((1, 64, 96))
    assert {runtime.threads for runtime in clock.runtimes} == {2}


def test_a_kernel_too_short_for_the_clock_computes_several_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = install(monkeypatch, lambda widths: 4e-6)
    conv(128, 96).step(1)
    assert [kernel.shapes[0][0] for kernel in clock.kernels] == [1] + [16] * 11


def test_the_original_costs_one_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = install(monkeypatch, staircase)
    conv(128, 96).seconds((1, 128, 96))
    assert clock.asked == [(1, 128, 96)]


def test_many_questions_cost_few_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = install(monkeypatch, staircase)
    times = conv(512, 512)
    for inner in range(4, 513, 4):
        for outer in range(3, 513, 51):
            times.seconds((1, inner, outer))
    assert len(clock.asked) < 80
    assert len(clock.asked) == len(set(clock.asked))


def test_nothing_is_timed_twice_on_one_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, staircase)
    first = conv(128, 96, tmp_path).seconds((1, 100, 50))
    clock = install(monkeypatch, smooth)
    assert conv(128, 96, tmp_path).seconds((1, 100, 50)) == first
    assert clock.asked == []


def test_an_interrupted_table_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(widths: tuple[int, ...]) -> float:
        if len(clock.asked) > 5:
            raise KeyboardInterrupt
        return staircase(widths)

    clock = install(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        conv(128, 96, tmp_path).seconds((1, 100, 50))
    done = clock.asked[:-1]
    clock = install(monkeypatch, staircase)
    assert conv(128, 96, tmp_path).seconds((1, 100, 50)) == pytest.approx(staircase((1, 100, 50)))
    assert not set(done) & set(clock.asked)
