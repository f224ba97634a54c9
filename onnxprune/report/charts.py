"""Line charts as SVG: one file, no scripts, no fonts or styles from elsewhere, light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from xml.sax.saxutils import escape

from onnxprune.options import target_text
from onnxprune.report.figures import KIND_NAMES, percent, printable
from onnxprune.report.records import GroupAccount, SweepPointRecord, SweepRecord

_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 34, 46
_LEGEND = 22
_LETTER = 6.6
_TICK_WIDTH, _TICK_HEIGHT = 64, 44
_MARGIN = 0.06
_COLOURS = 4
_STYLE = Path(__file__).parent / "templates" / "chart.css"


@dataclass(frozen=True)
class Dot:
    """One point of a line.

    Attributes:
        x: finite.
        y: finite; above 0 in a panel with logarithmic scale.
        label: shown when the mouse rests on it.
        filled: drawn solid, otherwise hollow and off the line.
    """

    x: float
    y: float
    label: str = ""
    filled: bool = True


@dataclass(frozen=True)
class Line:
    """A named line through its filled dots, from left to right.

    Attributes:
        name: in the legend; empty for none.
        dots: in any order.
        muted: dashed: what the others are compared with.
        marked: dots are drawn, not only the line through them.
    """

    name: str
    dots: tuple[Dot, ...]
    muted: bool = False
    marked: bool = True


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        title: above it.
        x_title: below it.
        lines: at most four can be told apart.
        show_x: how numbers of the x axis are written.
        show_y: the same for the y axis.
        logarithmic: the y axis shows powers.
        width: of the drawing.
        height: of the drawing.
    """

    title: str
    x_title: str
    lines: tuple[Line, ...]
    show_x: Callable[[float], str]
    show_y: Callable[[float], str]
    logarithmic: bool = False
    width: int = 460
    height: int = 340

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(line.dots for line in self.lines)


def chart_style() -> str:
    """Return the style sheet of drawings, for pages that hold them."""
    return _STYLE.read_text(encoding="utf-8")


def inline(panel: Panel) -> str:
    """Return one panel as an SVG element for a page with `chart_style`; empty without dots."""
    if panel.empty:
        return ""
    return "".join(
        [
            f'<svg class="chart" viewBox="0 0 {panel.width} {panel.height}" role="img" ',
            f'aria-label="{_text(panel.title)}">',
            *_panel(panel),
            "</svg>",
        ]
    )


def draw(panels: Sequence[Panel], title: str) -> str:
    """Return an SVG document with panels side by side; panels without dots are left out."""
    shown = [one for one in panels if not one.empty]
    width = sum(one.width for one in shown) or 1
    height = max((one.height for one in shown), default=1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        f"<title>{_text(title)}</title>",
        f"<style>{chart_style()}</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
    ]
    left = 0
    for panel in shown:
        parts += [f'<g transform="translate({left} 0)">', *_panel(panel), "</g>"]
        left += panel.width
    return "\n".join([*parts, "</svg>", ""])


