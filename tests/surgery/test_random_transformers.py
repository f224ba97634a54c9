"""Attention in its decompositions: heads, their dimensions and what they share are cut soundly."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.attention_networks import TOKEN_BLOCKS, TOKENS, embed, token_classifier
from helpers.networks import Map, Net
from helpers.oracle import Traced, check_surgery, random_removal, traced
from hypothesis import given, note, settings
from hypothesis import strategies as st

SOURCE = Map("input", (TOKENS, 3))


def build(net: Net, blocks: list[str]) -> Traced:
    x = embed(net, SOURCE)
    for name in blocks:
        x = TOKEN_BLOCKS[name](net, x)
    subject = traced(net.model(SOURCE, token_classifier(net, x)))
    owned = {(one.tensor, axis) for g in subject.groups for one in g.owned for axis in one.axes}
    assert set(net.prunable) <= owned
    return subject


@pytest.mark.parametrize("seed", range(20))
def test_attention_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    subject = build(
        Net(lambda options: options[rng.integers(len(options))], seed), ["self_attention"]
    )
    dead = random_removal(subject, 0.5, seed)
    assert dead
    assert check_surgery(subject, dead) > 1e-3


@settings(max_examples=250)
@given(data=st.data())
def test_random_transformers(data: st.DataObject) -> None:
    blocks = data.draw(st.lists(st.sampled_from(list(TOKEN_BLOCKS)), min_size=1, max_size=4))
    seed = data.draw(st.integers(0, 2**16), "seed")
    subject = build(Net(lambda options: data.draw(st.sampled_from(options)), seed), blocks)
    budget = data.draw(st.sampled_from((0.25, 0.5, 0.75)), "budget")
    dead = random_removal(subject, budget, seed)
    note(f"{len(subject.groups)} groups, {len(dead)} classes removed")
    moved = check_surgery(subject, dead)
    if budget >= 0.5 and set(blocks) != {"normalised"}:
        assert dead
        assert moved > 1e-4
