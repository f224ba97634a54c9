"""What the walk does where a rule says less than the graph uses."""

from __future__ import annotations

import numpy as np
from helpers.oracle import Traced, check_surgery, parse, traced


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def owned(subject: Traced) -> set[str]:
    return {one.tensor for group in subject.groups for one in group.owned}


def test_a_second_output_in_use_without_labels_freezes_the_inputs() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 3] x) => (float[N, 2] y)
        { h = MatMul(x, w1) s = Softplus(h) a, i = TopK(s, k) y = MatMul(a, w2) }"""
    values = {**weights(w1=(3, 8), w2=(4, 2)), "k": np.array([4])}
    subject = traced(parse(text, values))
    assert "w1" not in owned(subject)


def test_a_divisor_behind_a_deep_chain_is_found_without_recursion() -> None:
    chain = " ".join(f"c{i + 1} = Abs(c{i})" for i in range(3000))
    text = f"""<ir_version: 8, opset_import: ["": 17]> g (float[N, 3] x) => (float[N, 2] y)
        {{ {chain} h = MatMul(x, w1) d = Div(h, c3000) e = Div(d, w2) y = MatMul(e, w3) }}"""
    subject = traced(parse(text, weights(c0=(8,), w1=(3, 8), w2=(8,), w3=(8, 2))))
    assert {"c0", "w2"} <= subject.coupling.divisors


def test_labels_that_share_an_axis_are_frozen_where_they_would_have_to_merge() -> None:
    """Heads of both factors of a product without a transpose between, then flattened."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 5, 6] x) => (float[N, 5, 2] y)
        { q = MatMul(x, w1) k = MatMul(x, w2) a = Reshape(q, apart) b = Reshape(k, apart)
          t = Transpose<perm = [0, 1, 3, 2]>(b) p = MatMul(a, t) z = Reshape(p, flat)
          y = MatMul(z, w3) }"""
    values = {
        **weights(w1=(6, 12), w2=(6, 12), w3=(9, 2)),
        "apart": np.array([0, 5, 3, 4]),
        "flat": np.array([0, 5, 9]),
    }
    subject = traced(parse(text, values))
    for group in subject.groups:
        check_surgery(subject, subject.closed([int(group.units[0])]))


def test_only_keepdims_1_keeps_reduced_axes() -> None:
    """onnxruntime keeps reduced dimensions for keepdims=1 only; a rule could get that wrong."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 5, 3] x) => (float[N, 2] y)
        { h = MatMul(x, w1) m = ReduceMean<axes = [1], keepdims = 7>(h) y = MatMul(m, w2) }"""
    subject = traced(parse(text, weights(w1=(3, 8), w2=(8, 2))))
    assert owned(subject) == {"w1", "w2"}
    check_surgery(subject, [int(subject.groups[0].units[0])])
