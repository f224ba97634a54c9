"""What a sweep found, as curves over what remains of the original's cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from onnxprune.report.chart import Dot, Line, Panel, draw
from onnxprune.report.figures import percent, printable
from onnxprune.report.kinds import KIND_NAMES
from onnxprune.shares import target_text

if TYPE_CHECKING:
    from onnxprune.tradeoff import Sweep, SweepPoint

__all__ = ["Measure", "answer_measures", "tradeoff_chart", "tradeoff_panels"]

_LEAST = 1e-9
_COSTS = ("macs", "latency", "size", "params")
_WIDTHS_SHOWN = 8
_NAME = 30

Measure: TypeAlias = "Callable[[SweepPoint], float | None]"


def tradeoff_chart(sweep: Sweep) -> str:
    """Return an SVG document: divergence, same answers and latency over cost.

    The cost is that of the targets, MACs where they are of several kinds.
    """
    kind = sweep.kinds[0] if len(sweep.kinds) == 1 else "macs"
    panels = [_divergence_panel(sweep, kind), _answer_panel(sweep, kind)]
    if kind != "latency":
        lines = _lines(sweep, kind, _latency)
        panels.append(Panel("Measured latency", _axis(kind), lines, _part, _part))
    return draw(panels, "Trade-off between cost and quality, by onnxprune sweep")


def tradeoff_panels(sweep: Sweep, *, diverging: bool) -> list[Panel]:
    """Quality over MACs, latency, size and parameters.

    Args:
        sweep: what was found.
        diverging: quality is the divergence of the outputs, else the first of `answer_measures`.
    """
    panel = _divergence_panel if diverging else _answer_panel
    return [one for kind in _COSTS if not (one := panel(sweep, kind)).empty]


def answer_measures(sweep: Sweep) -> dict[str, Measure]:
    """By name, the quality where it was measured, and how alike answers are.

    That is how often the answer is the same, or the cosine for outputs that give none.
    """
    measured = [point.quality for point in sweep.points if point.quality is not None]
    found: dict[str, Measure] = {}
    if measured:
        found[str(measured[0]["measure"]).capitalize()] = _quality
    outputs = [one for point in sweep.points for one in point.outputs]
    if any(one.get("agreement") is not None for one in outputs):
        found["Same answer as the original"] = lambda point: _lowest(point, "agreement")
    else:
        found["Cosine to the original's outputs"] = lambda point: _lowest(point, "cosine")
    return found


def _divergence_panel(sweep: Sweep, kind: str) -> Panel:
    lines = _lines(sweep, kind, _divergence)
    title = f"Divergence of the outputs by {KIND_NAMES.get(kind, kind)}"
    return Panel(title, _axis(kind), lines, _part, _short, True)


def _answer_panel(sweep: Sweep, kind: str) -> Panel:
    name, answers = next(iter(answer_measures(sweep).items()))
    title = f"{name} by {KIND_NAMES.get(kind, kind)}"
    return Panel(title, _axis(kind), _lines(sweep, kind, answers), _part, _part)


def _axis(kind: str) -> str:
    return f"{KIND_NAMES.get(kind, kind)} that {'remains' if kind == 'latency' else 'remain'}"


def _lines(sweep: Sweep, kind: str, value: Measure) -> tuple[Line, ...]:
    """One line for each kind of target; points that are beaten stand beside it."""
    best = sweep.pareto()
    lines: dict[str, list[Dot]] = {}
    for point in (*sweep.points, *sweep.baselines):
        y = value(point) if point.done else None
        timed = kind != "latency" or point.latency is not None
        if y is not None and math.isfinite(y) and timed:
            name = point.baseline or _targets_name(sweep, point)
            on_line = bool(point.baseline) or any(point is one for one in best)
            dot = Dot(point.remains(kind), y, _told(point), on_line)
            lines.setdefault(name, []).append(dot)
    simple = {one.baseline for one in sweep.baselines}
    return tuple(Line(name, tuple(dots), muted=name in simple) for name, dots in lines.items())


def _targets_name(sweep: Sweep, point: SweepPoint) -> str:
    if len({tuple(one.target) for one in sweep.points}) == 1 and sweep.baselines:
        return "onnxprune"
    return " + ".join(KIND_NAMES.get(kind, kind) for kind in point.target)


def _told(point: SweepPoint) -> str:
    """What a dot says: the target, what remains, and the widths."""
    asked = target_text(point.target)
    figures = [f"{KIND_NAMES[kind]} {percent(point.remains(kind))}" for kind in ("macs", "params")]
    if point.latency is not None:
        figures.append(f"latency {percent(point.latency['ratio'])}")
    if point.quality is not None:
        figures.append(f"{point.quality['measure']} {percent(point.quality['result'] / 100)}")
    if point.divergence is not None:
        figures.append(f"divergence {_short(point.divergence)}")
    largest = sorted(point.widths.items(), key=lambda one: one[1][1] - one[1][0])[:_WIDTHS_SHOWN]
    widths = [f"{printable(name, _NAME)}: {a} -> {b}" for name, (a, b) in largest]
    more = len(point.widths) - len(widths)
    lines = [f"{point.baseline}, {asked}" if point.baseline else asked, ", ".join(figures), *widths]
    return "\n".join([*lines, *([f"and {more} more groups"] if more else [])])


def _lowest(point: SweepPoint, figure: str) -> float | None:
    values = [one[figure] for one in point.outputs if one.get(figure) is not None]
    return min(values, default=None)


def _quality(point: SweepPoint) -> float | None:
    return point.quality["result"] / 100 if point.quality is not None else None


def _divergence(point: SweepPoint) -> float | None:
    return None if point.divergence is None else max(point.divergence, _LEAST)


def _latency(point: SweepPoint) -> float | None:
    return point.latency["ratio"] if point.latency is not None else None


def _part(fraction: float) -> str:
    return f"{fraction * 100:.3g} %"


def _short(number: float) -> str:
    return f"{number:.2g}"
