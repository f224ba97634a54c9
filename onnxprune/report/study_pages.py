"""Pages of studies: the sensitivity of each group, and the trade-off between cost and quality."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from onnxprune.options import target_text
from onnxprune.report.charts import Dot, Line, Panel, draw, inline
from onnxprune.report.figures import (
    durations,
    fine_percent,
    kind_label,
    percent,
    printable,
    quality_value,
    share,
    significant,
)
from onnxprune.report.pages import render
from onnxprune.report.records import (
    GroupCut,
    GroupSensitivity,
    SensitivityRecord,
    SweepPointRecord,
    SweepRecord,
)
from onnxprune.report.sections import study_facts

_DECADES = 4
"""Decades of divergence below the worst that the heat map tells apart."""

_LEAST = 1e-9
"""Divergence that logarithmic charts show for none."""

_KINDS = ("macs", "params", "size", "memory")
_CHARTED = ("macs", "latency", "size", "params")
_WIDTHS = 8
"""Most groups whose widths the label of a dot lists."""

Measure: TypeAlias = "Callable[[SweepPointRecord], float | None]"


def sensitivity_page(study: SensitivityRecord, title: str = "") -> str:
    """Return the page of a sensitivity study, the most sensitive group first.

    Args:
        study: the groups that were measured.
        title: what the model is called; empty for a model in memory.
    """
    rows = [row for row in study.ranked() if row.cuts]
    keeps = sorted({cut.keep for row in rows for cut in row.cuts}, reverse=True)
    kind = "macs" if study.costs.get("macs") else "params"
    shades = _shades(rows)
    return render(
        "sensitivity.html",
        {
            "title": title or "A model in memory",
            "warnings": study.warnings,
            "summary": f"{len(study.rows)} of {len(study.groups)} groups, each cut alone; "
            + _method(study.study.options),
            "keeps": [percent(keep).replace(".0 ", " ") for keep in keeps],
            "saved": kind_label(kind),
            "rows": [_group_row(row, keeps, study.costs, kind, shades) for row in rows],
            "uncut": [(row.group, row.reason) for row in study.rows if not row.cuts],
            "missing": study.missing,
            "origin": study_facts(study.study),
        },
    )


def _method(options: Mapping[str, Any]) -> str:
    criterion, compensate = options.get("criterion", "?"), options.get("compensate", "?")
    return f"criterion {criterion}; compensation {compensate}"


def _group_row(
    row: GroupSensitivity,
    keeps: Sequence[float],
    costs: Mapping[str, int],
    kind: str,
    shades: Mapping[float, float],
) -> dict[str, Any]:
    cuts = {cut.keep: cut for cut in row.cuts}
    return {
        "sensitivity": row,
        "cells": [_cell(cuts.get(keep), shades) for keep in keeps],
        "saved": share(cuts[min(cuts)].saved[kind], costs[kind]),
        "reason": next((cut.reason for cut in row.cuts if cut.reason), ""),
    }


def _cell(cut: GroupCut | None, shades: Mapping[float, float]) -> dict[str, Any]:
    if cut is None or cut.divergence is None:
        return {"value": "", "text": "-", "shade": 0.0, "units": "" if cut is None else cut.units}
    return {
        # JavaScript reads no infinity
        "value": min(cut.divergence, 1e300),
        "text": significant(cut.divergence),
        "shade": shades.get(cut.divergence, 1.0),
        "units": cut.units,
    }


def _shades(rows: Sequence[GroupSensitivity]) -> dict[float, float]:
    """Colour of every finite divergence, 0 to 1, by its logarithm below the worst."""
    measured = (cut.divergence for row in rows for cut in row.cuts)
    values = [value for value in measured if value is not None and math.isfinite(value)]
    most = max(values, default=0.0)
    least = max(min((value for value in values if value > 0), default=1.0), most * 10**-_DECADES)
    span = math.log(most / least) if most > least else 1.0
    return {
        value: min(max(math.log(value / least) / span, 0.0), 1.0) if value > 0 else 0.0
        for value in values
    }


def sweep_page(sweep: SweepRecord) -> str:
    """Return the page of a sweep."""
    measures = answer_measures(sweep)
    every = (*sweep.points, *sweep.baselines)
    done = [point for point in every if point.done]
    took = durations(sum(point.seconds for point in sweep.points))
    return render(
        "sweep.html",
        {
            "title": sweep.source.name if sweep.source is not None else "A model",
            "warnings": sweep.warnings,
            "summary": f"{len(sweep.points)} budgets; {_method(sweep.study.options)}; {took}",
            "measures": measures,
            "quality": next(iter(measures)),
            "kinds": {kind: kind_label(kind) for kind in _KINDS},
            "shown": percent if all(map(_in_percent, sweep.points)) else significant,
            "answers": _tradeoffs(sweep, _answer_panel),
            "diverging": _tradeoffs(sweep, _divergence_panel),
            "baselines": bool(sweep.baselines),
            "target_text": target_text,
            "done": done,
            "best": sweep.pareto(),
            "widths": [point for point in sweep.points if point.widths],
            "failed": [point for point in every if not point.done],
            "origin": study_facts(sweep.study),
        },
    )


def _tradeoffs(sweep: SweepRecord, panel: Callable[[SweepRecord, str], Panel]) -> list[str]:
    """Quality over MACs, latency, size and parameters, without charts that would be empty."""
    return [chart for kind in _CHARTED if (chart := inline(panel(sweep, kind)))]


def tradeoff_chart(sweep: SweepRecord) -> str:
    """Return an SVG document: divergence, same answers and latency over cost.

    The cost is that of the targets, MACs where they are of several kinds.
    """
    kind = sweep.kinds[0] if len(sweep.kinds) == 1 else "macs"
    panels = [_divergence_panel(sweep, kind), _answer_panel(sweep, kind)]
    if kind != "latency":
        lines = _lines(sweep, kind, _latency)
        panels.append(Panel("Measured latency", _axis(kind), lines, fine_percent, fine_percent))
    return draw(panels, "Trade-off between cost and quality, by onnxprune sweep")


def answer_measures(sweep: SweepRecord) -> dict[str, Measure]:
    """Return by name what measures quality and how alike answers are.

    That is the quality where it was measured; then the fraction of samples with the same answer,
    or the cosine for outputs that give none.
    """
    measured = [point.quality for point in sweep.points if point.quality is not None]
    measures: dict[str, Measure] = {}
    if measured:
        measures[str(measured[0]["measure"]).capitalize()] = _quality
    outputs = [output for point in sweep.points for output in point.outputs]
    if any(output.get("agreement") is not None for output in outputs):
        measures["Same answer as the original"] = lambda point: _lowest(point, "agreement")
    else:
        measures["Cosine to the original's outputs"] = lambda point: _lowest(point, "cosine")
    return measures


def _divergence_panel(sweep: SweepRecord, kind: str) -> Panel:
    lines = _lines(sweep, kind, _divergence)
    title = f"Divergence of the outputs by {kind_label(kind)}"
    return Panel(title, _axis(kind), lines, fine_percent, "{:.2g}".format, logarithmic=True)


def _answer_panel(sweep: SweepRecord, kind: str) -> Panel:
    name, answers = next(iter(answer_measures(sweep).items()))
    lines = _lines(sweep, kind, answers)
    shown = fine_percent if all(map(_in_percent, sweep.points)) else significant
    return Panel(f"{name} by {kind_label(kind)}", _axis(kind), lines, fine_percent, shown)


def _axis(kind: str) -> str:
    return f"{kind_label(kind)}, relative to the original"


def _lines(sweep: SweepRecord, kind: str, measure: Measure) -> tuple[Line, ...]:
    """One line for each kind of target; dominated points stand beside it."""
    best = sweep.pareto()
    lines: dict[str, list[Dot]] = {}
    for point in (*sweep.points, *sweep.baselines):
        y = measure(point) if point.done else None
        timed = kind != "latency" or point.latency is not None
        if y is not None and math.isfinite(y) and timed:
            name = point.baseline or _line_name(sweep, point)
            on_line = bool(point.baseline) or point in best
            dot = Dot(point.remains(kind), y, _dot_label(point), on_line)
            lines.setdefault(name, []).append(dot)
    baselines = {point.baseline for point in sweep.baselines}
    return tuple(Line(name, tuple(dots), muted=name in baselines) for name, dots in lines.items())


def _line_name(sweep: SweepRecord, point: SweepPointRecord) -> str:
    if len({tuple(other.target) for other in sweep.points}) == 1 and sweep.baselines:
        return "onnxprune"
    return " + ".join(kind_label(kind) for kind in point.target)


def _dot_label(point: SweepPointRecord) -> str:
    """The target, what remains, and the widths."""
    target = target_text(point.target)
    figures = [f"{kind_label(kind)} {percent(point.remains(kind))}" for kind in ("macs", "params")]
    if point.latency is not None:
        figures.append(f"latency {percent(point.latency['ratio'])}")
    if point.quality is not None:
        figures.append(f"{point.quality['measure']} {_quality_text(point)}")
    if point.divergence is not None:
        figures.append(f"divergence {point.divergence:.2g}")
    largest = sorted(point.widths.items(), key=lambda width: width[1][1] - width[1][0])[:_WIDTHS]
    widths = [f"{printable(name, 30)}: {before} -> {after}" for name, (before, after) in largest]
    more = len(point.widths) - len(widths)
    head = f"{point.baseline}, {target}" if point.baseline else target
    return "\n".join(
        [head, ", ".join(figures), *widths, *([f"and {more} more groups"] if more else [])]
    )


def _lowest(point: SweepPointRecord, figure: str) -> float | None:
    values = [output[figure] for output in point.outputs if output.get(figure) is not None]
    return min(values, default=None)


def _quality(point: SweepPointRecord) -> float | None:
    """The measured quality, as a fraction where it is in percent."""
    if point.quality is None:
        return None
    value: float = point.quality["result"]
    return value / 100 if _in_percent(point) else value


def _quality_text(point: SweepPointRecord) -> str:
    quality = point.quality or {}
    return quality_value(quality["result"], quality.get("unit", "%"))


def _in_percent(point: SweepPointRecord) -> bool:
    return point.quality is None or point.quality.get("unit", "%") == "%"


def _divergence(point: SweepPointRecord) -> float | None:
    return None if point.divergence is None else max(point.divergence, _LEAST)


def _latency(point: SweepPointRecord) -> float | None:
    return point.latency["ratio"] if point.latency is not None else None
