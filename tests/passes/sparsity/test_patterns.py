"""Where zeros may lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import InputError
from onnxprune.passes.sparsity.patterns import Pattern, parse_pattern


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("unstructured", Pattern()),
        ("2:4", Pattern(1, 4, 2)),
        ("4:8", Pattern(1, 8, 4)),
        ("4x1", Pattern(4, 1)),
        ("16x16", Pattern(16, 16)),
    ],
)
def test_names(text: str, pattern: Pattern) -> None:
    assert parse_pattern(text) == pattern


@pytest.mark.parametrize("text", ["", "4:2", "0:4", "4:4", "0x4", "4x", "dense", "2:4:8"])
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(InputError, match="unknown pattern"):
        parse_pattern(text)


@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 2**31))
def test_two_of_four_keep_the_two_best_of_every_four(rows: int, columns: int, seed: int) -> None:
    scores = np.random.default_rng(seed).random((rows, columns))
    stays = parse_pattern("2:4").mask(scores, 0.5)
    for start in range(0, columns, 4):
        part, kept = scores[:, start : start + 4], stays[:, start : start + 4]
        count = -(-part.shape[1] // 2)
        assert (kept.sum(axis=1) == count).all()
        for row in range(rows):
            assert set(part[row][kept[row]]) == set(np.sort(part[row])[-count:])


@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.floats(0, 1)
)
def test_blocks_go_whole(rows: int, columns: int, high: int, wide: int, amount: float) -> None:
    scores = np.random.default_rng(0).random((rows, columns))
    stays = Pattern(high, wide).mask(scores, amount)
    blocks = [
        stays[top : top + high, left : left + wide]
        for top in range(0, rows, high)
        for left in range(0, columns, wide)
    ]
    assert all(block.all() or not block.any() for block in blocks)
    assert sum(not block.any() for block in blocks) == round(amount * len(blocks))


def test_the_blocks_of_the_lowest_scores_go() -> None:
    scores = np.array([[9.0, 1, 5], [9, 1, 5], [0, 0, 7]])
    stays = Pattern(2, 1).mask(scores, 0.5)
    np.testing.assert_array_equal(stays, [[True, False, True], [True, False, True], [0, 0, 1]])
