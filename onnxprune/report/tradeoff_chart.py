"""What a sweep found, as curves over what remains of the original's cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onnxprune.report.chart import Dot, Line, Panel, draw
from onnxprune.report.figures import percent

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxprune.tradeoff import Sweep, SweepPoint

__all__ = ["KIND_NAMES", "tradeoff_chart"]

KIND_NAMES = {
    "channels": "channels",
    "params": "parameters",
    "macs": "MACs",
    "size": "file size",
    "memory": "memory",
    "latency": "latency",
}
_LEAST = 1e-9


def tradeoff_chart(sweep: Sweep) -> str:
    """Return an SVG document: divergence, same answers and latency over cost.

    The cost is that of the targets, MACs where they are of several kinds.
    """
    kind = sweep.kinds[0] if len(sweep.kinds) == 1 else "macs"
    x_title = f"{KIND_NAMES.get(kind, kind)} that remain"
    draws = _Curves(sweep, kind)
    answers, name = _answers(sweep)
    panels = [
        Panel("Divergence of the outputs", x_title, draws.of(_divergence), _part, _short, True),
        Panel(name, x_title, draws.of(answers), _part, percent),
    ]
    if kind != "latency":
        panels.append(Panel("Measured latency", x_title, draws.of(_latency), _part, _part))
    return draw(panels, "Trade-off between cost and quality, by onnxprune sweep")


class _Curves:
    """One line for each kind of target."""

    def __init__(self, sweep: Sweep, kind: str) -> None:
        self.sweep = sweep
        self.kind = kind
        self.best = sweep.pareto()

    def of(self, value: Callable[[SweepPoint], float | None]) -> tuple[Line, ...]:
        lines: dict[str, list[Dot]] = {}
        for point in self.sweep.points:
            y = value(point) if point.done else None
            if y is not None and math.isfinite(y):
                name = " + ".join(KIND_NAMES.get(kind, kind) for kind in point.target)
                asked = ", ".join(f"{kind}={share:g}" for kind, share in point.target.items())
                best = any(point is one for one in self.best)
                dot = Dot(point.remains(self.kind), y, asked, best)
                lines.setdefault(name, []).append(dot)
        return tuple(Line(name, tuple(dots)) for name, dots in lines.items())


def _answers(sweep: Sweep) -> tuple[Callable[[SweepPoint], float | None], str]:
    """How often the answer is the same, or the cosine for outputs that give none."""
    outputs = [one for point in sweep.points for one in point.outputs]
    if any(one.get("agreement") is not None for one in outputs):
        return lambda point: _lowest(point, "agreement"), "Same answer as the original"
    return lambda point: _lowest(point, "cosine"), "Cosine to the original's outputs"


def _lowest(point: SweepPoint, figure: str) -> float | None:
    values = [one[figure] for one in point.outputs if one.get(figure) is not None]
    return min(values, default=None)


def _divergence(point: SweepPoint) -> float | None:
    return None if point.divergence is None else max(point.divergence, _LEAST)


def _latency(point: SweepPoint) -> float | None:
    return point.latency["ratio"] if point.latency is not None else None


def _part(fraction: float) -> str:
    return f"{fraction * 100:.3g} %"


def _short(number: float) -> str:
    return f"{number:.2g}"
