"""Cuts inside the bodies of If, Loop and Scan, weights that live there included."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from helpers.oracle import BATCHES, Traced, difference, feed, outputs, parse, random_removal, traced
from numpy.typing import NDArray
from onnx import numpy_helper

import onnxprune

LOOP = "t = Loop(n, , h)<body = step (int64 i, bool c, float[N, 8] s) => (bool d, float[N, 8] r)"
IF = (
    "w = ReduceMax<keepdims=0>(x) g = Greater(w, zero) t = If(g)<then_branch = one () => "
    "(float[N, 8] u)"
)


def network(
    body: str, inside: Mapping[str, object], opset: int = 17, **weights: object
) -> onnx.ModelProto:
    """From h [N, 8], made by `a`, to t [N, 8], read by `b`; `inside` goes into the first body."""
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 8), "b": (8, 3), **weights, **inside}
    given = {
        name: value
        if isinstance(value, np.ndarray)
        else (rng.standard_normal(value) / 3).astype(np.float32)  # type: ignore[arg-type]
        for name, value in shapes.items()
    }
    proto = parse(
        f'<ir_version: 8, opset_import: ["": {opset}]> net (float[N, 4] x) => (float[N, 3] y) '
        f"{{ h = MatMul(x, a) {body} y = MatMul(t, b) }}",
        given | {"n": np.array(3), "zero": np.array(0.5, np.float32)},
    )
    graph = next(iter(bodies(proto)), onnx.GraphProto())
    for tensor in list(proto.graph.initializer):
        if tensor.name in inside:
            graph.initializer.append(tensor)
            proto.graph.initializer.remove(tensor)
    return proto


def bodies(proto: onnx.ModelProto) -> list[onnx.GraphProto]:
    nodes = proto.graph.node
    return [a.g for node in nodes for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]


def judge(subject: Traced, dead: list[int]) -> onnx.ModelProto:
    """The sliced model, once it is valid and equal to the masked one at a new batch too."""
    sliced, zeroed = subject.sliced(dead), subject.zeroed(dead)
    onnx.checker.check_model(sliced, full_check=True)
    moved = 0.0
    for batch in BATCHES:
        inputs = feed(subject.proto, batch)
        wanted = outputs(zeroed, inputs)
        assert difference(wanted, outputs(sliced, inputs)) < 1e-5
        moved = max(moved, difference(outputs(subject.proto, inputs), wanted))
    assert moved > 0
    return sliced


def shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def first_units(subject: Traced, tensor: str, axis: int, count: int) -> list[int]:
    return subject.closed(subject.units(tensor, axis)[:count].tolist())


MLP = "{ m = MatMul(s, k) q = Relu(m) r = MatMul(q, l) d = Identity(c) }>"


def test_weights_inside_a_body_are_cut_there() -> None:
    subject = traced(network(f"{LOOP} {MLP}", {"k": (8, 6), "l": (6, 8)}))
    sliced = judge(subject, first_units(subject, "k", 1, 2))
    assert shapes(bodies(sliced)[0]) == {"k": (8, 4), "l": (4, 8)}
    assert shapes(sliced.graph)["a"] == (4, 8)


def test_a_state_is_cut_everywhere_at_once() -> None:
    subject = traced(network(f"{LOOP} {MLP}", {"k": (8, 6), "l": (6, 8)}))
    sliced = judge(subject, first_units(subject, "a", 1, 3))
    assert shapes(bodies(sliced)[0]) == {"k": (5, 6), "l": (6, 5)}
    assert (shapes(sliced.graph)["a"], shapes(sliced.graph)["b"]) == ((4, 5), (5, 3))


def test_a_body_declares_nothing_that_is_wrong_now_and_keeps_the_rest() -> None:
    subject = traced(network(f"{LOOP} {MLP}", {"k": (8, 6), "l": (6, 8)}))
    (body,) = bodies(judge(subject, first_units(subject, "a", 1, 3)))
    assert not body.input[2].type.tensor_type.HasField("shape")
    (body,) = bodies(judge(subject, first_units(subject, "k", 1, 3)))
    assert body.input[2] == bodies(subject.proto)[0].input[2]


def test_constants_made_inside_a_body_are_cut() -> None:
    body = (
        "{ m = MatMul(s, k) e = Constant<value=float[6]{1., 2., 3., 4., 5., 6.}>() q = Mul(m, e) "
        "r = MatMul(q, l) d = Identity(c) }>"
    )
    subject = traced(network(f"{LOOP} {body}", {"k": (8, 6), "l": (6, 8)}))
    (body_after,) = bodies(judge(subject, first_units(subject, "k", 1, 2)))
    constant = next(node for node in body_after.node if node.op_type == "Constant")
    assert numpy_helper.to_array(constant.attribute[0].t).tolist() == [3, 4, 5, 6]


def test_sizes_inside_a_body_follow_and_shared_literals_are_copied() -> None:
    body = (
        "{ m = MatMul(s, k) e = Reshape(m, apart) q = Relu(e) f = Reshape(q, flat) "
        "r = MatMul(f, l) d = Identity(c) }>"
    )
    literals = {"apart": np.array([0, 3, 2]), "flat": np.array([0, 6])}
    subject = traced(network(f"{LOOP} {body}", {"k": (8, 6), "l": (6, 8)}, **literals))
    dead = first_units(subject, "k", 1, 2)
    (after,) = bodies(judge(subject, dead))
    assert "flat" not in {name for node in after.node for name in node.input}
    for seed in range(4):
        judge(subject, random_removal(subject, 0.5, seed))


def test_attributes_inside_a_body_follow() -> None:
    body = (
        "{ e = Unsqueeze(h, last) f = Conv(e, k) m = Conv<group=8>(f, l) v = Squeeze(m, last) "
        "u = MatMul(v, o) }, else_branch = two () => (float[N, 8] z) { z = Neg(h) }>"
    )
    inside: dict[str, object] = {"k": (8, 8, 1), "l": (8, 1, 1), "o": (8, 8)}
    subject = traced(network(f"{IF} {body}", inside, last=np.array([2])))
    first = bodies(judge(subject, first_units(subject, "k", 0, 3)))[0]
    assert shapes(first) == {"k": (5, 8, 1), "l": (5, 1, 1), "o": (5, 8)}


def test_a_branch_that_reads_nothing() -> None:
    body = (
        "{ u = Relu(h) }, else_branch = two () => (float[N, 8] v) { "
        "one = Constant<value=float[1, 8]{1., 2., 3., 4., 5., 6., 7., 8.}>() "
        "size = Constant<value=int64[2]{5, 8}>() v = Expand(one, size) }>"
    )
    proto = network(f"{IF} {body}", {})
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 5
    subject = traced(proto)
    sliced = judge(subject, first_units(subject, "a", 1, 3))
    constants = {n.output[0]: n.attribute[0].t for n in bodies(sliced)[1].node if not n.input}
    assert numpy_helper.to_array(constants["one"]).tolist() == [[4, 5, 6, 7, 8]]


def test_the_number_of_iterations_stays() -> None:
    """Counted along an axis that is cut; every iteration moves the sum."""
    body = (
        "w = Shape<start=1, end=2>(h) j = Squeeze(w) t = Loop(j, , h)<body = step "
        "(int64 i, bool c, float[N, 8] s) => (bool d, float[N, 8] r) "
        "{ r = Add(s, h) d = Identity(c) }>"
    )
    subject = traced(network(body, {}))
    judge(subject, first_units(subject, "a", 1, 3))


def test_a_divisor_stays_one_inside_a_body_and_behind_a_state() -> None:
    body = (
        "t, u = Loop(n, , h, e)<body = step (int64 i, bool c, float[N, 8] s, float[8] f) => "
        "(bool d, float[N, 8] r, float[8] o) "
        "{ r = Div(s, f) o = Identity(f) d = Identity(c) }>"
    )
    subject = traced(network(body, {}, e=np.linspace(1, 2, 8, dtype=np.float32)))
    assert subject.coupling.divisors == {"e"}
    judge(subject, first_units(subject, "a", 1, 3))


def test_quantised_weights_that_are_carried_along_stay_whole() -> None:
    body = (
        "t, u = Loop(n, , h, e)<body = step (int64 i, bool c, float[N, 8] s, uint8[8, 8] f) => "
        "(bool d, float[N, 8] r, uint8[8, 8] o) "
        "{ w = DequantizeLinear(f, p, q) r = MatMul(s, w) o = Identity(f) d = Identity(c) }>"
    )
    weight = np.random.default_rng(0).integers(0, 255, (8, 8)).astype(np.uint8)
    levels = {"p": np.array(0.01, np.float32), "q": np.array(120, np.uint8)}
    assert not traced(network(body, {}, e=weight, **levels)).groups


@pytest.mark.parametrize("inside", [{}, {"k": (8, 6), "l": (6, 8)}])
def test_a_loop_is_pruned_with_a_certificate(inside: dict[str, object]) -> None:
    outside: dict[str, object] = {} if inside else {"k": (8, 6), "l": (6, 8)}
    proto = network(f"{LOOP} {MLP}", inside, **outside)
    samples: dict[str, NDArray[np.float32]]
    samples = {"x": np.random.default_rng(1).standard_normal((64, 4)).astype(np.float32)}
    plain = onnxprune.prune(proto, target={"channels": 0.5}, criterion="l2", compensate="none")
    folded = onnxprune.prune(proto, calibration=samples, target={"channels": 0.5}, force=True)
    for result in (plain, folded):
        assert result.report.certificate.error < 1e-5
        assert result.plan.initializers.keys() == {"a", "k", "l", "b"}
