"""The page of a run: what the model costs now, and what each pass did.

A run of `prune` alone shows the pruning itself; a pipeline shows its passes one after another.
"""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from onnxprune.compensation.least_squares import LayerFit
from onnxprune.cost.kinds import KINDS
from onnxprune.errors import InputError
from onnxprune.report.charts import Dot, Line, Panel, inline
from onnxprune.report.figures import (
    decimals,
    durations,
    kind_label,
    milliseconds,
    percent,
    printable,
    share,
    significant,
)
from onnxprune.report.network.picture import network_svg
from onnxprune.report.pages import render
from onnxprune.report.records import (
    GroupAccount,
    PipelineRecord,
    Provenance,
    PruneRecord,
    StepReport,
    TuningRecord,
)
from onnxprune.report.sections import (
    GATES,
    certificate_text,
    certificate_verdict,
    changed_inputs,
    cost_rows,
    detail_facts,
    detail_tables,
    doubts,
    fit_reason,
    group_refusals,
    latency_interval,
    left_out,
    most_moved,
    not_trained,
    option_text,
    origin_facts,
    refit_summary,
    remaining,
    summarise,
    traced_size,
    tuning_text,
)

_SHOWN = tuple(kind for kind in KINDS if kind.target and kind.figure)
_CHARTED = _SHOWN[:3]
_PIPELINE = 6000
"""Letters of the longest pipeline that is shown."""

_OPTIONS = 300
"""Letters of the options of a pass that are shown."""

_ENTRIES = 6
"""Entries of an output that are shown for a sample."""

_PANELS = 24
"""Most error curves that are drawn large."""

_SPARK_WIDTH, _SPARK_HEIGHT, _SPARK_EDGE = 120, 26, 3


def run_page(
    result: PipelineRecord,
    passes: Sequence[Mapping[str, Any]] = (),
    no_passes: str = "",
    *,
    command: Sequence[str] = (),
    model_file: str | Path | None = None,
    beside: Sequence[str] = (),
) -> str:
    """Return the page of a run of one pass or several.

    Args:
        result: the original's costs, and a report for each pass.
        passes: each with its options, as a plan holds them; empty for a plan of one pruning.
        no_passes: why they cannot be written down; empty where they can.
        command: the words of the command line; empty for none.
        model_file: where the result was saved.
        beside: files that were written beside it.

    Raises:
        OSError: when the file of the result cannot be read.
    """
    steps = result.steps
    alone, kind = steps[0].report if len(steps) == 1 else None, _kind(steps)
    pipeline, no_pipeline = ([], no_passes) if no_passes else _pipeline(passes)
    provenance = result.provenance
    return render(
        "run.html",
        {
            "alone": alone is not None,
            "kind": kind,
            "title": _title(provenance, model_file),
            "summary": _summary(result) if alone is None else _prune_summary(alone),
            "tiles": _tiles(result),
            "gates": GATES,
            "costs": cost_rows(result.original, steps[-1].sizes),
            "latency": steps[-1].latency,
            "latency_interval": latency_interval,
            "where": traced_size(result.original),
            "kinds": [kind.label for kind in _SHOWN],
            "rows": [_row(result, step) for step in steps],
            "charts": _charts(result) if kind == "Pipeline" else [],
            "warnings": result.warnings,
            "steps": [_step(n, step, alone is not None) for n, step in enumerate(steps, 1)],
            "outputs": any(step.outputs for step in steps),
            "new_interface": any(step.new_interface for step in steps),
            "pipeline": pipeline,
            "no_pipeline": no_pipeline,
            "command": shlex.join(command),
            "origin": origin_facts(provenance, model_file),
            "beside": beside,
            "entries": _entries,
        },
    )


def prune_page(
    report: PruneRecord, *, command: Sequence[str] = (), model_file: str | Path | None = None
) -> str:
    """Return the page of one pruning; for the arguments see `run_page`.

    Raises:
        OSError: when the file of the result cannot be read.
    """
    step = StepReport(
        "prune",
        {},
        report.seconds,
        True,
        report.result,
        report.outputs,
        report.latency,
        report=report,
        warnings=report.warnings,
    )
    result = PipelineRecord(report.original, (step,), report.provenance)
    return run_page(result, command=command, model_file=model_file)


def _title(provenance: Provenance | None, model_file: str | Path | None) -> str:
    names = [provenance.model if provenance is not None else "", model_file or ""]
    return " \u2192 ".join(Path(name).name for name in names if name) or "A model in memory"


