"""What each group alone costs when it is cut, as a heat map of groups and fractions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from onnxprune.report.figures import percent, share
from onnxprune.report.kinds import KIND_NAMES
from onnxprune.report.origin import study_facts
from onnxprune.report.pages import render

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxprune.sensitivity_rows import GroupCut, GroupSensitivity, Sensitivity

__all__ = ["sensitivity_page"]

_DECADES = 4


def sensitivity_page(found: Sensitivity, title: str = "") -> str:
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


def _summary(found: Sensitivity) -> str:
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
