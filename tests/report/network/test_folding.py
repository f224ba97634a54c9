"""Blocks that are repeated are drawn once; nothing else is."""

from __future__ import annotations

from onnxprune.report.network.folding import Block, fold
from onnxprune.report.network.network import Network, NetworkNode, Segment


def layer(name: str, width: int, *sources: int, after: int | None = None) -> NetworkNode:
    left = width if after is None else after
    return NetworkNode("layer", name, "MatMul", (Segment(0, width, left),), sources)


def add(*sources: int) -> NetworkNode:
    return NetworkNode("join", "add", "Add", (), sources)


def network(*nodes: NetworkNode) -> Network:
    return Network(nodes, ("w[0]",))


def residual_network(times: int) -> Network:
    """An input, blocks of two layers and a sum, a head."""
    nodes = [NetworkNode("input", "x", "input", (), ()), layer("stem", 8, 0)]
    for _ in range(times):
        last = len(nodes) - 1
        nodes += [layer("up", 32, last, after=last + 1), layer("down", 8, last + 1)]
        nodes.append(add(last, last + 2))
    return network(*nodes, layer("head", 3, len(nodes) - 1))


def test_blocks_in_a_row_become_one() -> None:
    folded = fold(residual_network(4), above=0)
    assert folded.blocks == (Block(4, range(2, 5)),)
    assert [len(one.members) for one in folded.nodes] == [1, 1, 4, 4, 4, 1]
    assert [one.sources for one in folded.nodes] == [(), (0,), (1,), (2,), (1, 3), (4,)]


def test_members_keep_their_own_widths() -> None:
    up = fold(residual_network(3), above=0).nodes[2]
    assert [one.after for one in up.members] == [2, 5, 8]


def test_a_small_network_is_left_as_it_is() -> None:
    subject = residual_network(4)
    assert fold(subject, above=len(subject.nodes)).blocks == ()


def test_another_width_ends_the_run() -> None:
    nodes = [NetworkNode("input", "x", "input", (), ())]
    nodes += [layer(f"a{one}", 8, one) for one in range(5)]
    nodes += [layer(f"b{one}", 9, one) for one in range(5, 10)]
    assert fold(network(*nodes), above=0).blocks == (Block(5, range(1, 2)), Block(5, range(2, 3)))


def test_heads_on_different_sources_are_not_repetitions() -> None:
    """Alike and as far apart as what they read, but no block reads the one before."""
    body = [layer(f"body{one}", 10 + one, one - 1) for one in range(1, 4)]
    heads = [layer(f"head{one}", 4, one) for one in range(1, 4)]
    nodes = (NetworkNode("input", "x", "input", (), ()), *body, *heads)
    assert fold(network(*nodes), above=0).blocks == ()


def test_what_all_blocks_read_does_not_hinder() -> None:
    nodes = [NetworkNode("input", "x", "input", (), ()), layer("memory", 8, 0)]
    nodes += [layer(f"cross{one}", 8, 1, one) for one in range(2, 7)]
    (block,) = fold(network(*nodes), above=0).blocks
    assert block.times >= 4


def test_five_hundred_nodes_of_a_transformer_fit_on_a_page() -> None:
    assert len(fold(residual_network(170)).nodes) == 6