def _kind(steps: Sequence[StepReport]) -> str:
    """What the page calls the run."""
    if len(steps) > 1:
        return "Pipeline"
    if steps[0].report is not None:
        return "Pruning"
    return "Fine-tuning" if steps[0].tuning is not None else "Pipeline"


def _summary(result: PipelineRecord) -> str:
    names = ", ".join(step.name for step in result.steps)
    return f"{names}; {durations(sum(step.seconds for step in result.steps))} in the passes"


def _options(report: PruneRecord) -> Mapping[str, Any]:
    return report.provenance.options if report.provenance is not None else {}


def _prune_summary(report: PruneRecord) -> str:
    options = _options(report)
    target = ", ".join(
        f"{percent(kept)} of the {kind_label(kind)}"
        for kind, kept in options.get("target", {}).items()
    )
    parts = [
        f"Target: {target}" if target else "",
        f"criterion {options['criterion']}" if "criterion" in options else "",
        f"compensation {options['compensate']}" if "compensate" in options else "",
        durations(report.seconds),
    ]
    return "; ".join(filter(None, parts))


def _tiles(result: PipelineRecord) -> list[tuple[str, str, str]]:
    """Label, figure and detail: quality where it is known, costs, latency."""
    last = result.steps[-1]
    tiles = _quality_tiles(last)
    for row in cost_rows(result.original, last.sizes):
        if row.kind in _SHOWN:
            tiles.append((row.kind.label, percent(row.ratio), f"{row.before} \u2192 {row.after}"))
    if (latency := last.latency) is not None:
        detail = f"{milliseconds(latency.result)}; {latency_interval(latency)}"
        tiles.append(("latency", percent(latency.ratio), detail))
    return tiles


def _quality_tiles(last: StepReport) -> list[tuple[str, str, str]]:
    """Measured quality, else how much the outputs at the end agree with the original's."""
    quality = last.quality
    if quality is None and last.report is not None:
        quality = last.report.quality
    if quality is not None:
        where = "held out" if quality.held_out else "also used for calibration"
        detail = f"original {quality.original:.4g}; {quality.samples} samples, {where}"
        return [(quality.measure, f"{quality.result:.4g}", detail)]
    worst = summarise(last.outputs)
    if worst.agreement is not None:
        return [("same answer", percent(worst.agreement), "on the calibration samples")]
    if worst.cosine is not None:
        return [("cosine to the original", decimals(worst.cosine), "on the calibration samples")]
    return []


def _row(result: PipelineRecord, step: StepReport) -> dict[str, Any]:
    """A line of the table of passes."""
    return {
        "name": step.name,
        "costs": [remaining(kind, result.original, step.sizes) for kind in _SHOWN],
        "latency": step.latency,
        "worst": summarise(step.outputs),
        "seconds": step.seconds,
    }


def _charts(result: PipelineRecord) -> list[Markup]:
    """What remains after each pass, a line for each kind of cost; and the error of the outputs."""
    steps = list(enumerate(result.steps, 1))
    start = Dot(0, 1.0, "the original")

    def dot(number: int, step: StepReport, fraction: float) -> Dot:
        return Dot(number, fraction, f"after {step.name}: {percent(fraction)}")

    lines = []
    for kind in _CHARTED:
        dots = [dot(n, step, remaining(kind, result.original, step.sizes)) for n, step in steps]
        lines.append(Line(kind.label, (start, *dots)))
    dots = [dot(n, step, step.latency.ratio) for n, step in steps if step.latency is not None]
    if dots:
        lines.append(Line("latency", (start, *dots)))
    errors = [(n, step.name, summarise(step.outputs).relative_error) for n, step in steps]
    moved = tuple(
        Dot(n, error, f"after {name}: {error:.3g}")
        for n, name, error in errors
        if error is not None and math.isfinite(error)
    )
    title = "Relative error of the outputs"
    panels = (
        Panel("Cost that remains", "after pass", tuple(lines), _whole, percent),
        Panel(title, "after pass", (Line("", moved),), _whole, significant),
    )
    return [chart for chart in map(inline, panels) if chart]


def _whole(value: float) -> str:
    return f"{value:g}" if value == int(value) else ""


