"""Asking an estimate for what a measurement shall give."""

from __future__ import annotations

import pytest

from onnxprune import TargetUnreachable
from onnxprune.allocation.secant import best_of, solve_for_target


def answers(measured, least=0.0, told=False):
    """A build whose measured ratio is a function of the aim."""

    def build(aim):
        if aim < least:
            raise TargetUnreachable("too little", {"latency": least} if told else {})
        return f"{aim:.3f}", measured(aim)

    return build


@pytest.mark.parametrize("asked", [0.35, 0.5, 0.7])
@pytest.mark.parametrize(
    "measured",
    [
        lambda aim: aim,
        lambda aim: 0.2 + 0.8 * aim,
        lambda aim: aim**2,
        lambda aim: aim**0.5,
        lambda aim: 0.6 * aim,
    ],
)
def test_a_wrong_estimate_is_made_up_for(asked, measured):
    found = best_of(asked, solve_for_target("latency", asked, asked, answers(measured)))
    assert found.ratio == pytest.approx(min(asked, measured(1)), rel=0.021)
    assert found.result == f"{found.aim:.3f}"


def test_a_staircase_gives_the_largest_step_below():
    found = best_of(
        0.5, solve_for_target("latency", 0.5, 0.5, answers(lambda aim: 0.4 if aim < 0.7 else 0.9))
    )
    assert found.ratio == 0.4


def test_no_step_below_is_none():
    tried = solve_for_target("latency", 0.3, 0.3, answers(lambda aim: 0.5 + 0.5 * aim))
    assert best_of(0.3, tried) is None
    assert min(one.ratio for one in tried) < 0.6


def test_what_cannot_be_asked_of_the_estimate_is_not_the_end():
    found = best_of(
        0.4, solve_for_target("latency", 0.4, 0.4, answers(lambda aim: 0.8 * aim, least=0.45))
    )
    assert found.ratio == pytest.approx(0.4, rel=0.05)


def test_the_least_that_is_offered_is_measured_at_once():
    tried = solve_for_target("latency", 0.4, 0.4, answers(lambda aim: aim, least=0.55, told=True))
    assert [one.ratio for one in tried] == [pytest.approx(0.55, rel=0.01)]


def test_nothing_can_be_asked():
    with pytest.raises(TargetUnreachable, match="too little"):
        solve_for_target("latency", 0.5, 0.5, answers(lambda aim: aim, least=2))


def test_few_attempts():
    tried = solve_for_target("latency", 0.5, 0.5, answers(lambda aim: 0.2 + 0.8 * aim))
    assert len(tried) <= 3
