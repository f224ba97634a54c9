"""Line charts as SVG: one file, no scripts, no fonts or styles from elsewhere, light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from onnxprune.report.figures import svg_text

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


def inline(panel: Panel) -> Markup:
    """Return one panel as an SVG element for a page with `chart_style`; empty without dots."""
    if panel.empty:
        return Markup("")
    head = (
        f'<svg class="chart" viewBox="0 0 {panel.width} {panel.height}" role="img" '
        f'aria-label="{svg_text(panel.title)}">'
    )
    return Markup("".join([head, *_panel(panel), "</svg>"]))


def draw(panels: Sequence[Panel], title: str) -> str:
    """Return an SVG document with panels side by side; panels without dots are left out."""
    shown = [panel for panel in panels if not panel.empty]
    width = sum(panel.width for panel in shown) or 1
    height = max((panel.height for panel in shown), default=1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        f"<title>{svg_text(title)}</title>",
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
        return [value for value in values if self.low <= math.log10(value) <= self.high]


def _panel(panel: Panel) -> list[str]:
    dots = [dot for line in panel.lines for dot in line.dots]
    legend = sum(bool(line.name) for line in panel.lines) > 1
    top = _TOP + (_LEGEND if legend else 0)
    right, bottom = panel.width - _RIGHT, panel.height - _BOTTOM
    across = _scale([dot.x for dot in dots], _LEFT, right, False)
    up = _scale([dot.y for dot in dots], bottom, top, panel.logarithmic)
    parts = [f'<text class="title" x="{_LEFT}" y="20">{svg_text(panel.title)}</text>']
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
        label = f"<title>{svg_text(dot.label)}</title>" if dot.label else ""
        place = f'cx="{across.place(dot.x)}" cy="{up.place(dot.y)}"'
        parts.append(f'<circle class="{fill} c{colour}" {place} r="4">{label}</circle>')
    return parts


def _scale(values: Sequence[float], start: float, end: float, logarithmic: bool) -> _Scale:
    """A scale on which the values do not touch the frame."""
    shown = [math.log10(value) if logarithmic else value for value in values]
    low, high = min(shown), max(shown)
    margin = _MARGIN * (high - low) or 0.05 * max(abs(high), 1.0)
    return _Scale(low - margin, high + margin, start, end, logarithmic)


def _steps(low: float, high: float, most: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, at most so many."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough)
    numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
    return [round(number * step, 12) for number in numbers]


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{svg_text(text)}</text>'