def _step(number: int, step: StepReport, alone: bool) -> dict[str, Any]:
    """What a pass did."""
    report = step.report
    warnings = [*doubts(report), *filter(None, [report.note])] if report is not None else []
    remarks = [*step.notes, *filter(None, [step.remark])]
    if step.new_interface:
        remarks.insert(0, "changes inputs or outputs: later passes are compared with its result")
    if report is not None and (inputs := changed_inputs(report)):
        remarks.append(inputs)
    if not step.modified:
        remarks.append("the model was not changed")
    prefix = "" if alone else f"pass-{number}-"
    return {
        "number": number,
        "name": step.name,
        "warnings": warnings,
        "remarks": [f"{text[:1].upper()}{text[1:]}" for text in remarks if text not in warnings],
        "options": textwrap.shorten(option_text(step.options), _OPTIONS, placeholder=" ..."),
        "facts": detail_facts(step.details) if report is None else [],
        "tables": detail_tables(step.details) if report is None else [],
        "outputs": step.outputs,
        "files": list(step.files),
        "pruning": None if report is None else _pruning(report, prefix),
        "tuning": _tuning(step.tuning if report is None else report.tuning),
        "prefix": prefix,
        "heading": "h2" if alone else "h3",
    }


def _tuning(tuning: TuningRecord | None) -> dict[str, Any] | None:
    """The course of a fine-tuning, what moved and what did not."""
    if tuning is None:
        return None
    moved = most_moved(tuning)
    return {
        "text": tuning_text(tuning),
        "chart": inline(_tuning_panel(tuning)) if len(tuning.points) > 1 else Markup(""),
        "facts": _tuning_facts(tuning),
        "moved": moved,
        "most": moved[0][1] if moved else 0.0,
        "not_trained": not_trained(tuning),
    }


def _tuning_panel(tuning: TuningRecord) -> Panel:
    """Loss on the samples trained on, and divergence on those held out, by step."""
    points = [point for point in tuning.points if math.isfinite(point.held_out)]
    held_out = tuple(
        Dot(point.step, point.held_out, f"step {point.step}: {point.held_out:.3g}")
        for point in points
    )
    fitted = tuple(
        Dot(point.step, point.fitted, f"up to step {point.step}: {point.fitted:.3g}")
        for point in tuning.points
        if point.fitted is not None and math.isfinite(point.fitted)
    )
    return Panel(
        title="Loss",
        x_title=f"step (kept: {tuning.best})",
        lines=(Line("held out", held_out), Line("trained on", fitted, muted=True)),
        show_x="{:g}".format,
        show_y="{:.2g}".format,
        # both fall by factors, from different heights
        logarithmic=all(dot.y > 0 for dot in (*held_out, *fitted)),
        width=560,
    )


def _tuning_facts(tuning: TuningRecord) -> list[tuple[str, str]]:
    probes = [f"{rate:g}: {significant(value)}" for rate, value in tuning.probes.items()]
    facts = [
        ("teacher", tuning.teacher),
        ("samples", f"{tuning.samples} trained on, {tuning.batch} in a step"),
        ("steps", str(tuning.steps if tuning.stopped is None else tuning.stopped)),
        ("learning rate", f"{tuning.rate:g}" if tuning.rate else "none was any use"),
        ("after a few steps, by rate", ", ".join(probes)),
        ("steps skipped", str(tuning.skipped) if tuning.skipped else ""),
        ("views of samples", ", ".join(tuning.views)),
        ("compared inside", ", ".join(tuning.features)),
    ]
    return [(name, text) for name, text in facts if text]


def _pruning(report: PruneRecord, prefix: str) -> dict[str, Any]:
    """What a pruning did; ids of its page elements start with the prefix."""
    picture, no_picture = _picture(report, f"{prefix}group-")
    fits = [fit for fit in report.repairs if fit.solved]
    reconstructed = _options(report).get("criterion") == "reconstruction"
    curves = _largest_curves(report.groups)
    return {
        "report": report,
        "verdict": certificate_verdict(report.certificate),
        "certificate": certificate_text(report.certificate),
        "picture": picture,
        "no_picture": no_picture,
        "cut_groups": sum(group.kept < group.size for group in report.groups),
        "sparkline": _sparkline,
        "measure": "error" if reconstructed else "score",
        "curves": [inline(_curve_panel(group)) for group in curves],
        "curves_note": _curves_note(report, len(curves), reconstructed),
        "worst_fit": max((max(fit.before, fit.after) for fit in fits), default=0.0),
        "fit": _fit,
        "refit_summary": refit_summary(report.repairs),
        "left_out": left_out(report.repairs),
        "unfolded": sorted(report.unfolded.items()),
        "estimated": sorted(report.estimated.items()),
        "trials": sorted(report.trials.items(), key=lambda trial: trial[1]),
        "finite": math.isfinite,
        "reasons": group_refusals(report.refused),
    }


