"""What residual blocks save of a target, and when that is measured."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.oracle import ONE_THREAD
from helpers.reducing import graph, weights

from onnxprune.allocation import blocks as module
from onnxprune.allocation.blocks import BlockTarget, block_candidates, block_savings, block_target
from onnxprune.calibration.context import RunContext
from onnxprune.model.load import load
from onnxprune.surgery.blocks.residual import ResidualBlock

# 128 of 256 parameters, and of as many multiplications, are the first branch's, 32 the second's.
BODY = """h = MatMul (x, a) f = MatMul (h, b) s = Add (x, f)
          k = MatMul (s, c) g = MatMul (k, d) t = Add (s, g) u = MatMul (t, e) y = Relu (u)"""
SHAPES = {"a": (8, 8), "b": (8, 8), "c": (8, 2), "d": (2, 8), "e": (8, 12)}


def subject(shares: Mapping[str, float]) -> tuple[BlockTarget, list[ResidualBlock]]:
    proto = graph("(float[N, 8] x) => (float[N, 12] y)", BODY, weights(**SHAPES))
    candidates = block_candidates(load(proto).model, RunContext(runtime=ONE_THREAD))
    return block_target(candidates, shares), list(candidates.blocks)


def test_weights_are_shares_of_what_has_to_go() -> None:
    target, _ = subject({"params": 0.5})
    assert target.savings() == pytest.approx({"s": 1.0, "t": 0.25})
    target, _ = subject({"params": 0.5, "macs": 0.75})
    assert target.savings() == pytest.approx({"s": 1.0 + 2.0, "t": 0.25 + 0.5})


@pytest.mark.parametrize("shares", [{}, {"macs": 1.0}])
def test_weights_are_equal_where_nothing_has_to_go(shares: dict[str, float]) -> None:
    target, _ = subject(shares)
    assert target.savings() == {"s": 1.0, "t": 1.0}


def test_kinds_that_no_node_has_count_as_multiplications() -> None:
    _, blocks = subject({})
    whole = {"macs": 512.0, "params": 256.0}
    assert block_savings(blocks, {"memory": 0.5}, whole) == block_savings(
        blocks, {"macs": 0.5}, whole
    )
    assert block_savings(blocks, {"size": 0.5}, whole) == block_savings(
        blocks, {"params": 0.5}, whole
    )


def test_constants_that_take_the_place_of_a_branch_are_counted() -> None:
    target, blocks = subject({"params": 0.5, "macs": 0.5})
    smaller = target.candidates.without(blocks[:1])
    left = target.remaining(blocks[:1])
    assert left == pytest.approx({"params": (256 - 128 + 8) / 256, "macs": 0.5})
    assert not target.is_met(left)
    assert not target.counts_hold(smaller)


@pytest.mark.parametrize(
    ("macs", "estimate", "measured"),
    [(0.5, 0.5, True), (0.5, 0.58, False), (0.4, 0.5, False)],
    ids=["all may be met", "far too slow", "another kind is missed"],
)
def test_latency_is_measured_only_where_it_can_decide(
    macs: float, estimate: float, measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def pair(*given: Any) -> SimpleNamespace:
        calls.append(given)
        return SimpleNamespace(ratio=0.49)

    monkeypatch.setattr(module, "measure_pair", pair)
    counted, blocks = subject({"macs": macs})
    seconds = {"h": 1 - estimate, "u": estimate}
    target = BlockTarget(
        counted.candidates,
        {"macs": macs, "latency": 0.5},
        counted.parameters,
        counted.macs,
        seconds,
    )
    left = target.remaining(blocks[:1])
    assert bool(calls) == measured
    assert target.is_met(left) == measured
    assert left["latency"] == pytest.approx(0.49 if measured else estimate)


def test_seconds_of_a_latency_target_are_those_of_a_profile() -> None:
    target, _ = subject({"latency": 0.5})
    assert set(target.seconds) == {node.outputs[0].name for node in target.candidates.model.graph}
    assert all(weight > 0 for weight in target.savings().values())
