"""The account of a run as a page."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from onnxprune.compensation.least_squares import LayerFit
from onnxprune.errors import InputError
from onnxprune.report.charts import curve_panels, sparkline
from onnxprune.report.figures import KIND_NAMES, durations, milliseconds, percent, printable, share
from onnxprune.report.network.picture import network_svg
from onnxprune.report.pages import render, significant
from onnxprune.report.records import GroupAccount, PruneRecord
from onnxprune.report.sections import (
    GATES,
    CostRow,
    certificate_text,
    certificate_verdict,
    cost_rows,
    doubts,
    group_refusals,
    origin_facts,
    traced_size,
)
from onnxprune.verification.comparison import OutputComparison

_TILES = ("MACs", "parameters", "file size", "memory")
_NAME = 36
_ENTRIES = 6


def run_page(
    report: PruneRecord,
    *,
    command: Sequence[str] = (),
    model_file: str | Path | None = None,
) -> str:
    """Return the page of a `prune` or `apply` run.

    Args:
        report: the account.
        command: the words of the command line; empty for none.
        model_file: where the result was saved.

    Raises:
        OSError: when the file of the result cannot be read.
    """
    costs = list(cost_rows(report.original, report.result))
    cut = [one for one in report.groups if one.kept < one.size]
    panels = curve_panels(report.groups)
    picture, no_picture = _picture(report)
    return render(
        "run.html",
        {
            "report": report,
            "title": _title(report, model_file),
            "summary": _summary(report),
            "tiles": [*_quality_tiles(report), *_cost_tiles(costs), *_latency_tile(report)],
            "warnings": [*doubts(report), *filter(None, [report.note])],
            "verdict": certificate_verdict(report.certificate),
            "certificate": certificate_text(report.certificate),
            "gates": GATES,
            "costs": [*_cost_table(report, costs), *_latency_row(report)],
            "picture": Markup(picture),
            "no_picture": no_picture,
            "groups": [_group(one) for one in report.groups],
            "cut_groups": len(cut),
            "whole_groups": len(cut) < len(report.groups),
            "inexact": report.inexact,
            "curves": [Markup(one) for one in panels],
            "measure": "error" if _has_errors(report) else "score",
            "curves_note": _curves_note(report, len(panels)),
            "repairs": _repairs(report.repairs),
            "depths": [
                (count, significant(one) if math.isfinite(one) else "out of reach")
                for count, one in sorted(report.depths.items())
            ],
            "trials": _trials(report),
            "worst": [_worst(one) for one in report.outputs if one.worst],
            "reasons": [
                {**vars(one), "share": share(one.parameters, report.original.params)}
                for one in group_refusals(report.refused)
            ],
            "command": shlex.join(command),
            "origin": origin_facts(report.provenance, model_file),
        },
    )


def _picture(report: PruneRecord) -> tuple[str, str]:
    """The network as an SVG element, or why there is none."""
    if report.network is None:
        return "", ""
    try:
        return network_svg(report.network, links=True), ""
    except InputError as error:
        return "", str(error)


def _title(report: PruneRecord, model_file: str | Path | None) -> str:
    names = [report.provenance.model if report.provenance is not None else "", model_file or ""]
    return " \u2192 ".join(Path(one).name for one in names if one) or "A model in memory"


def _summary(report: PruneRecord) -> str:
    options = report.provenance.options if report.provenance is not None else {}
    target = options.get("target", {})
    asked = ", ".join(
        f"{percent(kept)} of the {KIND_NAMES.get(kind, kind)}" for kind, kept in target.items()
    )
    parts = [
        f"To keep {asked}" if asked else "",
        f"ranked by {options['criterion']}" if "criterion" in options else "",
        f"compensation {options['compensate']}" if "compensate" in options else "",
        durations(report.seconds),
    ]
    return "; ".join(filter(None, parts))


def _quality_tiles(report: PruneRecord) -> list[dict[str, str]]:
    """Measured quality, else what the outputs say on the samples."""
    one = report.quality
    if one is not None:
        where = "held out" if one.held_out else "seen by calibration"
        detail = f"original {one.original:.4g}; {one.samples} samples, {where}"
        return [{"name": one.measure, "figure": f"{one.result:.4g}", "detail": detail}]
    if not report.outputs:
        return []
    first = report.outputs[0]
    name, figure = "same answer", percent(first.agreement)
    if first.agreement is None and first.cosine is not None:
        name, figure = "cosine to the original", f"{first.cosine:.4f}"
    return [{"name": name, "figure": figure, "detail": f"{first.output}, on the samples"}]


def _cost_tiles(costs: Sequence[CostRow]) -> list[dict[str, str]]:
    return [
        {"name": one.kind.name, "figure": percent(one.ratio), "detail": _arrow(one)}
        for one in costs
        if one.kind.name in _TILES
    ]


def _arrow(one: CostRow) -> str:
    return f"{one.before} \u2192 {one.after}"


def _latency_tile(report: PruneRecord) -> list[dict[str, str]]:
    return [
        {"name": "latency", "figure": percent(row["ratio"]), "detail": row["note"]}
        for row in _latency_row(report)
    ]


def _latency_row(report: PruneRecord) -> list[dict[str, Any]]:
    one = report.latency
    if one is None:
        return []
    low, high = one.interval
    return [
        {
            "name": "latency",
            "before": milliseconds(one.original),
            "after": milliseconds(one.result),
            "ratio": one.ratio,
            "note": f"{percent(low)} to {percent(high)}, 95 % interval",
        }
    ]


def _cost_table(report: PruneRecord, costs: Sequence[CostRow]) -> list[dict[str, Any]]:
    where = traced_size(report.original)
    return [
        {
            "name": one.kind.name,
            "before": one.before,
            "after": one.after,
            "ratio": one.ratio,
            "note": where if one.kind.traced else "",
        }
        for one in costs
    ]


def _group(one: GroupAccount) -> dict[str, Any]:
    readers = ", ".join(printable(name, _NAME) for name in one.readers[:1])
    more = len(one.readers) - 1
    return {
        "number": one.number,
        "name": one.name,
        "kind": one.kind,
        "size": one.size,
        "kept": one.kept,
        "ratio": share(one.kept, one.size),
        "whole": one.kept == one.size,
        "readers": f"{readers} and {more} more" if more > 0 else readers,
        "all_readers": ", ".join(one.readers),
        "spark": Markup(sparkline(one)),
        "error": one.curve.chosen if one.curve is not None else "",
        "shown_error": significant(one.curve.chosen) if one.curve is not None else "-",
    }


def _curves_note(report: PruneRecord, shown: int) -> str:
    what = "Scores of the units that are gone, by the criterion, added up"
    if _has_errors(report):
        what = (
            "Part of the variance of what the readers compute that is lost at each width although "
            "their weights are solved anew, added up over the readers"
        )
    many = sum(one.curve is not None for one in report.groups)
    which = f" The {shown} groups that lose the most units; all are in the table above."
    return f"{what}.{which if shown < many else ''}"


def _has_errors(report: PruneRecord) -> bool:
    """Whether curves are errors; else they are scores of the criterion."""
    options = report.provenance.options if report.provenance is not None else {}
    return options.get("criterion") == "reconstruction"


def _repairs(repairs: Sequence[LayerFit]) -> list[dict[str, Any]]:
    most = max((max(one.before, one.after) for one in repairs if one.solved), default=0.0)
    return [_repair(one, most) for one in repairs]


def _repair(one: LayerFit, most: float) -> dict[str, Any]:
    before, after = ((value if math.isfinite(value) else None) for value in (one.before, one.after))
    known = one.solved or not one.reason
    note = "" if one.solved else one.reason or "kept: no better on samples that were not fitted"
    return {
        "node": one.node,
        "before": before if known else "",
        "after": after if known else "",
        "shown_before": _part(before if known else None),
        "shown_after": _part(after if known else None),
        "part_before": share(before or 0.0, most) if known else 0.0,
        "part_after": share(after or 0.0, most) if known else 0.0,
        "note": note,
    }


def _part(error: float | None) -> str:
    return "-" if error is None else f"{error * 100:.3g} %"


def _trials(report: PruneRecord) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "divergence": value if math.isfinite(value) else "",
            "shown": significant(value) if math.isfinite(value) else "could not be built",
            "chosen": name == report.allocation,
        }
        for name, value in sorted(report.trials.items(), key=lambda one: one[1])
    ]


def _worst(one: OutputComparison) -> dict[str, Any]:
    rows = [
        {
            "index": row.index,
            "answers": row.answers,
            "differing": row.differing,
            "relative_error": row.relative_error,
            "original": _entries(row.original),
            "result": _entries(row.result),
        }
        for row in one.worst
    ]
    return {
        "output": one.output,
        "rows": rows,
        "answers": all(row["answers"] is not None for row in rows),
        "positions": all(row["differing"] is not None for row in rows),
    }


def _entries(values: Sequence[float]) -> str:
    more = ", ..." if len(values) > _ENTRIES else ""
    return ", ".join(f"{value:.3g}" for value in values[:_ENTRIES]) + more
