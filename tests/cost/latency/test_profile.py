"""Which node takes which time: every kernel of the profile is somebody's."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.oracle import ONE_THREAD, Traced, parse, traced

from onnxprune.cost.latency.probe import Profile, node_name, profile_model, seconds_by_node


def profiled(one: Traced) -> Profile:
    first = one.coupling.facts.first
    return profile_model(one.model, first.feed, first.shapes, ONE_THREAD)


def network(body: str) -> Traced:
    rng = np.random.default_rng(0)
    shapes = {"w": (32, 32, 3, 3), "v": (32, 32, 3, 3), "c": (32,)}
    weights = {name: rng.standard_normal(one).astype(np.float32) for name, one in shapes.items()}
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[1, 32, 20, 20] x) => (float[a, b, c, d] y) {{ {body} }}"""
    return traced(parse(text, weights))


def shared(body: str, events: dict[tuple[str, str], float]) -> list[float]:
    """How the times of kernels are shared out among the nodes of a network."""
    one = network(body)
    for number, node in enumerate(one.model.graph):
        node.name = node_name(number)
    return list(seconds_by_node(one.model.graph, events, one.coupling.facts.first.shapes))


CHAIN = "h = Conv<pads = [1, 1, 1, 1]>(x, w) y = Sigmoid(h)"
RESIDUAL = """a = Conv<pads = [1, 1, 1, 1]>(x, w) b = Conv<pads = [1, 1, 1, 1]>(x, v)
    s = Add(a, b) y = Relu(s)"""


def test_a_kernel_belongs_to_the_node_of_its_name() -> None:
    events = {(node_name(0), "Conv"): 5.0, (f"{node_name(1)}/fused", "Sigmoid"): 2.0}
    assert shared(CHAIN, events) == [5, 2]


def test_a_convolution_in_the_blocked_layout_is_named_after_its_output() -> None:
    assert shared(CHAIN, {("h_nchwc", "Conv"): 5.0, (node_name(1), "Sigmoid"): 2.0}) == [5, 2]


def test_a_convolution_is_found_behind_what_is_fused_into_it() -> None:
    events = {("y_nchwc", "Conv"): 5.0}
    assert shared("h = Conv<pads = [1, 1, 1, 1]>(x, w) y = Relu(h)", events) == [5, 0]


def test_both_sides_of_a_residual_sum_keep_their_own_time() -> None:
    seconds = shared(RESIDUAL, {("a_nchwc", "Conv"): 3.0, ("y_nchwc", "Conv"): 5.0})
    assert seconds == [3, 5, 0, 0]


def test_layout_changes_are_spread_over_what_has_no_kernel_of_its_own() -> None:
    seconds = shared(
        RESIDUAL, {("a_nchwc", "Conv"): 3.0, ("ReorderOutput_7", "ReorderOutput"): 6.0}
    )
    assert seconds == [3, 2, 2, 2]


def test_layout_changes_are_spread_over_all_where_every_node_has_a_kernel() -> None:
    events = {
        (node_name(0), "Conv"): 5.0,
        (node_name(1), "Sigmoid"): 1.0,
        ("r", "ReorderInput"): 4.0,
    }
    assert shared(CHAIN, events) == [7, 3]


def test_constants_take_no_time() -> None:
    body = "k = Constant<value = float {0.5}>() h = Mul(x, k) y = Sigmoid(h)"
    assert shared(body, {("fused", "QuickGelu"): 4.0}) == [0, 2, 2]


@pytest.mark.parametrize("body", [CHAIN, RESIDUAL])
def test_no_kernel_of_a_real_run_is_left_over(body: str) -> None:
    found = profiled(network(body))
    assert all(
        seconds > 0
        for node, seconds in zip(network(body).model.graph, found.kernels, strict=True)
        if node.op_type == "Conv"
    )


def test_the_nodes_add_up_to_the_run() -> None:
    found = profiled(network(CHAIN))
    running = sum(one > 0 for one in found.kernels)
    assert found.total == pytest.approx(sum(found.kernels) + running * found.call)
    assert found.call >= 0


def test_the_body_of_a_loop_counts_once() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[64, 64] x) => (float[64, 64] y) {
            n = Constant<value = int64 {20}>()
            t = Constant<value = bool {1}>()
            y = Loop (n, t, x) <body = b (int64 i, bool more, float[64, 64] s)
                => (bool still, float[64, 64] after)
                { still = Identity(more) after = MatMul(s, s) }>
        }"""
    found = profiled(traced(parse(text)))
    assert found.total > 0
    assert len(found.kernels) == 3
    assert found.kernels[2] > 0


def test_the_model_stays_as_it_is() -> None:
    one = network(CHAIN)
    names = [node.name for node in one.model.graph]
    profiled(one)
    assert [node.name for node in one.model.graph] == names
