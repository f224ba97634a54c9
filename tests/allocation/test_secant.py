"""Adjusting what an estimate is asked for until what is built measures as asked."""

from __future__ import annotations

import pytest

from onnxprune import TargetUnreachable
from onnxprune.allocation.secant import Excess, Secant, solve_for_target


def answers(measured, least=0.0, told=False):
    """A build whose measured ratio is a function of the aim."""

    def build(aim):
        share = aim["latency"]
        if share < least:
            raise TargetUnreachable("too little", {"latency": least} if told else {})
        return f"{share:.3f}", {"latency": measured(share)}

    return build


def solve(asked, build):
    """Adjust the aim for a latency, and the best attempt."""
    rule = Secant("latency", asked)
    attempts = solve_for_target({"latency": asked}, build, rule, rounds=8)
    return attempts, rule.best(attempts)


def ratio(attempt):
    return attempt.ratios["latency"]


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
    _, best = solve(asked, answers(measured))
    assert ratio(best) == pytest.approx(min(asked, measured(1)), rel=0.021)
    assert best.result == f"{best.aim['latency']:.3f}"


def test_a_staircase_gives_the_largest_step_below():
    _, best = solve(0.5, answers(lambda aim: 0.4 if aim < 0.7 else 0.9))
    assert ratio(best) == 0.4


def test_no_step_below_is_none():
    attempts, best = solve(0.3, answers(lambda aim: 0.5 + 0.5 * aim))
    assert best is None
    assert min(map(ratio, attempts)) < 0.6


def test_what_cannot_be_asked_of_the_estimate_is_not_the_end():
    _, best = solve(0.4, answers(lambda aim: 0.8 * aim, least=0.45))
    assert ratio(best) == pytest.approx(0.4, rel=0.05)


def test_the_least_that_is_offered_is_measured_at_once():
    attempts, _ = solve(0.4, answers(lambda aim: aim, least=0.55, told=True))
    assert [ratio(attempt) for attempt in attempts] == [pytest.approx(0.55, rel=0.01)]


def test_nothing_can_be_asked():
    with pytest.raises(TargetUnreachable, match="too little"):
        solve(0.5, answers(lambda aim: aim, least=2))


def test_a_linear_estimate_needs_three_attempts():
    attempts, _ = solve(0.5, answers(lambda aim: 0.2 + 0.8 * aim))
    assert len(attempts) <= 3


def counts(measured, least=0.0):
    """A build whose file size is a function of the aim; params are as asked."""

    def build(aim):
        if aim["size"] < least:
            raise TargetUnreachable("too little")
        return None, {"size": measured(aim["size"]), "params": aim["params"]}

    return build


def test_a_count_is_lowered_by_its_excess_until_it_is_met():
    rule = Excess({"size": 0.5, "params": 0.7}, factor=1.1)
    start = {"size": 0.5, "params": 0.7, "macs": 0.6}
    attempts = solve_for_target(start, counts(lambda aim: aim + 0.02), rule, rounds=4)
    assert [attempt.aim["size"] for attempt in attempts] == [0.5, pytest.approx(0.478)]
    assert attempts[-1].aim == {**start, "size": pytest.approx(0.478)}
    assert rule.is_met(attempts[-1].ratios)


def test_a_count_that_is_always_exceeded_ends_the_rounds():
    rule = Excess({"size": 0.3})
    start = {"size": 0.3, "params": 1.0}
    for least, rounds in ((0.0, 4), (0.29, 1)):
        attempts = solve_for_target(start, counts(lambda aim: 0.4, least), rule, rounds=4)
        assert len(attempts) == rounds
        assert rule.excess(attempts[-1].ratios) == {"size": pytest.approx(0.1)}
