"""Integers computed from shapes, evaluated anew for the cut model at both sizes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.oracle import Traced, check_surgery, parse, traced

from onnxprune.coupling.cut import CutError
from onnxprune.surgery.integer_values import IntegerValues


def network(body: str, **values: object) -> Traced:
    rng = np.random.default_rng(0)
    weights = {"a": rng.standard_normal((4, 8)), "b": rng.standard_normal((8, 3))}
    given = {name: np.asarray(value) for name, value in values.items()}
    text = (
        '<ir_version: 8, opset_import: ["": 17]> net (float[N, 4] x) => (float[N, 3] y) '
        f"{{ h = MatMul(x, a) {body} y = MatMul(t, b) }}"
    )
    return traced(parse(text, {k: v.astype(np.float32) for k, v in weights.items()} | given))


def followed(subject: Traced, channels: int = 2) -> IntegerValues:
    """The integers after some channels of h are gone."""
    dead = subject.closed(subject.units("a", 1)[:channels].tolist())
    model = subject.model.clone()
    values = IntegerValues(subject.cut(dead), dict(model.opset_imports))
    for node in list(model.graph):
        values.follow(node)
    return values


def test_the_shape_of_a_cut_tensor_changes_at_both_sizes() -> None:
    values = followed(network("s = Shape(h) t = Relu(h)"))
    first, second = values.get("s"), values.get("s", second=True)
    assert first is not None
    assert second is not None
    assert (first.tolist(), second.tolist()) == ([2, 6], [3, 6])
    assert values.changed("s")


def test_part_of_a_shape_and_the_size() -> None:
    values = followed(network("s = Shape<start=-1>(h) n = Size(h) t = Relu(h)"))
    part, size = values.get("s"), values.get("n")
    assert part is not None
    assert size is not None
    assert (part.tolist(), int(size)) == ([6], 12)


def test_chains_are_evaluated_node_by_node() -> None:
    body = (
        "s = Shape(h) i = Constant<value=int64{1}>() c = Gather(s, i) "
        "two = Constant<value=int64{2}>() "
        "d = Div(c, two) k = Cast<to=6>(d) t = Relu(h)"
    )
    values = followed(network(body))
    result = values.get("k")
    assert result is not None
    assert (int(result), result.dtype) == (3, np.dtype(np.int32))


def test_what_does_not_depend_on_the_cut_is_unchanged() -> None:
    body = "s = Shape(x) i = Constant<value=int64{0}>() c = Gather(s, i) t = Relu(h)"
    values = followed(network(body))
    assert not values.changed("s")
    assert not values.changed("c")
    assert int(values.get("c", second=True)) == 3  # type: ignore[arg-type]


def test_a_number_that_comes_out_the_same_is_unchanged() -> None:
    body = "s = Shape<start=1>(h) k = Constant<value=int64[1]{3}>() c = Min(s, k) t = Relu(h)"
    values = followed(network(body))
    assert values.changed("s")
    assert not values.changed("c")


def test_a_run_time_scale_keeps_its_value() -> None:
    """1 / sqrt(width) is part of the function, not of the shape."""
    body = "s = Shape<start=1>(h) f = Cast<to=1>(s) r = Sqrt(f) t = Div(h, r)"
    subject = network(body)
    dead = subject.closed(subject.units("a", 1)[:2].tolist())
    assert check_surgery(subject, dead) > 0
    proto = subject.sliced(dead)
    (kept,) = (node for node in proto.graph.node if node.output[0] == "f")
    assert onnx.numpy_helper.to_array(kept.attribute[0].t).tolist() == [8.0]


def test_a_run_time_scale_that_depends_on_the_batch_is_refused() -> None:
    subject = network("n = Size(h) f = Cast<to=1>(n) t = Div(h, f)")
    with pytest.raises(CutError, match="run-time scale n depends on the batch"):
        followed(subject)


def test_a_number_that_depends_on_data_is_unknown() -> None:
    """Whether any input is greater than that: it was so in the observed runs."""
    body = (
        "g = Greater(x, zero) c = Cast<to=7>(g) m = ReduceMax<axes=[0], keepdims=0>(c) "
        "k = ReduceMax<keepdims=1>(m) w = Shape<start=1>(h) n = Mul(w, k) t = Relu(h)"
    )
    values = followed(network(body, zero=np.float32(-1e9)))
    assert values.changed("w")
    assert values.get("n") is None
    assert values.get("k") is None


def test_a_target_that_depends_on_data_is_refused() -> None:
    """It was [N, 8] in both runs; whether it is N next time, nobody knows."""
    body = (
        "g = Greater(x, low) c = Cast<to=7>(g) k = ReduceMax<keepdims=0>(c) "
        "w = Constant<value=int64[2]{-1, 8}>() n = Mul(w, k) t = Reshape(h, n)"
    )
    subject = network(body, low=np.float32(-1e9))
    with pytest.raises(CutError, match="n is only known at run time"):
        subject.sliced(subject.closed(subject.units("a", 1)[:2].tolist()))


def test_the_two_sizes_differ_in_the_batch() -> None:
    facts = network("t = Relu(h)").coupling.facts
    assert (facts.first.shapes["x"], facts.second.shapes["x"]) == ((2, 4), (3, 4))
