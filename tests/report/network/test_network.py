"""What of a model is a layer, what is an edge, and which widths belong to which group."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import starmap

import numpy as np
from helpers.oracle import Traced, parse, traced

from onnxprune.coupling.groups import find_refusals
from onnxprune.report.network.network import Network, NetworkNode, Segment, find_network


def model(
    body: str,
    weights: Mapping[str, tuple[int, ...]],
    *,
    x: str = "float[N, 4] x",
    y: str = "float[N, 3] y",
) -> Traced:
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal(shape, np.float32) for name, shape in weights.items()}
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({x}) => ({y}) {{ {body} }}'
    return traced(parse(text, given))


def network(subject: Traced, dead: list[int] | None = None) -> Network:
    refused = find_refusals(subject.coupling)
    graph = subject.model.graph
    return find_network(graph, subject.coupling, subject.groups, refused, dead or ())


def shown(found: Network) -> list[tuple[str, int, tuple[str, ...]]]:
    """Operator, width and the names of what each node but the ends reads."""
    names = [one.name for one in found.nodes]
    return [
        (one.operator, one.before, tuple(names[source] for source in one.sources))
        for one in found.nodes
        if one.kind in ("layer", "join")
    ]


def layer(found: Network, name: str) -> NetworkNode:
    return next(one for one in found.nodes if one.name == name)


def test_what_works_element_by_element_is_an_edge() -> None:
    subject = model(
        "h = MatMul(x, a) i = Add(h, b) s = Sigmoid(i) r = Mul(i, s) y = MatMul(r, c)",
        {"a": (4, 8), "b": (8,), "c": (8, 3)},
    )
    assert shown(network(subject)) == [("MatMul", 8, ("x",)), ("MatMul", 3, ("h",))]


def test_a_residual_sum_is_a_node_of_the_group_that_flows_through_it() -> None:
    subject = model(
        "h = MatMul(x, a) r = Relu(h) i = MatMul(r, b) s = Add(r, i) y = MatMul(s, c)",
        {"a": (4, 8), "b": (8, 8), "c": (8, 3)},
    )
    found = network(subject)
    assert shown(found) == [
        ("MatMul", 8, ("x",)),
        ("MatMul", 8, ("h",)),
        ("Add", 8, ("h", "i")),
        ("MatMul", 3, ("s",)),
    ]
    assert [layer(found, name).segments for name in "his"] == [(Segment(0, 8, 8),)] * 3


def test_what_cannot_be_cut_has_no_group_and_a_reason() -> None:
    subject = model("h = MatMul(x, a) y = MatMul(h, c)", {"a": (4, 8), "c": (8, 3)})
    last = layer(network(subject), "y")
    assert last.segments == (Segment(None, 3, 3),)
    assert "interface" in last.reason


def test_widths_after_the_cut_leave_the_removed_classes_out() -> None:
    subject = model("h = MatMul(x, a) y = MatMul(h, c)", {"a": (4, 8), "c": (8, 3)})
    dead = subject.units("a", 1)[[1, 5, 6]].tolist()
    found = network(subject, dead)
    assert found.cut
    assert layer(found, "h").segments == (Segment(0, 8, 5),)
    assert not network(subject).cut


def test_a_layer_that_can_be_cut_in_part_has_a_segment_for_each_part() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 5] l, '
        "float[N, 3] y) { h = MatMul(x, a) l, r = Split <axis = 1> (h, s) y = MatMul(r, c) }"
    )
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 8), "c": (3, 3)}
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    found = network(traced(parse(text, {**weights, "s": np.array([5, 3])})))
    assert layer(found, "h").segments == (Segment(None, 5, 5), Segment(0, 3, 3))


def test_convolutions_show_channels_and_kernel() -> None:
    subject = model(
        "h = Conv <pads = [1, 1, 1, 1]> (x, a) y = ConvTranspose(h, b)",
        {"a": (8, 4, 3, 3), "b": (8, 3, 2, 2)},
        x="float[N, 4, 5, 5] x",
        y="float[N, 3, H, W] y",
    )
    assert shown(network(subject)) == [
        ("Conv 3\u00d73", 8, ("x",)),
        ("ConvTranspose 2\u00d72", 3, ("h",)),
    ]


def test_an_embedding_is_a_layer_and_picking_from_activations_is_not() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (int64[N, 5] x) => (float[N, 3] y)'
        "{ e = Gather(t, x) f = Gather <axis = 1> (e, first) y = MatMul(f, c) }"
    )
    rng = np.random.default_rng(0)
    weights = {
        "t": rng.standard_normal((9, 8), np.float32),
        "c": rng.standard_normal((8, 3), np.float32),
        "first": np.array(0),
    }
    found = network(traced(parse(text, weights)))
    assert shown(found) == [("Gather", 8, ("x",)), ("MatMul", 3, ("e",))]


def test_a_recurrent_layer_shows_its_hidden_width() -> None:
    subject = model(
        "h, last = LSTM <hidden_size = 6> (x, w, r) s = Squeeze(last) y = MatMul(s, c)",
        {"w": (1, 24, 4), "r": (1, 24, 6), "c": (6, 3)},
        x="float[5, N, 4] x",
        y="float[N, 3] y",
    )
    assert shown(network(subject))[0] == ("LSTM", 6, ("x",))


def test_a_mask_that_is_broadcast_is_no_branch() -> None:
    subject = model(
        "h = MatMul(x, a) s = Add(h, m) y = MatMul(s, c)",
        {"a": (4, 8), "c": (8, 3)},
        x="float[N, 4] x, float[N, 1] m",
    )
    found = network(subject)
    assert [one.name for one in found.nodes] == ["x", "h", "y", "y"]


def test_shapes_that_are_computed_connect_nothing() -> None:
    subject = model(
        "h = MatMul(x, a) s = Shape(x) z = ConstantOfShape(s) t = MatMul(z, a) "
        "u = Add(h, t) y = MatMul(u, c)",
        {"a": (4, 8), "c": (8, 3)},
    )
    operators = [operator for operator, *_ in shown(network(subject))]
    assert "Add" not in operators


def test_every_node_comes_after_those_it_reads() -> None:
    subject = model(
        "h = MatMul(x, a) i = MatMul(x, b) j = Concat <axis = 1> (h, i) y = MatMul(j, c)",
        {"a": (4, 8), "b": (4, 6), "c": (14, 3)},
    )
    found = network(subject)
    pairs = enumerate(one.sources for one in found.nodes)
    assert all(starmap(lambda index, sources: all(one < index for one in sources), pairs))
    assert [one.kind for one in found.nodes] == ["input", *["layer"] * 2, "join", "layer", "output"]
