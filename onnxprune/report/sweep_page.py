"""A sweep as a page: quality against every kind of cost, the points and what they cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from onnxprune.report.chart import inline
from onnxprune.report.figures import durations, milliseconds, percent, share
from onnxprune.report.kinds import KIND_NAMES
from onnxprune.report.origin import study_facts
from onnxprune.report.pages import render, significant
from onnxprune.report.tradeoff_chart import answer_measures, tradeoff_panels
from onnxprune.shares import target_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxprune.report.tradeoff_chart import Measure
    from onnxprune.tradeoff import Sweep, SweepPoint

__all__ = ["sweep_page"]

_KINDS = ("macs", "params", "size", "memory")


def sweep_page(sweep: Sweep) -> str:
    """Return the page of a sweep."""
    best = sweep.pareto()
    measures = answer_measures(sweep)
    done = [one for one in sweep.points if one.done]
    points = [
        _row(one, measures, any(one is other for other in best))
        for one in (*done, *(one for one in sweep.baselines if one.done))
    ]
    return render(
        "sweep.html",
        {
            "title": sweep.source.name if sweep.source is not None else "A model",
            "summary": _summary(sweep),
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


def _summary(sweep: Sweep) -> str:
    options = sweep.study.options
    took = durations(sum(one.seconds for one in sweep.points))
    return (
        f"{len(sweep.points)} budgets; ranked by {options.get('criterion', '?')}; compensation "
        f"{options.get('compensate', '?')}; {took}"
    )


def _row(one: SweepPoint, measures: Mapping[str, Measure], best: bool) -> dict[str, Any]:
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


def _widths(one: SweepPoint) -> dict[str, Any]:
    groups = [
        {"name": name, "size": size, "kept": kept, "ratio": share(kept, size)}
        for name, (size, kept) in one.widths.items()
    ]
    return {
        "target": target_text(one.target),
        "groups": groups,
        "left": percent(one.channels),
    }
