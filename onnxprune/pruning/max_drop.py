"""The largest reduction whose measured quality stays within a limit.

One calibration serves all attempts. How far to go is found by bisection over t in [0, 1], where a
target that is to keep a share s of something asks for 1 - t (1 - s): t = 1 is the whole way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.errors import NothingPrunable, TargetUnreachable
from onnxprune.options import target_text
from onnxprune.progress import Progress
from onnxprune.pruning.build import CutModel
from onnxprune.pruning.prepare import Ready
from onnxprune.pruning.run import prune_ready
from onnxprune.verification.quality import Quality, QualityMeasure

_RESOLUTION = 0.01


@dataclass(frozen=True)
class Limit:
    """What a result may lose.

    Attributes:
        most: largest drop, in the unit of the measure.
        measure: what measures it.
    """

    most: float
    measure: QualityMeasure


@dataclass(frozen=True)
class Within:
    """A result within the limit.

    Attributes:
        built: the result.
        target: kind -> fraction that it was cut to.
        quality: measured.
    """

    built: CutModel
    target: Mapping[str, float]
    quality: Quality


def prune_within(
    ready: Ready, limit: Limit, goal: Mapping[str, float] | None, progress: Progress[Any]
) -> Within:
    """Prune as far as the limit allows.

    Args:
        ready: the model.
        limit: what may be lost.
        goal: the target that is asked for besides, to be met within the limit; None to go as far
            as possible in MACs, or in parameters where the model has no MACs.
        progress: told about long loops.

    Raises:
        TargetUnreachable: when the goal costs more than the limit; names how far one can go.
        NothingPrunable: when not even the least reduction stays within the limit.
    """
    if goal is not None:
        last = _tried(ready, limit, goal, progress)
        if last.quality.drop <= limit.most:
            return last
    best, worst = _bisected(ready, limit, goal or {_kind(ready): 0.0}, progress)
    if best is None:
        cause = f"; {_told(worst)}" if worst is not None else ""
        raise NothingPrunable(f"nothing can be pruned within a drop of {limit.most:g}{cause}")
    if goal is not None:
        raise TargetUnreachable(
            f"{_told(last)}, more than the {limit.most:g} allowed; within it, {_told(best)}"
        )
    return best


def _bisected(
    ready: Ready, limit: Limit, goal: Mapping[str, float], progress: Progress[Any]
) -> tuple[Within | None, Within | None]:
    """The farthest attempt within the limit, and the least far one beyond it."""
    best = worst = None
    steps = round(1 / _RESOLUTION)
    low, high = 0, steps
    while high - low > 1:
        middle = (low + high) // 2
        target = {kind: round(1 - middle / steps * (1 - share), 6) for kind, share in goal.items()}
        try:
            tried = _tried(ready, limit, target, progress)
        except NothingPrunable as error:
            if isinstance(error, TargetUnreachable):
                high = middle
            else:
                low = middle
            continue
        if tried.quality.drop <= limit.most:
            best, low = tried, middle
        else:
            worst, high = tried, middle
    return best, worst


def _tried(
    ready: Ready, limit: Limit, target: Mapping[str, float], progress: Progress[Any]
) -> Within:
    built = prune_ready(ready, target, progress)
    return Within(built, target, limit.measure.of(built.model))


def _kind(ready: Ready) -> str:
    return "macs" if ready.cost.after(())["macs"] else "params"


def _told(one: Within) -> str:
    return f"{target_text(one.target)} costs {one.quality.drop:.3g} ({one.quality.measure})"
