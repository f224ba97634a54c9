"""Every prefix of a removal order is a legal removal, and what matters least goes first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.networks import BLOCKS, HEADS, Map, Net
from helpers.oracle import Traced, parse, traced
from hypothesis import given, note, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxprune.coupling.closure import close
from onnxprune.coupling.groups import Group
from onnxprune.importance.removal_order import RemovalStep, aligned, keeps_multiples, removal_order


def check_legal(group: Group, steps: list[RemovalStep]) -> None:
    """Prefix by prefix: nothing more has to go, each axis keeps one unit, fractions are true."""
    by_unit = group.constraints.by_unit()
    dead = np.zeros(int(group.all_units.max()) + 1, bool)
    cost = np.ones(len(dead))
    fraction = 0.0
    for step in steps:
        fresh = list(step.units)
        assert fresh
        assert not dead[fresh].any()
        assert set(fresh) <= set(group.all_units.tolist())
        dead[fresh] = True
        gone = np.flatnonzero(dead).tolist()
        again = np.zeros_like(dead)
        close(group.constraints, by_unit, again, gone, cost, same_positions=False)
        assert np.flatnonzero(again).tolist() == gone
        shares = []
        for units, closed in zip(group.axes, group.closed, strict=True):
            lost = int(dead[group.units[list(units)]].sum())
            assert lost < len(units) or not closed
            shares.append(lost / len(units))
        assert step.fraction == pytest.approx(max(shares))
        assert step.fraction >= fraction
        fraction = step.fraction


@settings(max_examples=60)
@given(data=st.data())
def test_every_prefix_is_legal(data: st.DataObject) -> None:
    blocks = data.draw(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=4), "blocks")
    head = data.draw(st.sampled_from(HEADS), "head")
    seed = data.draw(st.integers(0, 2**16), "seed")
    net = Net(lambda options: data.draw(st.sampled_from(options)), seed)
    source = Map("input", (3, 6, 6))
    x = BLOCKS["conv"](net, source)
    for name in blocks:
        x = BLOCKS[name](net, x)
    subject = traced(net.model(source, head(net, x)))
    rng = np.random.default_rng(seed)
    assert subject.groups
    for group in subject.groups:
        note(group.name)
        scores = rng.random(group.size)
        steps = removal_order(group, scores)
        assert steps
        check_legal(group, steps)
        assert steps == removal_order(group, scores)
        goal = data.draw(st.sampled_from((0.25, 0.5, 0.75)), "goal")
        until = removal_order(group, scores, goal)
        check_legal(group, until)
        assert all(step.fraction <= goal + 1e-9 for step in until)


def subject_of(text: str, **shapes: tuple[int, ...]) -> Traced:
    rng = np.random.default_rng(0)
    values: dict[str, NDArray[Any]] = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    return traced(parse(text, values))


PLAIN = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3] input) => (float[N, 2] y)
    { a = Gemm<transB = 1>(input, w1) h = Relu(a) y = Gemm<transB = 1>(h, w2) }"""


def test_free_units_go_by_their_scores_and_the_last_one_stays() -> None:
    group = subject_of(PLAIN, w1=(5, 3), w2=(2, 5)).groups[0]
    steps = removal_order(group, np.array([3.0, 1.0, 5.0, 2.0, 4.0]))
    order = [group.units.tolist().index(step.units[0]) for step in steps]
    assert order == [1, 3, 0, 4]
    assert [step.fraction for step in steps] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert [step.score for step in steps] == [1, 2, 3, 4]


def test_equal_scores_go_in_the_order_of_the_axis() -> None:
    group = subject_of(PLAIN, w1=(5, 3), w2=(2, 5)).groups[0]
    steps = removal_order(group, np.zeros(5))
    assert [step.units for step in steps] == [(int(one),) for one in group.units[:4]]