@dataclass(frozen=True)
class _Scale:
    """From values to places on the paper.

    Attributes:
        low: value at `start`.
        high: value at `end`.
        start: place.
        end: place.
        logarithmic: low and high are powers of ten.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        shown = math.log10(value) if self.logarithmic else value
        part = (shown - self.low) / (self.high - self.low)
        return round(self.start + part * (self.end - self.start), 1)

    def ticks(self, space: float) -> list[float]:
        """Round values within the scale, at about this distance on the paper."""
        if not self.logarithmic:
            number = max(abs(self.end - self.start) / space, 2)
            return _steps(self.low, self.high, number)
        decades = range(math.ceil(self.low), math.floor(self.high) + 1)
        # few decades have no room for powers of ten alone
        within = (1,) if len(decades) > 2 else (1, 2, 5)
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        values = [digit * 10.0**power for power in powers for digit in within]
        return [one for one in values if self.low <= math.log10(one) <= self.high]


def _panel(panel: Panel) -> list[str]:
    dots = [dot for line in panel.lines for dot in line.dots]
    legend = sum(bool(line.name) for line in panel.lines) > 1
    top = _TOP + (_LEGEND if legend else 0)
    right, bottom = panel.width - _RIGHT, panel.height - _BOTTOM
    across = _scale([dot.x for dot in dots], _LEFT, right, False)
    up = _scale([dot.y for dot in dots], bottom, top, panel.logarithmic)
    parts = [f'<text class="title" x="{_LEFT}" y="20">{_text(panel.title)}</text>']
    for value in across.ticks(_TICK_WIDTH):
        x = across.place(value)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>')
        parts.append(_label(x, bottom + 17, "middle", panel.show_x(value)))
    for value in up.ticks(_TICK_HEIGHT):
        y = up.place(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(_label(_LEFT - 7, y + 4, "end", panel.show_y(value)))
    parts.append(
        f'<rect class="frame" x="{_LEFT}" y="{top}" width="{right - _LEFT}" '
        f'height="{bottom - top}"/>'
    )
    parts.append(_label((_LEFT + right) / 2, bottom + 37, "middle", panel.x_title))
    for number, line in enumerate(panel.lines):
        parts += _line(line, number % _COLOURS, across, up)
    return [*parts, *_legend(panel.lines)] if legend else parts


def _legend(lines: Sequence[Line]) -> list[str]:
    """Names in a row below the title, each behind a piece of its line."""
    parts: list[str] = []
    x = float(_LEFT)
    for number, line in enumerate(lines):
        if not line.name:
            continue
        colour = f"c{number % _COLOURS}{' muted' if line.muted else ''}"
        parts.append(f'<polyline class="{colour}" points="{x:g},38 {x + 20:g},38"/>')
        parts.append(_label(x + 26, 42, "start", line.name))
        x += 26 + _LETTER * len(line.name) + 18
    return parts


def _line(line: Line, colour: int, across: _Scale, up: _Scale) -> list[str]:
    dots = sorted(line.dots, key=lambda dot: dot.x)
    path = " ".join(f"{across.place(d.x)},{up.place(d.y)}" for d in dots if d.filled)
    dashed = " muted" if line.muted else ""
    parts = [f'<polyline class="c{colour}{dashed}" points="{path}"/>']
    for dot in dots if line.marked else ():
        fill = f"f{colour}" if dot.filled else "hollow"
        label = f"<title>{_text(dot.label)}</title>" if dot.label else ""
        place = f'cx="{across.place(dot.x)}" cy="{up.place(dot.y)}"'
        parts.append(f'<circle class="{fill} c{colour}" {place} r="4">{label}</circle>')
    return parts


def _scale(values: Sequence[float], start: float, end: float, logarithmic: bool) -> _Scale:
    """A scale on which the values do not touch the frame."""
    shown = [math.log10(one) if logarithmic else one for one in values]
    low, high = min(shown), max(shown)
    margin = _MARGIN * (high - low) or 0.05 * max(abs(high), 1.0)
    return _Scale(low - margin, high + margin, start, end, logarithmic)


def _steps(low: float, high: float, most: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, at most so many."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(one * power for one in (1, 2, 5, 10) if one * power >= rough)
    numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
    return [round(number * step, 12) for number in numbers]


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{_text(text)}</text>'


def _text(text: str) -> str:
    """Text that is safe in elements and attributes; lines stay lines."""
    return escape("\n".join(map(printable, text.split("\n"))), {'"': "&quot;"})


_PANELS = 24
_ERROR_NAME = 38
_WIDTH, _HEIGHT = 120, 26
_EDGE = 3


def curve_panels(groups: Sequence[GroupAccount]) -> list[str]:
    """Return SVG elements for the groups that lose the most units, in the order of the model."""
    known = [one for one in groups if one.curve is not None]
    largest = sorted(known, key=lambda one: one.kept - one.size)[:_PANELS]
    return [inline(_group_panel(one)) for one in sorted(largest, key=lambda one: one.number)]


def sparkline(one: GroupAccount) -> str:
    """Return an error curve of the size of a word as an SVG element; empty without a curve."""
    if one.curve is None:
        return ""
    most = max(*one.curve.error, one.curve.chosen) or 1.0

    def place(kept: int, error: float) -> tuple[float, float]:
        across = (_WIDTH - 2 * _EDGE) * kept / max(one.size, 1)
        up = (_HEIGHT - 2 * _EDGE) * max(error, 0.0) / most
        return round(_EDGE + across, 1), round(_HEIGHT - _EDGE - up, 1)

    places = map(place, one.curve.kept, one.curve.error)
    points = " ".join(f"{x:g},{y:g}" for x, y in places)
    x, y = place(one.kept, one.curve.chosen)
    return (
        f'<svg class="spark" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-hidden="true">'
        f'<polyline points="{points}"/><circle cx="{x:g}" cy="{y:g}" r="3"/></svg>'
    )


def _group_panel(one: GroupAccount) -> Panel:
    assert one.curve is not None
    curve = tuple(map(Dot, one.curve.kept, one.curve.error))
    label = f"{printable(one.name)}\n{one.size} -> {one.kept} units\n{one.curve.chosen:.3g}"
    chosen = Dot(one.kept, one.curve.chosen, label)
    return Panel(
        title=printable(one.name, _ERROR_NAME),
        x_title=f"units kept: {one.kept} of {one.size}",
        lines=(Line("", curve, marked=False), Line("", (chosen,))),
        show_x="{:g}".format,
        show_y="{:.3g}".format,
        width=340,
        height=220,
    )


_LEAST = 1e-9
_COSTS = ("macs", "latency", "size", "params")
_WIDTHS_SHOWN = 8
_NAME = 30

Measure: TypeAlias = "Callable[[SweepPointRecord], float | None]"


def tradeoff_chart(sweep: SweepRecord) -> str:
    """Return an SVG document: divergence, same answers and latency over cost.

    The cost is that of the targets, MACs where they are of several kinds.
    """
    kind = sweep.kinds[0] if len(sweep.kinds) == 1 else "macs"
    panels = [_divergence_panel(sweep, kind), _answer_panel(sweep, kind)]
    if kind != "latency":
        lines = _lines(sweep, kind, _latency)
        panels.append(Panel("Measured latency", _axis(kind), lines, _part, _part))
    return draw(panels, "Trade-off between cost and quality, by onnxprune sweep")


def tradeoff_panels(sweep: SweepRecord, *, diverging: bool) -> list[Panel]:
    """Quality over MACs, latency, size and parameters.

    Args:
        sweep: what was found.
        diverging: quality is the divergence of the outputs, else the first of `answer_measures`.
    """
    panel = _divergence_panel if diverging else _answer_panel
    return [one for kind in _COSTS if not (one := panel(sweep, kind)).empty]


def answer_measures(sweep: SweepRecord) -> dict[str, Measure]:
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


def _divergence_panel(sweep: SweepRecord, kind: str) -> Panel:
    lines = _lines(sweep, kind, _divergence)
    title = f"Divergence of the outputs by {KIND_NAMES.get(kind, kind)}"
    return Panel(title, _axis(kind), lines, _part, _short, True)


def _answer_panel(sweep: SweepRecord, kind: str) -> Panel:
    name, answers = next(iter(answer_measures(sweep).items()))
    title = f"{name} by {KIND_NAMES.get(kind, kind)}"
    return Panel(title, _axis(kind), _lines(sweep, kind, answers), _part, _part)


def _axis(kind: str) -> str:
    return f"{KIND_NAMES.get(kind, kind)} that {'remains' if kind == 'latency' else 'remain'}"


def _lines(sweep: SweepRecord, kind: str, value: Measure) -> tuple[Line, ...]:
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


def _targets_name(sweep: SweepRecord, point: SweepPointRecord) -> str:
    if len({tuple(one.target) for one in sweep.points}) == 1 and sweep.baselines:
        return "onnxprune"
    return " + ".join(KIND_NAMES.get(kind, kind) for kind in point.target)


def _told(point: SweepPointRecord) -> str:
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


def _lowest(point: SweepPointRecord, figure: str) -> float | None:
    values = [one[figure] for one in point.outputs if one.get(figure) is not None]
    return min(values, default=None)


def _quality(point: SweepPointRecord) -> float | None:
    return point.quality["result"] / 100 if point.quality is not None else None


def _divergence(point: SweepPointRecord) -> float | None:
    return None if point.divergence is None else max(point.divergence, _LEAST)


def _latency(point: SweepPointRecord) -> float | None:
    return point.latency["ratio"] if point.latency is not None else None


def _part(fraction: float) -> str:
    return f"{fraction * 100:.3g} %"


def _short(number: float) -> str:
    return f"{number:.2g}"
