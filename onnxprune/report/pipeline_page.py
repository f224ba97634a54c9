"""The account of a pipeline as a page: what every pass did, and what the model cost after it."""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from onnxprune.cost.latency.measure import Latency
from onnxprune.report.charts import Dot, Line, Panel, inline
from onnxprune.report.details import detail_facts, detail_tables
from onnxprune.report.figures import durations, milliseconds, percent, share
from onnxprune.report.pages import render, significant
from onnxprune.report.records import PipelineRecord, Sizes, StepReport
from onnxprune.report.sections import (
    COSTS,
    GATES,
    cost_rows,
    option_text,
    origin_facts,
    traced_size,
)

_SHOWN = ("MACs", "parameters", "file size", "memory")
_CHARTED = ("MACs", "parameters", "file size")
_LONGEST = 6000
_LONGEST_LINE = 300


def pipeline_page(
    result: PipelineRecord,
    passes: Sequence[Mapping[str, Any]],
    no_passes: str = "",
    *,
    command: Sequence[str] = (),
    model_file: str | Path | None = None,
    beside: Sequence[str] = (),
) -> str:
    """Return the page of a pipeline.

    Args:
        result: the account.
        passes: each with its options, as a plan holds them.
        no_passes: why they cannot be written down; empty where they can.
        command: the words of the command line; empty for none.
        model_file: where the result was saved.
        beside: files that were written beside it.

    Raises:
        OSError: when the file of the result cannot be read.
    """
    charts = [_cost_chart(result), _quality_chart(result.steps)]
    pipeline, no_pipeline = _pipeline(passes, no_passes)
    return render(
        "pipeline.html",
        {
            "title": _title(result, model_file),
            "summary": _summary(result),
            "tiles": [*_quality_tile(result.steps), *_cost_tiles(result), *_latency_tile(result)],
            "gates": GATES,
            "kinds": _SHOWN,
            "where": traced_size(result.original),
            "rows": [_row(n, one, result.original) for n, one in enumerate(result.steps, 1)],
            "charts": [Markup(one) for one in map(inline, charts) if one],
            "steps": [_step(number, one) for number, one in enumerate(result.steps, 1)],
            "outputs": any(one.outputs for one in result.steps),
            "others": any(one.new_interface for one in result.steps),
            "pipeline": pipeline,
            "no_pipeline": no_pipeline,
            "command": shlex.join(command),
            "origin": origin_facts(result.provenance, model_file),
            "beside": beside,
        },
    )


def _title(result: PipelineRecord, model_file: str | Path | None) -> str:
    names = [result.provenance.model, model_file or ""]
    return " \u2192 ".join(Path(one).name for one in names if one) or "A model in memory"


def _summary(result: PipelineRecord) -> str:
    names = ", ".join(one.name for one in result.steps)
    return f"{names}; {durations(sum(one.seconds for one in result.steps))} in the passes"


def _cost_tiles(result: PipelineRecord) -> list[dict[str, str]]:
    rows = cost_rows(result.original, result.steps[-1].sizes)
    return [
        {
            "name": one.kind.name,
            "figure": percent(one.ratio),
            "detail": f"{one.before} \u2192 {one.after}",
        }
        for one in rows
        if one.kind.name in _SHOWN
    ]


def _latency_tile(result: PipelineRecord) -> list[dict[str, str]]:
    one = result.steps[-1].latency
    if one is None:
        return []
    return [{"name": "latency", "figure": percent(one.ratio), "detail": _interval(one)}]


def _interval(one: Latency) -> str:
    low, high = one.interval
    return f"{milliseconds(one.result)}; {percent(low)} to {percent(high)}, 95 % interval"


def _quality_tile(steps: Sequence[StepReport]) -> list[dict[str, str]]:
    """What the outputs at the end say, where there are samples to compare on."""
    last = _quality(steps[-1])
    if last["same"] is not None:
        return [
            {"name": "same answer", "figure": percent(last["same"]), "detail": "on the samples"}
        ]
    if last["cosine"] is not None:
        figure = f"{last['cosine']:.4f}"
        return [{"name": "cosine to the original", "figure": figure, "detail": "on the samples"}]
    return []