def _picture(report: PruneRecord, anchor: str) -> tuple[Markup, str]:
    """The network as an SVG element, or why there is none."""
    if report.network is None:
        return Markup(""), ""
    try:
        return Markup(network_svg(report.network, anchor=anchor)), ""
    except InputError as error:
        return Markup(""), str(error)


def _curves_note(report: PruneRecord, shown: int, reconstructed: bool) -> str:
    what = "Sum of the criterion's scores of the removed units"
    if reconstructed:
        what = (
            "Lost variance of the consumers' outputs at each width after their weights are "
            "re-fitted, as a fraction, summed over the consumers"
        )
    many = sum(group.curve is not None for group in report.groups)
    which = f" Shown are the {shown} groups that lose the most units; the table has all of them."
    return f"{what}.{which if shown < many else ''}"


def _largest_curves(groups: Sequence[GroupAccount]) -> list[GroupAccount]:
    """Groups with a curve that lose the most units, in the order of the model."""
    known = [group for group in groups if group.curve is not None]
    largest = sorted(known, key=lambda group: group.kept - group.size)[:_PANELS]
    return sorted(largest, key=lambda group: group.number)


def _curve_panel(group: GroupAccount) -> Panel:
    assert group.curve is not None
    chosen = group.curve.chosen
    label = f"{printable(group.name)}\n{group.size} -> {group.kept} units\n{chosen:.3g}"
    curve = tuple(map(Dot, group.curve.kept, group.curve.error))
    return Panel(
        title=printable(group.name, 38),
        x_title=f"units kept: {group.kept} of {group.size}",
        lines=(Line("", curve, marked=False), Line("", (Dot(group.kept, chosen, label),))),
        show_x="{:g}".format,
        show_y="{:.3g}".format,
        width=340,
        height=220,
    )


def _sparkline(group: GroupAccount) -> Markup:
    """An error curve of the size of a word as an SVG element; empty without a curve."""
    if group.curve is None:
        return Markup("")
    most = max(*group.curve.error, group.curve.chosen) or 1.0

    def place(kept: int, error: float) -> str:
        x = (_SPARK_WIDTH - 2 * _SPARK_EDGE) * kept / max(group.size, 1)
        y = (_SPARK_HEIGHT - 2 * _SPARK_EDGE) * max(error, 0.0) / most
        return f"{round(_SPARK_EDGE + x, 1):g},{round(_SPARK_HEIGHT - _SPARK_EDGE - y, 1):g}"

    points = " ".join(map(place, group.curve.kept, group.curve.error))
    x, y = place(group.kept, group.curve.chosen).split(",")
    return Markup(
        f'<svg class="spark" viewBox="0 0 {_SPARK_WIDTH} {_SPARK_HEIGHT}" aria-hidden="true">'
        f'<polyline points="{points}"/><circle cx="{x}" cy="{y}" r="3"/></svg>'
    )


def _fit(fit: LayerFit, worst: float) -> dict[str, Any]:
    """Errors of a layer before and after it was re-fitted, with the lengths of their bars."""
    known = [
        error if math.isfinite(error) and (fit.solved or not fit.reason) else None
        for error in (fit.before, fit.after)
    ]
    note = "" if fit.solved else f"not re-fitted: {fit_reason(fit)}"
    return {"errors": known, "bars": [share(error or 0.0, worst) for error in known], "note": note}


def _entries(values: Sequence[float]) -> str:
    more = ", ..." if len(values) > _ENTRIES else ""
    return ", ".join(f"{value:.3g}" for value in values[:_ENTRIES]) + more


def _pipeline(steps: Sequence[Mapping[str, Any]]) -> tuple[list[str], str]:
    """The lines of a pipeline as a file for --config, or why they are not shown."""
    if not steps:
        return [], ""
    passes = [
        {step["pass"]: step["options"]} if step["options"] else step["pass"] for step in steps
    ]
    # options of a pass on a line of their own, lists and mappings within in short form
    import yaml

    text: str = yaml.safe_dump(
        {"passes": passes}, sort_keys=False, allow_unicode=True, default_flow_style=None, width=90
    )
    if len(text) > _PIPELINE:
        return [], "The pipeline is too long to be shown here; --plan FILE writes it in full."
    return text.splitlines(), ""
