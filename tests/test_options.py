"""Shares are told with four significant digits."""

from __future__ import annotations

import pytest

from onnxprune.options import share_text, target_text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.5, "0.5"), (1.0, "1"), (0.621301775147929, "0.6213"), (1 / 3, "0.3333"), (1e-4, "0.0001")],
)
def test_no_more_digits_than_say_something(share: float, text: str) -> None:
    assert share_text(share) == text


def test_a_target_reads_as_it_is_given() -> None:
    assert target_text({"macs": 0.5, "params": 2 / 3}) == "macs=0.5, params=0.6667"