def _quality(step: StepReport) -> dict[str, float | None]:
    """The worst of all outputs, by each measure."""

    def worst(measure: str, choose: Callable[[list[float]], float]) -> float | None:
        known = [getattr(one, measure) for one in step.outputs]
        known = [one for one in known if one is not None]
        return choose(known) if known else None

    return {
        "same": worst("agreement", min),
        "cosine": worst("cosine", min),
        "error": worst("relative_error", max),
    }


def _row(number: int, step: StepReport, original: Sizes) -> dict[str, Any]:
    quality = _quality(step)
    return {
        "number": number,
        "name": step.name,
        "costs": [
            share(kind.figure(step.sizes), kind.figure(original))
            for kind in COSTS
            if kind.name in _SHOWN
        ],
        "latency": step.latency.ratio if step.latency is not None else None,
        "interval": _interval(step.latency) if step.latency is not None else "",
        "same": quality["same"],
        "cosine": quality["cosine"],
        "error": significant(quality["error"]),
        "seconds": step.seconds,
        "shown_seconds": durations(step.seconds),
    }


def _step(number: int, step: StepReport) -> dict[str, Any]:
    said = [*step.notes, *filter(None, [step.remark])]
    if step.new_interface:
        said.insert(0, "Has other inputs or outputs; what follows is compared with this model.")
    if not step.modified:
        said.append("The model is what it was before.")
    return {
        "number": number,
        "name": step.name,
        "said": [f"{one[:1].upper()}{one[1:]}" for one in said],
        "options": textwrap.shorten(option_text(step.options), _LONGEST_LINE, placeholder=" ..."),
        "facts": detail_facts(step.details),
        "tables": detail_tables(step.details),
        "outputs": step.outputs,
        "files": list(step.files),
    }


def _pipeline(steps: Sequence[Mapping[str, Any]], reason: str) -> tuple[list[str], str]:
    """The lines of the pipeline as a file for --config, or why there is none."""
    import yaml

    if reason:
        return [], reason
    passes = [{one["pass"]: one["options"]} if one["options"] else one["pass"] for one in steps]
    # what a pass is given on a line of its own, lists and mappings within in short form
    text: str = yaml.safe_dump(
        {"passes": passes}, sort_keys=False, allow_unicode=True, default_flow_style=None, width=90
    )
    if len(text) > _LONGEST:
        return [], "The pipeline is too long to be shown here; --plan FILE writes it in full."
    return text.splitlines(), ""


def _cost_chart(result: PipelineRecord) -> Panel:
    """What remains after each pass; a line for each kind of cost."""
    lines = [
        Line(
            kind.name,
            (
                Dot(0, 1.0, "the model that was given"),
                *(
                    _dot(n, step, share(kind.figure(step.sizes), kind.figure(result.original)))
                    for n, step in enumerate(result.steps, 1)
                ),
            ),
        )
        for kind in COSTS
        if kind.name in _CHARTED
    ]
    timed = [
        _dot(n, step, step.latency.ratio)
        for n, step in enumerate(result.steps, 1)
        if step.latency is not None
    ]
    if timed:
        lines.append(Line("latency", (Dot(0, 1.0, "the model that was given"), *timed)))
    return Panel("What remains", "after pass", tuple(lines), _number, percent)


def _quality_chart(steps: Sequence[StepReport]) -> Panel:
    """How far the outputs are after each pass from those of the reference."""
    dots = []
    for number, step in enumerate(steps, 1):
        error = _quality(step)["error"]
        if error is not None and math.isfinite(error):
            dots.append(Dot(number, error, f"after {step.name}: {error:.3g}"))
    title = "Relative error of the outputs"
    return Panel(title, "after pass", (Line("", tuple(dots)),), _number, _short)


def _dot(number: int, step: StepReport, fraction: float) -> Dot:
    return Dot(number, fraction, f"after {step.name}: {percent(fraction)}")


def _number(value: float) -> str:
    return f"{value:g}" if value == int(value) else ""


def _short(value: float) -> str:
    return f"{value:.3g}"
