"""Error curves of groups, each with the width that was chosen: a small chart, and a smaller one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.report.chart import Dot, Line, Panel, inline
from onnxprune.report.figures import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxprune.report.accounts import GroupAccount

__all__ = ["curve_panels", "sparkline"]

_PANELS = 24
_NAME = 38
_WIDTH, _HEIGHT = 120, 26
_EDGE = 3


def curve_panels(groups: Sequence[GroupAccount]) -> list[str]:
    """Return SVG elements for the groups that lose the most units, in the order of the model."""
    known = [one for one in groups if one.curve is not None]
    largest = sorted(known, key=lambda one: one.kept - one.size)[:_PANELS]
    return [inline(_panel(one)) for one in sorted(largest, key=lambda one: one.number)]


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


def _panel(one: GroupAccount) -> Panel:
    assert one.curve is not None
    curve = tuple(map(Dot, one.curve.kept, one.curve.error))
    label = f"{printable(one.name)}\n{one.size} -> {one.kept} units\n{one.curve.chosen:.3g}"
    chosen = Dot(one.kept, one.curve.chosen, label)
    return Panel(
        title=printable(one.name, _NAME),
        x_title=f"units kept: {one.kept} of {one.size}",
        lines=(Line("", curve, marked=False), Line("", (chosen,))),
        show_x="{:g}".format,
        show_y="{:.3g}".format,
        width=340,
        height=220,
    )
