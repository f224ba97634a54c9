"""The picture of a network: every layer a card with a bar as long as it is wide.

The bar has the colour of the group the channels belong to; what was removed is hatched, what cannot
be cut is grey. A repeated block is there once, and each of its bars is a stack: one stripe for
every repetition. Bars grow with the square root of the width, or a vocabulary would leave nothing
to see of all else; the removed part of a bar is to scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from onnxprune.report.figures import printable, svg_text
from onnxprune.report.network.folding import FoldedNode, fold
from onnxprune.report.network.layout import Box, Layout, arrange
from onnxprune.report.network.network import Network, NetworkNode, Segment

_STYLE = Path(__file__).parents[1] / "templates" / "network.css"
_CARD, _PADDING = 222, 12
_BAR = _CARD - 2 * _PADDING
_FIRST_LINE, _SECOND_LINE, _BAR_TOP = 18, 33, 41
_THICK, _STRIPE, _SHORTEST = 9.0, 5.0, 4.0
_BELOW = 10
_JOIN, _JOIN_LETTER, _END_HEIGHT = 20, 6.4, 24
_LETTERS, _SHORT = 28, 14
_MARGIN, _HEAD, _TITLE = 24, 62, 21
_NARROWEST = 460
_COLOURS = 7
_SYMBOLS = {
    **dict.fromkeys(("Add", "Sum", "SkipLayerNormalization"), "+"),
    "SkipSimplifiedLayerNormalization": "+",
    "Sub": "\u2212",
    **dict.fromkeys(("Mul", "MatMul", "FusedMatMul"), "\u00d7"),
}


def network_svg(network: Network, *, title: str = "", anchor: str = "") -> str:
    """Draw a network as one SVG element without scripts, in light and dark.

    Args:
        network: what is drawn; widths after the cut only where something was removed.
        title: above the picture.
        anchor: layers link to the elements of a page whose ids are this text and the number of
            their group; empty for a picture that is a document of its own.

    Raises:
        InputError: when pygraphviz, which lays it out, is not installed.
    """
    folded = fold(network)
    layout = arrange(folded, [_size(node) for node in folded.nodes])
    widest = max((node.before for node in network.nodes), default=1)
    draw = _Pen(network, math.sqrt(widest or 1), anchor=anchor)
    width = max(layout.width + 2 * _MARGIN, _NARROWEST)
    left = (width - layout.width) / 2
    head = _HEAD if title else _HEAD - _TITLE
    height = layout.height + head + _MARGIN
    name = title or "The network"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="network" role="group" '
            f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
            f'aria-label="{svg_text(name)}">',
            *([] if anchor else [f"<title>{svg_text(name)}</title>"]),
            f"<style>{_STYLE.read_text(encoding='utf-8')}</style>",
            _DEFINITIONS,
            f'<rect class="paper" width="{width:g}" height="{height:g}"/>',
            *_head(title, network),
            f'<g transform="translate({left:g} {head})">',
            *_blocks(layout, [block.times for block in folded.blocks]),
            *map(_edge, layout.edges),
            *(
                part
                for node, box in zip(folded.nodes, layout.nodes, strict=True)
                for part in draw.node(node, box)
            ),
            "</g>",
            "</svg>",
            "",
        ]
    )


_DEFINITIONS = (
    '<defs><pattern id="network-hatch" width="5" height="5" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><line class="hatching" y2="5"/></pattern>'
    '<marker id="network-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
    'markerUnits="userSpaceOnUse" orient="auto"><path class="tip" d="M0 0L8 4L0 8z"/></marker>'
    "</defs>"
)


def _size(node: FoldedNode) -> tuple[float, float]:
    """Width and height of a node in pixels."""
    first = node.members[0]
    if first.kind == "layer":
        return _CARD, (_BAR_TOP + _thickness(node) if first.segments else _SECOND_LINE) + _BELOW
    if first.kind == "join":
        text = _symbol(first)
        return max(_JOIN, 12 + _JOIN_LETTER * len(text) if len(text) > 1 else 0), _JOIN
    return 24 + 6.8 * len(printable(first.name, _SHORT)), _END_HEIGHT


def _thickness(node: FoldedNode) -> float:
    return max(_THICK, _STRIPE * len(node.members))


def _symbol(node: NetworkNode) -> str:
    return _SYMBOLS.get(node.operator, printable(node.operator, _SHORT))


def _head(title: str, network: Network) -> Iterator[str]:
    """The title, and what bars and colours mean."""
    top = _TITLE if title else 0
    if title:
        yield f'<text class="name" x="{_MARGIN}" y="24">{svg_text(printable(title, 60))}</text>'
    keys = [("g0", False, "width, a colour for each group")]
    keys += [("g0", True, "removed")] if network.cut else []
    keys += [("whole", False, "cannot be cut")]
    x = float(_MARGIN)
    for colour, removed, text in keys:
        yield from _bar(colour, x, top + 14, 18, _THICK, removed=removed)
        yield f'<text class="quiet" x="{x + 24:g}" y="{top + 22.5:g}">{text}</text>'
        x += 24 + 6.2 * len(text) + 16


def _blocks(layout: Layout, times: Sequence[int]) -> Iterator[str]:
    for box, number in zip(layout.blocks, times, strict=True):
        yield f'<rect class="block" {_rectangle(box)} rx="10"/>'
        x, y = box.left + box.width - 10, box.top + 15
        yield f'<text class="times" text-anchor="end" x="{x:g}" y="{y:g}">\u00d7 {number}</text>'


def _edge(points: Sequence[tuple[float, float]]) -> str:
    start, *rest = (f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="edge" d="M{start}C{" ".join(rest)}"/>'


class _Pen:
    """Draws the nodes of a network.

    Args:
        network: for the names of groups.
        widest: square root of the greatest width.
        anchor: ids of the elements that nodes link to, without the number of the group.
    """

    def __init__(self, network: Network, widest: float, *, anchor: str) -> None:
        self._network = network
        self._widest = widest
        self._anchor = anchor
        self._colours = _colours(network)

    def node(self, node: FoldedNode, box: Box) -> Iterator[str]:
        """Draw a node."""
        first = node.members[0]
        yield f'<g transform="translate({box.left:g} {box.top:g})">'
        if first.kind == "layer":
            yield from self._layer(node, box)
        else:
            yield from self._pill(node, box)
        yield "</g>"

    def _layer(self, node: FoldedNode, box: Box) -> Iterator[str]:
        first = node.members[0]
        inside = [
            f'<rect class="card" width="{box.width:g}" height="{box.height:g}" rx="6"/>',
            f'<text class="name" x="{_PADDING}" y="{_FIRST_LINE}">{svg_text(_short(first))}</text>',
            f'<text class="quiet" x="{_PADDING}" y="{_SECOND_LINE}">'
            f"{svg_text(printable(first.operator, _LETTERS - 8))}</text>",
            f'<text text-anchor="end" x="{_CARD - _PADDING}" y="{_SECOND_LINE}">'
            f"{self._widths(node.members)}</text>",
        ]
        yield self._linked(_main_group(first), self._described(node.members), inside)
        top, high = float(_BAR_TOP), _thickness(node) / len(node.members)
        for member in node.members:
            yield from self._stripe(member, top, high - (0.8 if len(node.members) > 1 else 0))
            top += high

    def _stripe(self, node: NetworkNode, top: float, high: float) -> Iterator[str]:
        """One bar: its segments beside each other, each with what is left of it first."""
        length = max(_BAR * math.sqrt(node.before) / self._widest, _SHORTEST)
        left = (_CARD - length) / 2
        for segment in node.segments:
            wide = length * segment.before / max(node.before, 1)
            kept = wide * segment.after / max(segment.before, 1)
            colour = "whole" if segment.group is None else f"g{self._colours[segment.group]}"
            parts = [*_bar(colour, left, top, kept, high)] if kept else []
            if segment.after < segment.before:
                parts += _bar(colour, left + kept, top, wide - kept, high, removed=True)
            yield self._linked(segment.group, self._described([node], segment), parts, within=True)
            left += wide

    def _pill(self, node: FoldedNode, box: Box) -> Iterator[str]:
        """A meeting of branches or an end of the network."""
        first = node.members[0]
        join = first.kind == "join"
        text = _symbol(first) if join else printable(first.name, _SHORT)
        group = _main_group(first) if join and len(first.segments) == 1 else None
        ring = "" if group is None else f" r{self._colours[group]}"
        inside = [
            f'<rect class="card{ring}" width="{box.width:g}" height="{box.height:g}" '
            f'rx="{box.height / 2:g}"/>',
            f'<text class="quiet" text-anchor="middle" x="{box.width / 2:g}" '
            f'y="{box.height / 2 + 4:g}">{svg_text(text)}</text>',
        ]
        yield self._linked(group, self._described(node.members), inside)

    def _linked(
        self, group: int | None, description: str, inside: Iterable[str], *, within: bool = False
    ) -> str:
        """Parts with a description, which link to the row of a group if there is one.

        Args:
            group: number of the group.
            description: shown when the mouse rests on it, and read aloud.
            inside: the parts.
            within: on a card, which the keyboard stops at already.
        """
        content = f"<title>{svg_text(description)}</title>{''.join(inside)}"
        if group is None or not self._anchor:
            return f"<g>{content}</g>"
        label = svg_text(description.replace("\n", ", "))
        stop = ' tabindex="-1"' if within else ""
        return f'<a href="#{self._anchor}{group}" aria-label="{label}"{stop}>{content}</a>'

    def _widths(self, members: Sequence[NetworkNode]) -> str:
        before, after = members[0].before, sorted({member.after for member in members})
        if not before:
            return ""
        if after == [before]:
            return str(before)
        left = str(after[0]) if len(after) == 1 else f"{after[0]}\u2013{after[-1]}"
        return f"{before} \u2192 {left}"

    def _described(self, members: Sequence[NetworkNode], only: Segment | None = None) -> str:
        """Operator, names, widths, groups and reasons, a line for each."""
        lines = []
        for member in members:
            width = f": {self._widths([member])}" if member.before else ""
            lines.append(f"{member.operator} {printable(member.name)}{width}")
        shown = [only] if only is not None else list(members[0].segments)
        for part in shown:
            kept = str(part.before) + (f" \u2192 {part.after}" if part.after < part.before else "")
            if part.group is not None:
                lines.append(f"group {printable(self._network.groups[part.group])}: {kept}")
            elif members[0].kind == "layer":
                reason = members[0].reason
                lines.append("cannot be cut" + (f": {reason}" if reason else ""))
        return "\n".join(lines)


def _main_group(node: NetworkNode) -> int | None:
    """The group with the largest part of a node."""
    parts = [segment for segment in node.segments if segment.group is not None]
    return max(parts, key=lambda segment: segment.before).group if parts else None


def _bar(
    colour: str, left: float, top: float, width: float, height: float, *, removed: bool = False
) -> Iterator[str]:
    place = f'x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"'
    yield f'<rect class="{colour}{" gone" if removed else ""}" {place}/>'
    if removed:
        yield f'<rect class="hatch" {place}/>'


def _colours(network: Network) -> dict[int, int]:
    """A colour for each group: the one that has not been seen for longest where it begins."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for place, node in enumerate(network.nodes):
        for segment in node.segments:
            if segment.group is not None:
                first.setdefault(segment.group, place)
                last[segment.group] = place
    free = [-1] * _COLOURS
    chosen = {}
    for group in first:
        colour = min(range(_COLOURS), key=free.__getitem__)
        chosen[group], free[colour] = colour, last[group]
    return chosen


def _short(node: NetworkNode) -> str:
    """The end of a name, which says more than its beginning; without the operator once more."""
    name = printable(node.name)
    operator = node.operator.split()[0]
    name = name.removesuffix(f"/{operator}") or name
    return name if len(name) <= _LETTERS else f"\u2026{name[1 - _LETTERS :]}"


def _rectangle(box: Box) -> str:
    return f'x="{box.left:g}" y="{box.top:g}" width="{box.width:g}" height="{box.height:g}"'
