"""What convolutions compute for nothing because of widths that fill no whole block."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.oracle import parse, traced

from onnxprune.cost.figures import padded_macs

NET = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3, 4, 4] x) => (float[N, 10, 4, 4] y)
    { a = Conv(x, w1)  h = Relu(a)  y = Conv(h, w2) }"""
PLACES = 2 * 4 * 4


@pytest.mark.parametrize(
    ("left", "block", "padded"),
    [(32, 8, 32), (24, 8, 24), (24, 16, 32), (17, 8, 24), (17, 16, 32), (1, 16, 16)],
)
def test_cut_widths_are_rounded_up_and_others_are_not(left: int, block: int, padded: int) -> None:
    shapes = {"w1": (32, 3, 1, 1), "w2": (10, 32, 1, 1)}
    weights = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    subject = traced(parse(NET, weights))
    (group,) = subject.groups
    dead = [int(one) for one in group.units[: 32 - left]]
    found = padded_macs(subject.model.graph, subject.coupling, dead, block)
    if left == 32:
        assert found == (0, 0)
    else:
        assert found == (left * 13 * PLACES, padded * 13 * PLACES)


def test_grouped_convolutions_are_not_counted() -> None:
    body = NET.replace("h = Relu(a)", "h = Conv<group = 32>(a, deep)")
    shapes = {"w1": (32, 3, 1, 1), "w2": (10, 32, 1, 1), "deep": (32, 1, 1, 1)}
    weights = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    subject = traced(parse(body, weights))
    (group,) = subject.groups
    dead = [int(one) for one in group.units[:7]]
    assert padded_macs(subject.model.graph, subject.coupling, dead, 8)[0] == 25 * 13 * PLACES
