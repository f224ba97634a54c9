"""Where the nodes and edges of a network lie: Graphviz's `dot`, as pygraphviz brings it along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.errors import InputError
from onnxprune.report.network.folding import Folded

_INCH = 72.0
_BETWEEN_LAYERS = 24
_BETWEEN_BRANCHES = 26
_BLOCK_MARGIN = 20
_STRAIGHT = 20
_EFFORT = 1
_MOST = 1000


@dataclass(frozen=True)
class Box:
    """A rectangle on the paper: left, top, width and height in pixels."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """Places of everything, in pixels from the top left.

    Attributes:
        width: of the paper.
        height: of the paper.
        nodes: of each node.
        edges: the points of each edge: start, then two control points and an end for each curve.
        blocks: of each block.
    """

    width: float
    height: float
    nodes: tuple[Box, ...]
    edges: tuple[tuple[tuple[float, float], ...], ...]
    blocks: tuple[Box, ...]


def arrange(folded: Folded, sizes: Sequence[tuple[float, float]]) -> Layout:
    """Lay a network out from top to bottom.

    Args:
        folded: nodes, edges and blocks; names never reach Graphviz.
        sizes: width and height of each node in pixels.

    Raises:
        InputError: when pygraphviz is not installed, or there are too many nodes to look at.
    """
    if len(sizes) > _MOST:
        raise InputError(
            f"the network is not drawn: it has {len(sizes)} layers and sums that differ, "
            f"a picture is readable up to {_MOST}"
        )
    graph = _graph(folded, sizes)
    graph.layout("dot")
    left, bottom, right, top = _numbers(graph.graph_attr["bb"])
    width, height = right - left, top - bottom
    nodes = []
    for index, (wide, high) in enumerate(sizes):
        x, y = _numbers(graph.get_node(index).attr["pos"])
        nodes.append(Box(x - left - wide / 2, top - y - high / 2, wide, high))
    edges = []
    for edge in _edges(folded):
        points = _points(graph.get_edge(*edge).attr["pos"])
        edges.append(tuple((x - left, top - y) for x, y in points))
    blocks = []
    for number in range(len(folded.blocks)):
        cluster = graph.get_subgraph(_cluster(number))
        x0, y0, x1, y1 = _numbers(cluster.graph_attr["bb"])
        blocks.append(Box(x0 - left, top - y1, x1 - x0, y1 - y0))
    return Layout(width, height, tuple(nodes), tuple(edges), tuple(blocks))


def _graph(folded: Folded, sizes: Sequence[tuple[float, float]]) -> Any:
    try:
        import pygraphviz
    except ImportError:
        raise InputError(
            "the picture of the network is laid out by pygraphviz, which is not installed; "
            "pip install 'onnxprune[report]'"
        ) from None
    graph = pygraphviz.AGraph(
        directed=True,
        ranksep=_BETWEEN_LAYERS / _INCH,
        nodesep=_BETWEEN_BRANCHES / _INCH,
        # in units of the number of nodes: what keeps tangled networks from taking minutes
        nslimit=_EFFORT,
        nslimit1=_EFFORT,
        mclimit=_EFFORT,
    )
    graph.node_attr.update(fixedsize="true", label="")
    graph.edge_attr.update(arrowhead="none")
    for index, (node, (width, height)) in enumerate(zip(folded.nodes, sizes, strict=True)):
        shape = "ellipse" if node.members[0].kind == "join" else "box"
        graph.add_node(index, shape=shape, width=width / _INCH, height=height / _INCH)
    spine = _spine(folded)
    for source, target in _edges(folded):
        graph.add_edge(
            source,
            target,
            weight=_STRAIGHT if (source, target) in spine else 1,
            tailport="c" if folded.nodes[source].members[0].kind == "join" else "s",
            headport="c" if folded.nodes[target].members[0].kind == "join" else "n",
        )
    for number, block in enumerate(folded.blocks):
        graph.add_subgraph(list(block.nodes), _cluster(number), margin=_BLOCK_MARGIN)
    return graph


def _edges(folded: Folded) -> list[tuple[int, int]]:
    return [(source, index) for index, node in enumerate(folded.nodes) for source in node.sources]


def _spine(folded: Folded) -> set[tuple[int, int]]:
    """The edges of a longest path, which is drawn as straight as possible."""
    depths: list[int] = []
    for node in folded.nodes:
        depths.append(max((depths[source] + 1 for source in node.sources), default=0))
    edges = set()
    end = max(range(len(depths)), key=depths.__getitem__, default=0)
    while depths and folded.nodes[end].sources:
        source = max(folded.nodes[end].sources, key=depths.__getitem__)
        edges.add((source, end))
        end = source
    return edges


def _cluster(number: int) -> str:
    return f"cluster_{number}"


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _points(text: str) -> list[tuple[float, float]]:
    points = (_numbers(pair) for pair in text.split())
    return [(x, y) for x, y in points]
