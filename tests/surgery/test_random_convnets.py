"""Whatever convolutional network is cut, however: sliced computes what zeroed computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from helpers.networks import BLOCKS, HEADS, Map, Net
from helpers.oracle import Traced, check_surgery, random_removal, traced
from hypothesis import given, note, settings
from hypothesis import strategies as st

BUDGETS = (0.25, 0.5, 0.75)


def build(net: Net, spatial: tuple[int, ...], blocks: list[str], head: Callable[..., Map]) -> Map:
    """A stem that makes 8 channels of 3, the blocks, one more convolution, and the head."""
    source = Map("input", (3, *spatial))
    x = BLOCKS["conv"](net, source)
    for name in blocks:
        x = BLOCKS[name](net, x)
    return head(net, BLOCKS["conv"](net, x))


def check_every_weight_can_shrink(subject: Traced, net: Net) -> None:
    owned = {(one.tensor, axis) for g in subject.groups for one in g.owned for axis in one.axes}
    assert set(net.prunable) <= owned


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("seed", range(3))
def test_each_block_alone(name: str, seed: int) -> None:
    rng = np.random.default_rng([seed, *name.encode()])
    net = Net(lambda options: options[rng.integers(len(options))], seed)
    spatial = (5, 5) if name == "sub_pixels" or seed else (7,)
    result = build(net, spatial, [name], HEADS[rng.integers(len(HEADS))])
    subject = traced(net.model(Map("input", (3, *spatial)), result))
    check_every_weight_can_shrink(subject, net)
    dead = random_removal(subject, 0.5, seed)
    assert dead
    assert check_surgery(subject, dead) > 1e-3


@settings(max_examples=500)
@given(data=st.data())
def test_random_chains_of_blocks(data: st.DataObject) -> None:
    spatial = data.draw(st.sampled_from(((6, 5), (6, 5), (9,), (3, 4, 2))), "spatial")
    names = sorted(set(BLOCKS) - ({"sub_pixels"} if len(spatial) != 2 else set()))
    blocks = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=5), "blocks")
    head = data.draw(st.sampled_from(HEADS), "head")
    opset = data.draw(st.sampled_from((13, 17, 21)), "opset")
    seed = data.draw(st.integers(0, 2**16), "seed")
    net = Net(lambda options: data.draw(st.sampled_from(options)), seed, opset)
    subject = traced(net.model(Map("input", (3, *spatial)), build(net, spatial, blocks, head)))
    check_every_weight_can_shrink(subject, net)
    budget = data.draw(st.sampled_from(BUDGETS), "budget")
    dead = random_removal(subject, budget, seed)
    note(f"{len(subject.groups)} groups, {len(dead)} classes removed")
    moved = check_surgery(subject, dead)
    if budget >= 0.5:
        assert dead
        assert moved > 1e-4
