"""Time of one kernel at any widths, from a few that are timed.

Anchors lie at a handful of fractions of every width. Between them the time is interpolated, linear
in every width: exact for a kernel that takes a fixed time and a time for each block of its inputs,
of its outputs, and of both. A width is rounded up to the step of its axis first. Widths that
another, slower kernel computes have anchors of their own, and axes of up to 32 entries none: there
every width is timed. Only what a question needs is timed, each once, and kept on disk.

The *step* of an axis: a kernel that computes blocks of s channels takes the time of
ceil(width / s) blocks. A few widths around a middle one are timed and, for every candidate s, the
line

    seconds = a + b * s * ceil(width / s)

is fitted; the smallest s that explains the times about as well as the best one is taken, since
rounding to more than the step removes units without any gain. Kernels also exist that are faster at
aligned widths without a staircase, because another kernel takes over between them: where widths
that are no multiple of four are slower than the aligned width above, the step is at least four.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import ceil, log2, prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.cost.latency.cache import TimingCache, thread_key
from onnxprune.cost.latency.kernels import Widths
from onnxprune.cost.latency.probe import Kernel, time_kernel
from onnxprune.model.node_view import ShapeOf
from onnxprune.model.runtime import Runtime

ALIGNMENT = 4
_STEPS = (1, 4, 8, 16, 32)
_MIDDLE = 64  # width around which steps are looked for
_BELOW = (0, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32)  # what timed widths are below the middle
_SMALLEST = 16  # width
_EXACT = 0.012  # relative misfit of a staircase that is noise on a quiet machine
_ALIKE = 1.5  # times the misfit of the best step that still counts as equal
_SLOWER = 1.05  # ratio of times from which unaligned widths are avoided
_GAIN = 0.015  # share of an axis that rounding has to save


def widths_to_time(full: int) -> tuple[int, ...]:
    """Widths whose times show the step of an axis, descending; none for an axis too short.

    Args:
        full: width of the axis in the original.
    """
    middle = min(_MIDDLE, full // _SMALLEST * _SMALLEST)
    # Below one block other kernels may take over, which would hide the steps above.
    least = _SMALLEST if middle > _SMALLEST else 1
    return tuple(middle - less for less in _BELOW if middle - less >= least)


def step_of_times(times: Mapping[int, float]) -> int:
    """The step of an axis.

    Args:
        times: seconds by width, at `widths_to_time`.
    """
    if len(times) < 2:
        return 1
    widths = np.array(sorted(times))
    # Where a width is slower than a larger one it says nothing of the staircase.
    seconds = np.minimum.accumulate([times[int(w)] for w in widths[::-1]])[::-1]
    steps = [step for step in _STEPS if step <= max(int(widths[-1]), 1)]
    errors = [_misfit(widths, seconds, step) for step in steps]
    allowed = max(_EXACT, _ALIKE * min(errors))
    step = next(step for step, error in zip(steps, errors, strict=True) if error <= allowed)
    return max(step, ALIGNMENT) if slower_between(times) else step


def slower_between(times: Mapping[int, float]) -> bool:
    """Whether widths that are no multiple of four are slower than the next that is.

    Args:
        times: seconds by width, at `widths_to_time`.
    """
    ratios = [
        seconds / times[above]
        for width, seconds in times.items()
        if width % ALIGNMENT and (above := -(-width // ALIGNMENT) * ALIGNMENT) in times
    ]
    return bool(ratios) and min(ratios) > _SLOWER


def worthwhile(step: int, full: int, slower: bool) -> int:
    """The multiple that widths of an axis should keep; 1 where rounding buys next to nothing.

    Without rounding half a step is computed for nothing on average.

    Args:
        step: the step of the axis.
        full: its width in the original.
        slower: widths between are slower than aligned ones (`slower_between`).
    """
    return step if slower or step / (2 * full) >= _GAIN else 1


def _misfit(widths: NDArray[np.int64], seconds: NDArray[np.float64], step: int) -> float:
    """Root mean square of what a staircase leaves unexplained, relative to the mean time."""
    computed = -(-widths // step) * step
    columns = np.stack([np.ones(len(widths)), computed], axis=1)
    solution, *_ = np.linalg.lstsq(columns, seconds, rcond=None)
    left = seconds - columns @ solution
    return float(np.sqrt(np.mean(left**2)) / seconds.mean())


_FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of the full width, timed; between: linear
_OTHER_WIDTH = 256  # of the other axes while steps are looked for
_ALL_TIMED = 32  # width up to which every width is timed
_VISIBLE = 50e-6  # seconds from which the clock of the profiler (1 us) is fine enough


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
