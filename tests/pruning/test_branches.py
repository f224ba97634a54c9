"""Models with If, Loop and Scan: compensated like any other, and what never ran stays whole."""

from __future__ import annotations

import pytest
from helpers.branching import RATES, agreement, alone, branched, feeds, of_rate

import onnxprune

TEST = feeds(64, seed=7)
GRU = "*g_node"  # its weights cannot be re-fitted


@pytest.mark.parametrize("where", ["inside", "outer", "trunk"])
def test_both_branches_are_compensated(where: str) -> None:
    model = branched(2, outer=where == "outer", trunk=where == "trunk")
    result = onnxprune.prune(model, target={"macs": 0.7}, calibration=feeds(32), exclude=[GRU])
    plain = [alone(seed) for seed in (2, 3)]
    for rate, one in zip(RATES, plain, strict=True):
        given = of_rate(TEST, rate)
        sounds = [{"x": feed["x"]} for feed in feeds(32, (rate,))]
        by_itself = onnxprune.prune(one, target={"macs": 0.7}, calibration=sounds, exclude=[GRU])
        wanted = agreement(one, by_itself.model, given)
        assert wanted > 95
        assert agreement(model, result.model, given) > wanted - 3
