"""Which normalised axes are cut by default: those of hidden layers, where that is exact."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.oracle import ONE_THREAD, Traced, check_surgery, parse, random_removal
from helpers.rules import owned_axes

from onnxprune.coupling.groups import find_groups
from onnxprune.coupling.hidden_axes import trace_hidden
from onnxprune.model.load import load
from onnxprune.model.observe import observe
from onnxprune.surgery.operators.normalisation import keep_statistics
from onnxprune.surgery.slicing import slice_removed

SIZES = {
    "w0": (4, 8),
    "w1": (8, 6),
    "w2": (6, 8),
    "w3": (8, 3),
    "w4": (4, 8),
    "g": (8,),
    "b": (8,),
    "u": (6,),
}
VALUES = {"last": np.array([-1]), "rows": np.array([1]), "tiny": np.array(1e-5, np.float32)}
NORM = "n = LayerNormalization<axis=-1>(h, g, b)"
BY_HAND = """m = ReduceMean<keepdims=1>(h, last) z = Sub(h, m) q = Mul(z, z)
    v = ReduceMean<keepdims=1>(q, last) e = Add(v, tiny) s = Sqrt(e) n = Div(z, s)"""
ROOT_MEAN_SQUARE = """q = Mul(h, h) m = ReduceMean<keepdims=1>(q, last) e = Add(m, tiny)
    s = Sqrt(e) d = Div(h, s) n = Mul(d, g)"""
RESPONSE = """q = Relu(h) l = ReduceL2<keepdims=1>(q, rows) m = ReduceMean<keepdims=1>(l, last)
    e = Add(m, tiny) i = Div(l, e) r = Mul(q, i) t = Mul(r, g) c = Add(t, b) n = Add(c, q)"""


def network(body: str, x: str = "N, 4", y: str = "N, 3", opset: int = 18) -> onnx.ModelProto:
    rng = np.random.default_rng(5)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in SIZES.items()
        if re.search(rf"\b{name}\b", body)
    }
    return parse(
        f'<ir_version: 8, opset_import: ["": {opset}]> net (float[{x}] x) => (float[{y}] y) '
        f"{{ {body} }}",
        weights | {name: value for name, value in VALUES.items() if name in body},
    )


class Normalised(Traced):
    """A traced model whose statistics go on counting what was removed."""

    def sliced(self, dead: list[int]) -> onnx.ModelProto:
        model, cut = self.model.clone(), self.cut(dead)
        slice_removed(model, cut)
        keep_statistics(model, cut)
        return ir.to_proto(model)


def traced(proto: onnx.ModelProto) -> Traced:
    model = load(proto).model
    coupling = trace_hidden(model, observe(model, ONE_THREAD, np.random.default_rng(0)))
    return Normalised(proto, model, coupling, find_groups(coupling))


@pytest.mark.parametrize(
    ("norm", "owned"),
    [
        (NORM, "8: b[0] g[0] w0[1] w3[0]"),
        (ROOT_MEAN_SQUARE, "8: g[0] w0[1] w3[0]"),
        ("n = Softmax(h)", "8: w0[1] w3[0]"),
        ("k = Sigmoid(h) n = LayerNormalization(k, g, b)", None),  # removed entries are halves
        (BY_HAND, None),  # what is removed is no zero in the second mean
    ],
)
def test_a_hidden_axis_is_cut_where_that_is_exact(norm: str, owned: str | None) -> None:
    subject = traced(network(f"h = MatMul(x, w0) {norm} y = MatMul(n, w3)"))
    assert owned_axes(subject) == ((owned,) if owned else ())
    for seed in range(3 if owned else 0):
        assert check_surgery(subject, random_removal(subject, 0.5, seed)) > 0


def test_the_response_of_a_map_is_normalised_over_its_channels() -> None:
    body = f"h = MatMul(x, w0) {RESPONSE} y = MatMul(n, w3)"
    subject = traced(network(body, "N, 5, 4", "N, 5, 3"))
    assert owned_axes(subject) == ("8: b[0] g[0] w0[1] w3[0]",)
    assert check_surgery(subject, random_removal(subject, 0.5, 1)) > 0


def test_two_layers_that_gate_each_other_make_one_hidden_axis() -> None:
    body = f"f = MatMul(x, w0) c = MatMul(x, w4) a = Sigmoid(c) h = Mul(f, a) {NORM}"
    subject = traced(network(f"{body} y = MatMul(n, w3)"))
    assert owned_axes(subject) == ("8: b[0] g[0] w0[1] w3[0] w4[1]",)
    assert check_surgery(subject, random_removal(subject, 0.5, 1)) > 0


BLOCK = "k = MatMul(n, w1) r = Relu(k) o = MatMul(r, w2) a = Add(h, o) y = MatMul(a, w3)"


def test_a_stream_stays_whole_and_what_its_layers_hide_does_not() -> None:
    subject = traced(network(f"h = MatMul(x, w0) {NORM} {BLOCK}"))
    assert owned_axes(subject) == ("6: w1[1] w2[0]",)
    normalised = BLOCK.replace("r = Relu(k)", "l = LayerNormalization(k, u) r = Relu(l)")
    subject = traced(network(f"h = MatMul(x, w0) {NORM} {normalised}"))
    assert owned_axes(subject) == ("6: u[0] w1[1] w2[0]",)
    assert check_surgery(subject, random_removal(subject, 0.5, 1)) > 0


def test_nothing_is_cut_that_older_operator_sets_cannot_express() -> None:
    body = ROOT_MEAN_SQUARE.replace("<keepdims=1>(q, last)", "<keepdims=1, axes=[-1]>(q)")
    assert not traced(network(f"h = MatMul(x, w0) {body} y = MatMul(n, w3)", opset=12)).groups
