"""Kernels whose time is a formula instead of a measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from onnxprune.cost.latency.kernels import Widths
from onnxprune.cost.latency.probe import Kernel
from onnxprune.model.runtime import Runtime

Formula = Callable[[Widths], float]


@dataclass
class Clock:
    """Stands in for `time_kernel` and remembers what it was asked for."""

    formula: Formula
    asked: list[Widths] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)
    runtimes: list[Runtime] = field(default_factory=list)

    def __call__(self, kernel: Kernel, widths: Widths, runtime: Runtime) -> float:
        self.asked.append(widths)
        self.kernels.append(kernel)
        self.runtimes.append(runtime)
        return self.formula(widths)


def install(monkeypatch: pytest.MonkeyPatch, formula: Formula) -> Clock:
    """Time kernels by a formula from here on."""
    clock = Clock(formula)
    monkeypatch.setattr("onnxprune.cost.latency.grid.time_kernel", clock)
    return clock


def blocks(width: int, step: int) -> int:
    """Entries of a width that are computed in steps."""
    return -(-width // step) * step


def smooth(widths: Widths) -> float:
    """Time in proportion to the work."""
    result = 1e-6
    for width in widths:
        result *= width
    return result


def staircase(widths: Widths) -> float:
    """Inputs and outputs in blocks of 16, and a fixed time."""
    groups, inner, outer = widths
    return 1e-4 + 1e-7 * groups * blocks(inner, 16) * blocks(outer, 16)


def fallback(widths: Widths) -> float:
    """Like `staircase`, but inputs that are no multiple of four take a slower kernel."""
    groups, inner, outer = widths
    return staircase(widths) if inner % 4 == 0 else 1e-4 + 2e-7 * groups * inner * outer
