"""What every node costs: shared weights once, bodies with their node."""

from __future__ import annotations

import numpy as np
from helpers.oracle import parse, traced

from onnxprune.cost.figures import node_costs

SHARED = """<ir_version: 8, opset_import: ["": 17]>
    g (float[2, 4] x) => (float[2, 4] y)
    { a = MatMul(x, w)
      b = Add(a, b1)
      c = Relu(b)
      y = MatMul(c, w) }"""


def test_a_shared_weight_is_multiplied_twice_and_stored_once() -> None:
    subject = traced(
        parse(SHARED, {"w": np.ones((4, 4), np.float32), "b1": np.ones(4, np.float32)})
    )
    costs = node_costs(subject.model.graph, subject.coupling)
    assert [(c.op_type, c.macs, c.parameters, c.bytes, c.activations) for c in costs] == [
        ("MatMul", 32, 16, 64, 32),
        ("Add", 0, 4, 16, 32),
        ("MatMul", 32, 0, 0, 32),
    ]


def test_half_precision_takes_half_the_bytes() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float16[2, 4] x) => (float16[2, 3] y) { y = MatMul(x, w) }"""
    subject = traced(parse(text, {"w": np.ones((4, 3), np.float16)}))
    (cost,) = node_costs(subject.model.graph, subject.coupling)
    assert (cost.parameters, cost.bytes, cost.activations) == (12, 24, 12)


def test_what_a_body_reads_and_holds_counts_with_its_node() -> None:
    """Twice a product with w [4, 4], which lies outside, and with the constant k [4] inside."""
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[2, 4] x) => (float[2, 4] y)
        { y = If(flag) <then_branch = a () => (float[2, 4] t)
            { k = Constant<value = float[4] {1, 2, 3, 4}>()
              m = MatMul(x, w)
              t = Add(m, k) },
          else_branch = b () => (float[2, 4] e) { e = MatMul(x, w) }> }"""
    weights = {"w": np.ones((4, 4), np.float32), "flag": np.array(True)}
    subject = traced(parse(text, weights))
    (cost,) = node_costs(subject.model.graph, subject.coupling)
    assert (cost.op_type, cost.macs, cost.parameters, cost.bytes) == ("If", 32, 20, 80)
