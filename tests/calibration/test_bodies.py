"""What is seen inside bodies: the runs there were, with the values of a plain run."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from helpers.oracle import ONE_THREAD, outputs, parse
from numpy.typing import NDArray

from onnxprune.calibration.bodies import BodyObserver, fetch, seen_bodies, values_in_bodies
from onnxprune.calibration.moments import Tap, collect
from onnxprune.calibration.samples import read_samples
from onnxprune.calibration.walk import KEPT_ITERATIONS, DeepWalk
from onnxprune.errors import RuntimeFailure
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import load

HEAD = '<ir_version: 8, opset_import: ["": 17]> net (float[N, 2] x, int64 n) => '
IF = (
    f"{HEAD} (float[N, 2] y) {{ zero = Constant<value=int64{{0}}>() f = Greater(n, zero) "
    "h = Neg(x) "
    "y = If(f)<then_branch = one () => (float[N, 2] a) { u = Add(h, h) a = Neg(u) }, "
    "else_branch = two () => (float[N, 2] b) { v = Mul(h, h) b = Neg(v) }> }"
)
LOOP = (
    f"{HEAD} (float[N, 2] y, float[T, N, 2] all) {{ h = Neg(x) y, all = Loop(n, , h)"
    "<body = step (int64 i, bool c, float[N, 2] s) => (bool d, float[N, 2] r, float[N, 2] o) "
    "{ e = Add(s, x) r = Relu(e) o = Identity(s) d = Identity(c) }> }"
)
WHILE = (
    f"{HEAD} (float[N, 2] y, float[T, N, 2] all) {{ two = Constant<value=float{{2}}>() "
    "yes = Constant<value=bool{1}>() y, all = Loop(, yes, x)"
    "<body = step (int64 i, bool c, float[N, 2] s) => (bool d, float[N, 2] r, float[N, 2] o) "
    "{ r = Add(s, s) o = Identity(s) m = ReduceMax<keepdims=0>(r) d = Less(m, two) }> }"
)
SCAN = (
    '<ir_version: 8, opset_import: ["": 17]> net (float[N, 3, 2] x) => (float[N, 2] y, '
    "float[N, 3, 2] all) { g = ReduceMax<axes=[1], keepdims=0>(x) y, all = Scan<num_scan_inputs=1, "
    "scan_input_axes=[1], scan_output_axes=[1], scan_input_directions=[1], "
    "scan_output_directions=[1], body = step (float[N, 2] s, float[N, 2] w) => "
    "(float[N, 2] r, float[N, 2] o) { r = Add(s, w) o = Identity(s) }>(g, x) }"
)


def numbers(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random(shape, np.float32) + np.float32(0.1)


def feed(n: int, rows: int = 2, seed: int = 0) -> dict[str, Any]:
    return {"x": numbers(rows, 2, seed=seed), "n": np.array(n)}


@pytest.mark.parametrize(
    ("text", "given", "axis"),
    [(LOOP, feed(3), 0), (WHILE, feed(0), 0), (SCAN, {"x": numbers(2, 3, 2)}, 1)],
)
def test_iterations_are_those_of_the_runtime(text: str, given: dict[str, Any], axis: int) -> None:
    proto = parse(text, {})
    wanted = np.moveaxis(outputs(proto, given)["all"], axis, 0)
    if text is SCAN:
        wanted = wanted[::-1]  # it is gone through backwards
    observer = BodyObserver(load(proto).model, {"y/body": fetch({"o"})}, ONE_THREAD)
    states = [values["o"] for key, values in observer.run(given) if key == "y/body"]
    np.testing.assert_allclose(np.stack(states), wanted, rtol=1e-6)


def test_only_the_branch_that_runs_is_seen() -> None:
    model = load(parse(IF, {})).model
    names = {"y/then_branch": ["u", "h"], "y/else_branch": ["v"]}
    first = values_in_bodies(model, names, [feed(1)], ONE_THREAD)
    assert first.keys() == {("y/then_branch", "u"), ("y/then_branch", "h")}
    np.testing.assert_allclose(first["y/then_branch", "u"], -2 * feed(1)["x"])
    both = values_in_bodies(model, names, [feed(1), feed(0)], ONE_THREAD)
    np.testing.assert_allclose(both["y/else_branch", "v"], feed(0)["x"] ** 2)
    seen = seen_bodies(model, [(2, feed(1)), (2, feed(1)), (2, feed(0))], ONE_THREAD, enough=8)
    assert {key: body.samples for key, body in seen.items()} == {
        "y/then_branch": 4,
        "y/else_branch": 2,
    }


def test_moments_are_those_of_the_runs_there_were() -> None:
    """Every second batch runs a branch; its statistics know nothing of the others."""
    model = load(parse(IF, {})).model
    batches = [feed(n % 2, 4, seed=n) for n in range(6)]
    samples = read_samples(batches, input_specs(model))
    inside, outside = (Tap("h", (1,), 2, body=key) for key in ("y/then_branch", ""))
    moments = collect(model, [inside, outside], samples, ONE_THREAD)
    for tap, some in ((inside, batches[1::2]), (outside, batches)):
        every = -np.concatenate([batch["x"] for batch in some])
        assert moments[tap].count == len(every)
        np.testing.assert_allclose(moments[tap].mean, every.mean(axis=0), rtol=1e-5)
    only = read_samples(batches[1::2], input_specs(model))
    assert not collect(model, [Tap("v", (1,), 2, body="y/else_branch")], only, ONE_THREAD)


def test_what_is_the_same_in_all_runs_is_steady() -> None:
    model = load(parse(LOOP, {})).model
    samples = read_samples([feed(3, 2, seed) for seed in range(3)], input_specs(model))
    taps = [Tap(name, (1,), 2, body="y/body") for name in ("s", "x")]
    moments = collect(model, taps, samples, ONE_THREAD)
    assert moments[taps[0]].count == 18
    assert not any(moments[tap].steady.any() for tap in taps)


def test_a_walk_goes_into_bodies_and_out_again() -> None:
    model = load(parse(LOOP, {})).model
    batches = [feed(n, 2, seed=n) for n in (3, 0, 40)]
    walks = DeepWalk(model, batches, ONE_THREAD)
    loop = next(node for node in model.graph if node.op_type == "Loop")
    body = loop.attributes["body"].as_graph()
    relu = next(node for node in body if node.op_type == "Relu")
    walk = walks.at(relu)
    walk.advance(relu)
    assert len(walk) == 3 + 0 + KEPT_ITERATIONS
    # e = s + x from s = -x: zero at first, then x and its multiples
    for count, values in ((0, walk["e"][0]), (0, walk["e"][1])):
        np.testing.assert_allclose(values, count * batches[0]["x"], atol=1e-6)
    out = walks.leave()
    out.advance(None)
    for batch, got in zip(batches, out["y"], strict=True):
        np.testing.assert_allclose(got, outputs(parse(LOOP, {}), batch)["y"], rtol=1e-6)


def test_a_guided_walk_runs_the_bodies_of_its_guide() -> None:
    """The condition of the guided model is false, the states of its loop are others."""
    model = load(parse(IF, {})).model
    other = model.clone()
    greater = next(node for node in other.graph if node.op_type == "Greater")
    greater.replace_input_with(0, greater.inputs[1])
    guide = DeepWalk(model, [feed(1)], ONE_THREAD)
    walks = DeepWalk(other, [feed(1)], ONE_THREAD, guide)
    inner = next(node for node in other.graph if node.op_type == "If")
    (add, _) = inner.attributes["then_branch"].as_graph()
    assert len(walks.at(add)) == 1
    assert len(guide.innermost) == 1
    (mul, _) = inner.attributes["else_branch"].as_graph()
    assert len(walks.at(mul)) == 0


def test_a_model_that_does_not_run_is_an_error() -> None:
    model = load(parse(IF, {})).model
    observer = BodyObserver(model, {"y/then_branch": fetch({"u"})}, ONE_THREAD)
    with pytest.raises(RuntimeFailure):
        list(observer.run({"x": np.zeros((2, 3), np.float32), "n": np.array([[1]])}))
    assert isinstance(model, ir.Model)