def test_constrained_units_go_together_at_the_price_of_all() -> None:
    """Two groups of three channels: one of each goes at a time."""
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3, 4] input) => (float[N, 2, 4] y)
        { a = Conv(input, w1) c = Conv<group = 2>(a, w2) y = Conv(c, w3) }"""
    subject = subject_of(text, w1=(6, 3, 1), w2=(4, 3, 1), w3=(2, 4, 1))
    group = next(one for one in subject.groups if one.name == "w1[0]")
    classes = subject.units("w1", 0).tolist()
    place = {one: i for i, one in enumerate(classes)}
    scores = np.array([place.get(int(one), 10.0) for one in group.units], float)
    steps = removal_order(group, scores)
    check_legal(group, steps)
    removed = {place[one] for one in steps[0].units if one in place}
    assert removed == {0, 3}
    assert steps[0].score == pytest.approx(3.0)


def test_small_removals_leave_room_for_the_only_one_that_cuts_an_axis() -> None:
    """Four channels of the sum go with each of the six repeated ones; ten are on their own.

    The ten are cheaper and would fill half of the sum before any of the six fits.
    """
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3, 4] input) => (float[N, 2, 4] y)
        { a = Conv(input, w1) b = Conv(input, w2) c = Concat<axis = 1>(a, a, a, a, b)
          d = Conv(input, w3) e = Add(c, d) y = Conv(e, w4) }"""
    subject = subject_of(text, w1=(6, 3, 1), w2=(10, 3, 1), w3=(34, 3, 1), w4=(2, 34, 1))
    group = subject.groups[0]
    repeated = set(subject.units("w1", 0).tolist())
    scores = np.array([2.0 if one in repeated else 1.0 for one in group.units.tolist()])
    goal = removal_order(group, scores, 0.5)
    check_legal(group, goal)
    assert sum(set(step.units) <= repeated for step in goal) == 3
    assert goal[-1].fraction == 0.5


CHAIN = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 3] x) => (float[N, 4] y)
    { a = MatMul(x, w1)  h = Relu(a)  y = MatMul(h, w2) }"""


def widths(steps: list[RemovalStep], size: int) -> list[int]:
    """What is left after each step."""
    gone = np.cumsum([len(step.units) for step in steps])
    return [int(one) for one in size - gone]


@pytest.mark.parametrize(
    ("size", "finer", "left"),
    [
        (40, False, [32, 16]),
        (40, True, [32, 16, 8, 4, 2, 1]),
        (12, False, []),
        (12, True, [8, 4, 2, 1]),
    ],
)
def test_widths_kept_in_multiples_and_behind_the_last_in_halves(
    size: int, finer: bool, left: list[int]
) -> None:
    weights = {"w1": np.ones((3, size), np.float32), "w2": np.ones((size, 4), np.float32)}
    (group,) = traced(parse(CHAIN, weights)).groups
    order = removal_order(group, np.arange(size, dtype=float))
    steps = aligned(group, order, 16, finer=finer)
    assert widths(steps, size) == left
    assert [one for step in steps for one in step.units] == [
        one for step in order[: size - left[-1] if left else 0] for one in step.units
    ]
    assert aligned(group, order, 1, finer=finer) == order


@settings(max_examples=60)
@given(data=st.data())
def test_every_bundle_ends_at_multiples_or_leaves_an_axis_whole(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(BLOCKS)), "name")
    seed, multiple = data.draw(st.integers(0, 2**16), "seed"), data.draw(st.integers(1, 6), "N")
    net = Net(lambda options: data.draw(st.sampled_from(options)), seed)
    source = Map("input", (3, 6, 6))
    x = BLOCKS[name](net, BLOCKS["conv"](net, source))
    subject = traced(net.model(source, HEADS[0](net, x)))
    for group in subject.groups:
        order = removal_order(group, np.random.default_rng(seed).random(group.size))
        steps = aligned(group, order, multiple)
        check_legal(group, steps)
        gone: list[int] = []
        for step in steps:
            gone += step.units
            for axis in group.axes:
                left = len(axis) - len({*gone} & {*group.units[list(axis)].tolist()})
                assert left % multiple == 0 or left == len(axis)
            assert keeps_multiples(group, gone, multiple)


@pytest.mark.parametrize(("left", "kept"), [(12, True), (10, True), (9, False), (5, True)])
def test_a_whole_axis_keeps_its_width_whatever_the_multiple(left: int, kept: bool) -> None:
    weights = {"w1": np.ones((3, 12), np.float32), "w2": np.ones((12, 4), np.float32)}
    (group,) = traced(parse(CHAIN, weights)).groups
    assert keeps_multiples(group, group.units[left:].tolist(), 5) == kept
