"""What each group alone costs when it is cut, as a heat map of groups and fractions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from onnxprune.options import target_text
from onnxprune.report.charts import Measure, answer_measures, inline, tradeoff_panels
from onnxprune.report.figures import KIND_NAMES, durations, milliseconds, percent, share
from onnxprune.report.pages import render, significant
from onnxprune.report.records import (
    GroupCut,
    GroupSensitivity,
    SensitivityRecord,
    SweepPointRecord,
    SweepRecord,
)
from onnxprune.report.sections import study_facts

_DECADES = 4


def sensitivity_page(found: SensitivityRecord, title: str = "") -> str:
    """Return the page of a sensitivity study, the most sensitive group first.

    Args:
        found: the groups that were measured.
        title: what the model is called; empty for a model in memory.
    """
    rows = [one for one in found.ranked() if one.cuts]
    keeps = sorted({cut.keep for one in rows for cut in one.cuts}, reverse=True)
    kind = "macs" if found.costs.get("macs") else "params"
    shade = _shades(rows)
    return render(
        "sensitivity.html",
        {
            "title": title or "A model in memory",
            "summary": _summary(found),
            "keeps": [percent(keep).replace(".0 ", " ") for keep in keeps],
            "saved": KIND_NAMES[kind],
            "rows": [_row(one, keeps, found.costs, kind, shade) for one in rows],
            "uncut": [one for one in found.rows if not one.cuts],
            "missing": found.missing,
            "origin": study_facts(found.study),
        },
    )


def _summary(found: SensitivityRecord) -> str:
    options = found.study.options
    return (
        f"{len(found.rows)} of {len(found.groups)} groups, each cut alone; ranked by "
        f"{options.get('criterion', '?')}; compensation {options.get('compensate', '?')}"
    )


def _row(
    one: GroupSensitivity,
    keeps: Sequence[float],
    costs: Mapping[str, int],
    kind: str,
    shade: Mapping[float, float],
) -> dict[str, Any]:
    cuts = {cut.keep: cut for cut in one.cuts}
    least = min(one.cuts, key=lambda cut: cut.keep)
    return {
        "group": one.group,
        "kind": one.kind,
        "units": one.units,
        "cells": [_cell(cuts.get(keep), shade) for keep in keeps],
        "saved": share(least.saved[kind], costs[kind]),
        "reason": next((cut.reason for cut in one.cuts if cut.reason), ""),
    }


def _cell(cut: GroupCut | None, shade: Mapping[float, float]) -> dict[str, Any]:
    if cut is None or cut.divergence is None:
        return {"value": "", "text": "-", "shade": 0.0, "units": "" if cut is None else cut.units}
    finite = math.isfinite(cut.divergence)
    return {
        "value": cut.divergence if finite else 1e300,
        "text": f"{cut.divergence:.3g}" if finite else "infinite",
        "shade": shade[cut.divergence] if finite else 1.0,
        "units": cut.units,
    }


def _shades(rows: Sequence[GroupSensitivity]) -> dict[float, float]:
    """Colour of every divergence, 0 to 1, by its logarithm over some decades below the worst."""
    values = [
        cut.divergence
        for one in rows
        for cut in one.cuts
        if cut.divergence is not None and math.isfinite(cut.divergence)
    ]
    most = max(values, default=0.0)
    least = max(min((one for one in values if one > 0), default=1.0), most * 10**-_DECADES)
    span = math.log(most / least) if most > least else 1.0
    return {
        one: min(max((math.log(one / least) / span) if one > 0 else 0.0, 0.0), 1.0)
        for one in values
    }


_KINDS = ("macs", "params", "size", "memory")


def sweep_page(sweep: SweepRecord) -> str:
    """Return the page of a sweep."""
    best = sweep.pareto()
    measures = answer_measures(sweep)
    done = [one for one in sweep.points if one.done]
    points = [
        _sweep_row(one, measures, any(one is other for other in best))
        for one in (*done, *(one for one in sweep.baselines if one.done))
    ]
    return render(
        "sweep.html",
        {
            "title": sweep.source.name if sweep.source is not None else "A model",
            "summary": _sweep_summary(sweep),
            "measures": list(measures),
            "quality": next(iter(measures)),
            "kinds": [KIND_NAMES[kind] for kind in _KINDS],
            "answers": [Markup(inline(one)) for one in tradeoff_panels(sweep, diverging=False)],
            "diverging": [Markup(inline(one)) for one in tradeoff_panels(sweep, diverging=True)],
            "baselines": bool(sweep.baselines),
            "points": points,
            "widths": [_widths(one) for one in done if one.widths],
            "failed": [
                {
                    "target": f"{one.baseline} {target_text(one.target)}".strip(),
                    "status": one.status,
                    "reason": one.reason,
                }
                for one in (*sweep.points, *sweep.baselines)
                if not one.done
            ],
            "origin": study_facts(sweep.study),
        },
    )


def _sweep_summary(sweep: SweepRecord) -> str:
    options = sweep.study.options
    took = durations(sum(one.seconds for one in sweep.points))
    return (
        f"{len(sweep.points)} budgets; ranked by {options.get('criterion', '?')}; compensation "
        f"{options.get('compensate', '?')}; {took}"
    )


def _sweep_row(
    one: SweepPointRecord, measures: Mapping[str, Measure], best: bool
) -> dict[str, Any]:
    latency = one.latency
    return {
        "target": target_text(one.target),
        "way": one.baseline or "onnxprune",
        "remains": [one.remains(kind) for kind in _KINDS],
        "latency": None if latency is None else latency["ratio"],
        "seconds": "" if latency is None else milliseconds(latency["result"]),
        "answers": [measure(one) for measure in measures.values()],
        "divergence": one.divergence,
        "shown_divergence": significant(one.divergence),
        "best": best,
        "file": one.file or "",
    }


def _widths(one: SweepPointRecord) -> dict[str, Any]:
    groups = [
        {"name": name, "size": size, "kept": kept, "ratio": share(kept, size)}
        for name, (size, kept) in one.widths.items()
    ]
    return {
        "target": target_text(one.target),
        "groups": groups,
        "left": percent(one.channels),
    }
