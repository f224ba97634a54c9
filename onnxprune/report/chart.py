"""Line charts as SVG: one file, no scripts, no fonts or styles from elsewhere, light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from onnxprune.report.figures import printable

__all__ = ["Dot", "Line", "Panel", "draw"]

_WIDTH, _HEIGHT = 460, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 18, 40, 48
_TICKS = 7
_MARGIN = 0.06
_COLOURS = 4
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f; }
.title { font-weight: 600; font-size: 13px; }
.grid { stroke: #d8dee4; } .frame { fill: none; stroke: #8c959f; }
.paper { fill: #ffffff; } .hollow { fill: #ffffff; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.c0 { stroke: #0969da; } .c1 { stroke: #bc4c00; } .c2 { stroke: #1a7f37; } .c3 { stroke: #8250df; }
.f0 { fill: #0969da; } .f1 { fill: #bc4c00; } .f2 { fill: #1a7f37; } .f3 { fill: #8250df; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .grid { stroke: #30363d; } .frame { stroke: #7d8590; }
.paper { fill: #0d1117; } .hollow { fill: #0d1117; }
.c0 { stroke: #58a6ff; } .c1 { stroke: #f0883e; } .c2 { stroke: #3fb950; } .c3 { stroke: #bc8cff; }
.f0 { fill: #58a6ff; } .f1 { fill: #f0883e; } .f2 { fill: #3fb950; } .f3 { fill: #bc8cff; }
}
"""


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
    """A named line through its filled dots, from left to right."""

    name: str
    dots: tuple[Dot, ...]


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
    """

    title: str
    x_title: str
    lines: tuple[Line, ...]
    show_x: Callable[[float], str]
    show_y: Callable[[float], str]
    logarithmic: bool = False


def draw(panels: Sequence[Panel], title: str) -> str:
    """Return an SVG document with panels side by side; panels without dots are left out."""
    shown = [one for one in panels if any(line.dots for line in one.lines)]
    width = max(len(shown), 1) * _WIDTH
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" '
        f'width="{width}" height="{_HEIGHT}" role="img">',
        f"<title>{_text(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{width}" height="{_HEIGHT}"/>',
    ]
    for number, panel in enumerate(shown):
        parts += [f'<g transform="translate({number * _WIDTH} 0)">', *_panel(panel), "</g>"]
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

    def ticks(self) -> list[float]:
        """Round values within the scale."""
        if not self.logarithmic:
            return _steps(self.low, self.high)
        decades = range(math.ceil(self.low), math.floor(self.high) + 1)
        # few decades have no room for powers of ten alone
        within = (1,) if len(decades) > 2 else (1, 2, 5)
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        values = [digit * 10.0**power for power in powers for digit in within]
        return [one for one in values if self.low <= math.log10(one) <= self.high]


def _panel(panel: Panel) -> list[str]:
    dots = [dot for line in panel.lines for dot in line.dots]
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    across = _scale([dot.x for dot in dots], _LEFT, right, False)
    up = _scale([dot.y for dot in dots], bottom, _TOP, panel.logarithmic)
    parts = [f'<text class="title" x="{_LEFT}" y="22">{_text(panel.title)}</text>']
    for value in across.ticks():
        x = across.place(value)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(_label(x, bottom + 17, "middle", panel.show_x(value)))
    for value in up.ticks():
        y = up.place(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(_label(_LEFT - 7, y + 4, "end", panel.show_y(value)))
    parts.append(
        f'<rect class="frame" x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" '
        f'height="{bottom - _TOP}"/>'
    )
    parts.append(_label((_LEFT + right) / 2, bottom + 38, "middle", panel.x_title))
    for number, line in enumerate(panel.lines):
        parts += _line(line, number % _COLOURS, across, up)
        if len(panel.lines) > 1:
            y = _TOP + 16 + 16 * number
            parts.append(f'<circle class="f{number % _COLOURS}" cx="{right - 12}" cy="{y}" r="4"/>')
            parts.append(_label(right - 22, y + 4, "end", line.name))
    return parts


def _line(line: Line, colour: int, across: _Scale, up: _Scale) -> list[str]:
    dots = sorted(line.dots, key=lambda dot: dot.x)
    path = " ".join(f"{across.place(d.x)},{up.place(d.y)}" for d in dots if d.filled)
    parts = [f'<polyline class="c{colour}" points="{path}"/>']
    for dot in dots:
        fill = f"f{colour}" if dot.filled else "hollow"
        parts.append(
            f'<circle class="{fill} c{colour}" cx="{across.place(dot.x)}" cy="{up.place(dot.y)}" '
            f'r="4"><title>{_text(dot.label)}</title></circle>'
        )
    return parts


def _scale(values: Sequence[float], start: float, end: float, logarithmic: bool) -> _Scale:
    """A scale on which the values do not touch the frame."""
    shown = [math.log10(one) if logarithmic else one for one in values]
    low, high = min(shown), max(shown)
    margin = _MARGIN * (high - low) or 0.05 * max(abs(high), 1.0)
    return _Scale(low - margin, high + margin, start, end, logarithmic)


def _steps(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(one * power for one in (1, 2, 5, 10) if one * power >= rough)
    numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
    return [round(number * step, 12) for number in numbers]


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{_text(text)}</text>'


def _text(text: str) -> str:
    return escape(printable(text))
