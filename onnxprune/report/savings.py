"""Whether what a report shows as saved is saved, in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.report.figures import percent, share

if TYPE_CHECKING:
    from onnxprune.report.summary import Report

__all__ = ["doubts"]

_MUCH = 1.1
_TINY = 1e-4


def doubts(report: Report) -> list[str]:
    """Sentences on savings that are none: the measured latency, and widths between blocks."""
    found = []
    fell = 1 - share(report.result.macs, report.original.macs)
    latency = report.latency
    if latency is not None and fell > 0 and latency.interval[1] >= 1:
        gain = "did not fall" if latency.interval[0] >= 1 else "shows no clear gain"
        found.append(
            f"The MACs fell by {percent(fell)}, but the measured latency {gain}{_why(report)}."
        )
    wasted = {block: ratio for block, ratio in report.padding.items() if ratio > _MUCH}
    if wasted:
        ratios = ", ".join(f"{ratio:.2f} x with blocks of {n}" for n, ratio in wasted.items())
        found.append(
            "Convolutions compute whole blocks of channels: with these widths more than the MACs "
            f"above ({ratios}). --round-to {max(wasted)} or a latency target makes use of that."
        )
    return found


def _why(report: Report) -> str:
    if max(report.padding.values(), default=1.0) > _MUCH:
        return ": widths between the blocks that kernels compute save nothing"
    if report.latency is not None and report.latency.original < _TINY:
        return ": so small a model spends its time on calls, not on arithmetic"
    return ": the time goes elsewhere"
