"""The largest reduction whose measured quality stays within a limit.

One calibration serves all attempts. How far to go is found by bisection over t in [0, 1], where a
target that is to keep a share s of something asks for 1 - t (1 - s): t = 1 is the whole way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxprune.errors import NothingPrunable, TargetUnreachable
from onnxprune.options import target_text
from onnxprune.pruning.run import PrunedModel, PruneRun
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
        pruned: the result.
        quality: measured.
    """

    pruned: PrunedModel
    quality: Quality


def prune_within(run: PruneRun, limit: Limit, goal: Mapping[str, float] | None) -> Within:
    """Prune as far as the limit allows.

    Args:
        run: the model.
        limit: what may be lost.
        goal: the target that is asked for besides, to be met within the limit; None to go as far
            as possible in MACs, or in parameters where the model has no MACs.

    Raises:
        TargetUnreachable: when the goal costs more than the limit; names how far one can go.
        NothingPrunable: when not even the least reduction stays within the limit.
    """
    if goal is not None:
        last = _tried(run, limit, goal)
        if last.quality.drop <= limit.most:
            return last
    best, worst = _bisected(run, limit, goal or {_kind(run): 0.0})
    if best is None:
        cause = f"; {_told(worst)}" if worst is not None else ""
        raise NothingPrunable(f"nothing can be pruned within a drop of {limit.most:g}{cause}")
    if goal is not None:
        raise TargetUnreachable(
            f"{_told(last)}, more than the {limit.most:g} allowed; within it, {_told(best)}"
        )
    return best


def _bisected(
    run: PruneRun, limit: Limit, goal: Mapping[str, float]
) -> tuple[Within | None, Within | None]:
    """The farthest attempt within the limit, and the least far one beyond it."""
    best = worst = None
    steps = round(1 / _RESOLUTION)
    low, high = 0, steps
    while high - low > 1:
        middle = (low + high) // 2
        target = {kind: round(1 - middle / steps * (1 - share), 6) for kind, share in goal.items()}
        try:
            tried = _tried(run, limit, target)
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


def _tried(run: PruneRun, limit: Limit, target: Mapping[str, float]) -> Within:
    pruned = run.at(target)
    return Within(pruned, limit.measure.of(pruned.cut.model))


def _kind(run: PruneRun) -> str:
    return "macs" if run.cost.after(())["macs"] else "params"


def _told(within: Within) -> str:
    quality = within.quality
    return f"{target_text(within.pruned.target)} costs {quality.drop:.3g} ({quality.measure})"
