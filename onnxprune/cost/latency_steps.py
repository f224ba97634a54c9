"""In which steps the time of a kernel falls with one of its widths.

A kernel that computes blocks of s channels takes the time of ceil(width / s) blocks. A few widths
around a middle one are timed and, for every candidate s, the line

    seconds = a + b * s * ceil(width / s)

is fitted; the smallest s that explains the times about as well as the best one is taken, since
rounding to more than the step gives units away for nothing. Kernels also exist that are faster at
aligned widths without a staircase, because another kernel takes over between them: where widths
that are no multiple of four are slower than the aligned width above, the step is at least four.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["ALIGNMENT", "slower_between", "step_of_times", "widths_to_time", "worthwhile"]

ALIGNMENT = 4
_STEPS = (1, 4, 8, 16, 32)
_MIDDLE = 64
_BELOW = (0, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32)
_SMALLEST = 16
_EXACT = 0.012
_ALIKE = 1.5
_SLOWER = 1.05
_GAIN = 0.015


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
