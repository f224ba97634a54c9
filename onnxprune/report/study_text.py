"""Sweeps and sensitivities as plain tables, at most 100 columns wide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from onnxprune.options import target_text
from onnxprune.report.figures import KIND_NAMES, percent, printable, share
from onnxprune.report.records import (
    GroupCut,
    GroupSensitivity,
    SensitivityRecord,
    SweepPointRecord,
    SweepRecord,
)
from onnxprune.report.text import TextReport, make_table

_SHOWN_KINDS = ("macs", "params", "size", "memory")
_GROUPS = 30
_NAME = 32
_REASON = 60


class StudyText(TextReport):
    """Prints what many runs found together."""

    def swept(self, title: str, sweep: SweepRecord) -> None:
        """Print a sweep, one line for each point."""
        self._title(title)
        headings = [f">{KIND_NAMES[kind]}" for kind in _SHOWN_KINDS]
        best = sweep.pareto()
        done = [one for one in sweep.points if one.done]
        quality = next((one.quality for one in done if one.quality is not None), None)
        # all of them do not fit 100 columns
        last = [">same answer", ">divergence"]
        last = [*last, ">time"] if quality is None else [f">{quality['measure']}", *last]
        table = make_table("target", *headings, ">latency", *last, "")
        for one in done:
            table.add_row(*_point_row(one, any(one is other for other in best)))
        if done:
            self._print(table)
        if quality is not None:
            self._print(
                f"{quality['measure']}: the original has {quality['original']:.4g} %, on "
                f"{quality['samples']} samples (the calibration saw them too)."
            )
        if len(done) > len(best):
            self._print("beaten: another point costs no more and diverges less.")
        for one in sweep.points:
            if not one.done:
                self._print(f"{target_text(one.target)} {one.status}: {printable(one.reason)}")

    def sensed(self, title: str, found: SensitivityRecord) -> None:
        """Print the groups, the most sensitive first."""
        self._title(title)
        rows = [one for one in found.ranked() if one.cuts]
        keeps = [cut.keep for cut in rows[0].cuts] if rows else []
        headings = [f">{percent(keep).replace('.0', '')}" for keep in keeps]
        table = make_table(
            "group: divergence when cut to", "kind", ">units", *headings, ">saves", ""
        )
        shown = rows if self.verbose else rows[:_GROUPS]
        for one in shown:
            table.add_row(*_group_row(one, found.costs))
        if rows:
            self._print(table)
            kind = _cost_kind(found.costs)
            self._print(f"saves: {KIND_NAMES[kind]} of the whole model at the smallest width.")
        self._rest(len(rows) - len(shown), "groups")
        for one in found.rows:
            if not one.cuts:
                reason = printable(one.reason, None if self.verbose else _REASON)
                self._print(f"{printable(one.group, _NAME)} was not cut: {reason}")
        if found.missing:
            names = found.missing if self.verbose else found.missing[:_GROUPS]
            more = "" if len(names) == len(found.missing) else " ..."
            listed = ", ".join(printable(name, _NAME) for name in names)
            self._print(f"groups that are missing ({len(found.missing)}): {listed}{more}")


def _point_row(one: SweepPointRecord, best: bool) -> list[str]:
    remains = [percent(one.remains(kind)) for kind in _SHOWN_KINDS]
    latency = percent(one.latency["ratio"]) if one.latency is not None else "-"
    agreements = [out["agreement"] for out in one.outputs if out.get("agreement") is not None]
    last = [percent(min(agreements, default=None)), _short(one.divergence)]
    if one.quality is None:
        last = [*last, f"{one.seconds:.1f} s"]
    else:
        last = [percent(one.quality["result"] / 100), *last]
    return [target_text(one.target), *remains, latency, *last, "" if best else "beaten"]


def _group_row(one: GroupSensitivity, costs: Mapping[str, int]) -> list[str]:
    least = min(one.cuts, key=lambda cut: cut.keep)
    kind = _cost_kind(costs)
    saved = percent(share(least.saved[kind], costs[kind]))
    failed = next((cut.reason for cut in one.cuts if cut.reason), "")
    return [
        printable(one.group, _NAME),
        one.kind,
        str(one.units),
        *_divergences(one.cuts),
        saved,
        printable(failed, 20),
    ]


def _divergences(cuts: Sequence[GroupCut]) -> list[str]:
    return [_short(cut.divergence) for cut in cuts]


def _cost_kind(costs: Mapping[str, int]) -> str:
    """MACs, or parameters for a model that has none."""
    return "macs" if costs["macs"] else "params"


def _short(divergence: float | None) -> str:
    if divergence is None:
        return "-"
    return f"{divergence:.3g}" if math.isfinite(divergence) else "infinite"
