"""Time of one kernel at any widths, from a few that are timed.

Anchors lie at a handful of fractions of every width. Between them the time is interpolated, linear
in every width: exact for a kernel that takes a fixed time and a time for each block of its inputs,
of its outputs, and of both. A width is rounded up to the step of its axis first. Widths that
another, slower kernel computes have anchors of their own, and axes of up to 32 entries none: there
every width is timed. Only what a question needs is timed, each once, and kept on disk.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import ceil, log2, prod
from typing import TYPE_CHECKING

from onnxprune.cost.latency_probe import time_kernel
from onnxprune.cost.latency_steps import (
    ALIGNMENT,
    slower_between,
    step_of_times,
    widths_to_time,
    worthwhile,
)
from onnxprune.cost.timing_cache import thread_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from onnxprune.cost.latency_kernels import Widths
    from onnxprune.cost.latency_probe import Kernel
    from onnxprune.cost.macs import ShapeOf
    from onnxprune.cost.timing_cache import TimingCache
    from onnxprune.model.runtime import Runtime

__all__ = ["KernelTimes"]

_FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
_OTHER_WIDTH = 256
_ALL_TIMED = 32
_VISIBLE = 50e-6


class KernelTimes:
    """Times of one kernel.

    Args:
        kernel: the operator with its original shapes.
        runtime: providers and threads.
        cache: where timings are kept.
        machine: the part of their key that does not depend on the kernel.
    """

    def __init__(
        self, kernel: Kernel, runtime: Runtime, cache: TimingCache, machine: Mapping[str, str]
    ) -> None:
        self._kernel = kernel
        self._runtime = runtime
        self._cache = cache
        self._machine = machine
        self._key = {**machine, **kernel.key()}
        self._known: dict[Widths, float] = {}
        self._steps: dict[int, int] = {}
        self._middles: dict[int, Mapping[int, float]] = {}

    @property
    def widths(self) -> Widths:
        """Widths of the kernel in the original."""
        return self._kernel.widths

    def widths_at(self, node: ir.Node, shape_of: ShapeOf) -> Widths | None:
        """Widths of a node of this kernel at other shapes; None for shapes it does not take."""
        family = self._kernel.family
        try:
            shapes = tuple(
                shape_of(value.name or "") if value is not None else () for value in node.inputs
            )
            return family.widths(family.slots, shapes, shape_of(node.outputs[0].name or ""))
        except (KeyError, ValueError, IndexError):
            return None

    def seconds(self, widths: Widths) -> float:
        """Seconds at some widths, none above those of the original.

        Raises:
            RuntimeFailure: when onnxruntime refuses the operator alone.
        """
        if widths not in self._known:
            self._known[widths] = self._interpolated(widths)
        return self._known[widths]

    def _interpolated(self, widths: Widths) -> float:
        odd = [self._is_odd(axis, width) for axis, width in enumerate(widths)]
        corners = product(*(self._between(axis, widths[axis], odd) for axis in range(len(widths))))
        return sum(
            prod(weight for _, weight in corner) * self._timed(tuple(width for width, _ in corner))
            for corner in corners
        )

    def step(self, axis: int) -> int:
        """The step in which the time falls along an axis; 1 where it falls smoothly.

        Raises:
            RuntimeFailure: when onnxruntime refuses the operator alone.
        """
        if axis not in self._steps:
            self._steps[axis] = step_of_times(self._around_middle(axis))
        return self._steps[axis]

    def multiple(self, axis: int) -> int:
        """The multiple that widths of an axis should keep; 1 where rounding buys nothing.

        Raises:
            RuntimeFailure: when onnxruntime refuses the operator alone.
        """
        slower = slower_between(self._around_middle(axis))
        return worthwhile(self.step(axis), self._kernel.widths[axis], slower)

    def _is_odd(self, axis: int, width: int) -> bool:
        """Whether another, slower kernel computes this width than the aligned ones."""
        if width % ALIGNMENT == 0 or width == self._kernel.widths[axis]:
            return False
        return slower_between(self._around_middle(axis))

    def _between(self, axis: int, width: int, odd: Sequence[bool]) -> list[tuple[int, float]]:
        """Anchors around a width, and how much each counts.

        Args:
            axis: the axis.
            width: the width asked for.
            odd: for every axis, whether the width there is one that a slower kernel computes;
                that kernel has no staircase, and its anchors are odd as well.
        """
        full = self._kernel.widths[axis]
        if width == full or full <= _ALL_TIMED:
            return [(width, 1.0)]
        step = 1 if any(odd) else self.step(axis)
        computed = min(_up(width, step), full)
        spacing = max(step, ALIGNMENT)
        inner = {_up(full * fraction, spacing) - odd[axis] for fraction in _FRACTIONS}
        anchors = sorted({anchor for anchor in inner if 0 < anchor < full - odd[axis]})
        anchors.append(full // ALIGNMENT * ALIGNMENT - 1 if odd[axis] else full)
        if computed <= anchors[0]:
            return [(anchors[0], computed / anchors[0])]
        above = next((anchor for anchor in anchors if anchor >= computed), anchors[-1])
        below = max(anchor for anchor in anchors if anchor <= computed)
        if above == below:
            return [(above, 1.0)]
        share = (computed - below) / (_up(above, step) - below)
        return [(below, 1 - share), (above, share)]

    def _around_middle(self, axis: int) -> Mapping[int, float]:
        """Times around a middle width of an axis, others not wider than is needed to see it.

        In what steps a kernel computes has nothing to do with the number of threads, so one is
        used, whose times scatter least; a kernel too short for the clock of the profiler computes
        several samples.
        """
        if axis not in self._middles:
            full = self._kernel.widths
            others = tuple(min(width, _OTHER_WIDTH) for width in full)
            widths = widths_to_time(full[axis])
            kernel = self._kernel
            if widths:
                once = max(self._timed_alone(kernel, _at(others, axis, widths[0])), 1e-6)
                kernel = kernel.repeated(2 ** max(0, ceil(log2(_VISIBLE / once))))
            self._middles[axis] = {
                width: self._timed_alone(kernel, _at(others, axis, width)) for width in widths
            }
        return self._middles[axis]

    def _timed(self, widths: Widths) -> float:
        return self._timed_as(self._key, self._runtime, self._kernel, widths)

    def _timed_alone(self, kernel: Kernel, widths: Widths) -> float:
        """Seconds on one thread."""
        runtime = replace(self._runtime, threads=1)
        key = {**self._machine, **kernel.key(), **thread_key(runtime)}
        return self._timed_as(key, runtime, kernel, widths)

    def _timed_as(
        self, key: Mapping[str, str], runtime: Runtime, kernel: Kernel, widths: Widths
    ) -> float:
        name = "x".join(map(str, widths))
        known = self._cache.read(key)
        if name not in known:
            self._cache.add(key, {name: time_kernel(kernel, widths, runtime)})
        return known[name]


def _up(width: float, step: int) -> int:
    return int(-(-width // step)) * step


def _at(widths: Widths, axis: int, width: int) -> Widths:
    return (*widths[:axis], width, *widths[axis + 1 :])
