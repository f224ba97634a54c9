"""Repeated blocks of a network, drawn once.

A run of nodes is periodic when every node is like the one a period later: the same operator and
width, reading nodes that lie a period later too (or the same node outside, such as a mask).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnxprune.report.network.network import Network, NetworkNode

_READABLE = 40
_LONGEST = 80
_WORTHWHILE = 3


@dataclass(frozen=True)
class FoldedNode:
    """Nodes that are drawn as one.

    Attributes:
        members: the nodes, in order; one where nothing is folded.
        sources: indices of the folded nodes it reads.
    """

    members: tuple[NetworkNode, ...]
    sources: tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """Folded nodes that are repeated together.

    Attributes:
        times: how often.
        nodes: indices of the folded nodes, ascending.
    """

    times: int
    nodes: range


@dataclass(frozen=True)
class Folded:
    """A network whose repeated blocks are there once.

    Attributes:
        nodes: in an order in which every node comes after those it reads.
        blocks: what is repeated.
    """

    nodes: tuple[FoldedNode, ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class _Run:
    """Nodes from `start` on that are `times` times the same block of `period` nodes."""

    start: int
    period: int
    times: int

    @property
    def end(self) -> int:
        return self.start + self.period * self.times


def fold(network: Network, *, above: int = _READABLE) -> Folded:
    """Fold the repeated blocks of a network with more than `above` nodes."""
    nodes = network.nodes
    runs = sorted(_runs(nodes, 0, len(nodes)), key=lambda run: run.start)
    return _folded(nodes, runs if len(nodes) > above else [])


def _folded(nodes: Sequence[NetworkNode], runs: Sequence[_Run]) -> Folded:
    place = list(range(len(nodes)))
    members: list[list[int]] = []
    blocks = []
    starts = {run.start: run for run in runs}
    index = 0
    while index < len(nodes):
        run = starts.get(index, _Run(index, 1, 1))
        first = len(members)
        for offset in range(run.period):
            members.append(list(range(run.start + offset, run.end, run.period)))
            for index in members[-1]:
                place[index] = first + offset
        if run.times > 1:
            blocks.append(Block(run.times, range(first, len(members))))
        index = run.end
    return Folded(
        tuple(
            FoldedNode(
                tuple(nodes[index] for index in mine),
                tuple(sorted({place[index] for index in nodes[mine[0]].sources})),
            )
            for mine in members
        ),
        tuple(blocks),
    )


def _runs(nodes: Sequence[NetworkNode], low: int, high: int) -> Iterator[_Run]:
    """The run that saves most between two places, then those on either side of it."""
    best = max(
        _candidates(nodes, low, high),
        key=lambda run: (run.period * (run.times - 1), -run.period),
        default=None,
    )
    if best is None or best.period * (best.times - 1) < _WORTHWHILE:
        return
    yield from _runs(nodes, low, best.start)
    yield best
    yield from _runs(nodes, best.end, high)


def _candidates(nodes: Sequence[NetworkNode], low: int, high: int) -> Iterator[_Run]:
    for period in range(1, min(_LONGEST, (high - low) // 2) + 1):
        start = low
        for index in range(low, high - period + 1):
            if index < high - period and _alike(nodes, index, period):
                continue
            if index - start >= period:
                yield from _aligned(nodes, start, index + period, period)
            start = index + 1


def _alike(nodes: Sequence[NetworkNode], index: int, period: int) -> bool:
    node, other = nodes[index], nodes[index + period]
    return (
        node.kind == other.kind
        and node.kind in ("layer", "join")
        and node.operator == other.operator
        and node.before == other.before
        and len(node.sources) == len(other.sources)
        and all(b - a in (0, period) for a, b in zip(node.sources, other.sources, strict=True))
    )


def _aligned(nodes: Sequence[NetworkNode], low: int, high: int, period: int) -> Iterator[_Run]:
    """The run between two places whose blocks pass the fewest tensors from one to the next."""

    def passed(start: int) -> set[int]:
        second = range(start + period, start + 2 * period)
        return {
            source for index in second for source in nodes[index].sources if source < second.start
        }

    def connected(start: int) -> bool:
        """Whether what goes from block to block comes from the block before, all else not."""
        return all(
            b < start if a == b else b >= start
            for index in range(start, start + period)
            for a, b in zip(nodes[index].sources, nodes[index + period].sources, strict=True)
        )

    starts = range(low, min(low + period, high - 2 * period + 1))
    best = min(
        filter(connected, starts),
        key=lambda start: (len(passed(start)), -((high - start) // period)),
        default=None,
    )
    if best is not None:
        yield _Run(best, period, (high - best) // period)
