"""Peak activation memory against schedules worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.oracle import Traced, parse, traced
from numpy.typing import NDArray

from onnxprune.cost.cut_cost import CutCost
from onnxprune.cost.memory import Lifetimes


def subject_of(body: str, interface: str, **shapes: tuple[int, ...]) -> Traced:
    values: dict[str, NDArray[Any]] = {
        name: np.ones(shape, np.float32) for name, shape in shapes.items()
    }
    text = f"""<ir_version: 8, opset_import: ["": 17]> g {interface} {{ {body} }}"""
    return traced(parse(text, values))


def peak(subject: Traced, dead: tuple[int, ...] | list[int] = ()) -> float:
    return CutCost(subject.model.graph, subject.coupling).after(dead)["activations"]


ROW = "(float[1, 4] x) => (float[1, 2] y)"


def test_a_chain_holds_its_input_and_two_neighbours() -> None:
    """x 4, a 8, b 8, y 2 floats: x, a and b are alive while b is made."""
    subject = subject_of("a = MatMul(x, w) b = Relu(a) y = MatMul(b, v)", ROW, w=(4, 8), v=(8, 2))
    lifetimes = Lifetimes.of(subject.model.graph)
    sizes = {"x": 4, "a": 8, "b": 8, "y": 2}
    assert lifetimes.alive(sizes.__getitem__).tolist() == [4 + 8, 4 + 8 + 8, 4 + 8 + 2]
    assert peak(subject) == 20 * 4


def test_a_residual_sum_is_held_until_it_is_added() -> None:
    """a waits through the branch: x 4, a 8, c 16, d 8."""
    body = "a = MatMul(x, w) c = MatMul(a, u) d = MatMul(c, v) e = Add(a, d) y = MatMul(e, o)"
    subject = subject_of(body, ROW, w=(4, 8), u=(8, 16), v=(16, 8), o=(8, 2))
    assert peak(subject) == (4 + 8 + 16 + 8) * 4


def test_outputs_stay_and_unread_results_go() -> None:
    """first (8) is an output and stays; the second half of the Split (4) goes at once."""
    body = "first = MatMul(x, w) a, b = Split<axis = 1>(first) y = MatMul(a, v)"
    subject = subject_of(
        body, "(float[1, 4] x) => (float[1, 8] first, float[1, 2] y)", w=(4, 8), v=(4, 2)
    )
    lifetimes = Lifetimes.of(subject.model.graph)
    sizes = {"x": 4, "first": 8, "a": 4, "b": 4, "y": 2}
    assert lifetimes.alive(sizes.__getitem__).tolist() == [12, 20, 18]


def test_what_follows_from_constants_belongs_to_no_run() -> None:
    subject = subject_of("w2 = Transpose(w) y = MatMul(x, w2)", ROW, w=(2, 4))
    assert Lifetimes.of(subject.model.graph).names == ("x", "y")
    assert peak(subject) == (4 + 2) * 4


def test_types_count() -> None:
    """16 floats, 16 int64 of TopK beside 16 floats, 16 bools."""
    body = "h = MatMul(x, w) v, i = TopK(h, k) m = Cast<to = 9>(i) y = Where(m, v, h)"
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[1, 16] x) => (float[1, 16] y) {{ {body} }}"""
    subject = traced(parse(text, {"w": np.eye(16, dtype=np.float32), "k": np.array([16])}))
    # x, h and v in floats, i in int64, m in bool while m is made
    assert peak(subject) == 16 * (4 + 4 + 4 + 8 + 1)


def test_half_precision_takes_half() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float16[1, 4] x) => (float16[1, 2] y) { a = MatMul(x, w) y = MatMul(a, v) }"""
    halves = {"w": np.ones((4, 8), np.float16), "v": np.ones((8, 2), np.float16)}
    assert peak(traced(parse(text, halves))) == (4 + 8 + 2) * 2


def test_the_larger_branch_counts_while_its_node_runs() -> None:
    """x, y and, of the branches, t (2) or b (16) with e (2)."""
    body = """y = If(flag) <then_branch = one () => (float[1, 2] t) { t = MatMul(x, o) },
        else_branch = two () => (float[1, 2] e) { b = MatMul(x, u) e = MatMul(b, v) }>"""
    text = f"""<ir_version: 8, opset_import: ["": 17]> g {ROW} {{ {body} }}"""
    values: dict[str, NDArray[Any]] = {
        name: np.ones(shape, np.float32)
        for name, shape in {"o": (4, 2), "u": (4, 16), "v": (16, 2)}.items()
    }
    subject = traced(parse(text, {**values, "flag": np.array(True)}))
    assert peak(subject) == (4 + 2 + 16 + 2) * 4


def test_one_step_of_a_scan_lies_between_its_inputs_and_outputs() -> None:
    """x and y [5, 4], the final state, and of the body state, row and product: [4] each."""
    body = """final, y = Scan<num_scan_inputs = 1, body = b (float[4] s, float[4] row)
        => (float[4] u, float[4] t) { t = MatMul(row, w) u = Add(s, t) }>(state, x)"""
    subject = subject_of(body, "(float[5, 4] x) => (float[5, 4] y)", w=(4, 4), state=(4,))
    assert peak(subject) == (2 * 20 + 4 + 3 * 4) * 4


def test_a_cut_that_misses_the_peak_saves_nothing() -> None:
    """The peak is where a [16] and b [16] meet; c [2] lies behind it."""
    body = "a = MatMul(x, w) b = Relu(a) c = MatMul(b, u) d = Relu(c) y = MatMul(d, v)"
    subject = subject_of(body, ROW, w=(4, 16), u=(16, 4), v=(4, 2))
    whole = (4 + 16 + 16) * 4
    assert peak(subject) == whole
    assert peak(subject, subject.units("u", 1)[:2].tolist()) == whole
    assert peak(subject, subject.units("w", 1)[:8].tolist()) == (4 + 8 + 8) * 4


@pytest.mark.parametrize("half", [0, 8])
def test_shares_tell_what_lies_at_the_peak(half: int) -> None:
    """Near the uncut model a and b make the peak; once they are cut to 8, c and d [12] do."""
    body = "a = MatMul(x, w) b = Relu(a) c = MatMul(b, u) d = Relu(c) y = MatMul(d, v)"
    subject = subject_of(body, ROW, w=(4, 16), u=(16, 12), v=(12, 2))
    cost = CutCost(subject.model.graph, subject.coupling)
    dead = subject.units("w", 1)[:half].tolist()
    near = cost.near(dead)
    saved = {}
    for name in ("w", "u"):
        group = next(one for one in subject.groups if one.name == f"{name}[1]")
        gone = group.units[-1:].tolist()
        before = near.touched(group, dead)["activations"]
        saved[name] = before - near.touched(group, [*dead, *gone])["activations"]
    first, last = ("w", "u") if half == 0 else ("u", "w")
    assert saved[first] > 2 * saved[last]
    assert saved[first] == pytest.approx(2 * 4, rel=0.15), "two tensors, one float each"
