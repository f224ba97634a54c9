"""What a layer's output enters: sums it is part of, and activations with flat parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from helpers.oracle import parse

from onnxprune.compensation.regression.targets import FlatParts, Sum, flat_parts, sum_behind
from onnxprune.model.load import load

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
SHAPES = {"x": (2, 5, 4), "a": (2, 5, 4), "row": (4,), "one": (1, 1, 4), "wide": (3, 2, 5, 4)}


def graph(body: str, outputs: str = "float[N, 5, 4] y", **weights: Any) -> ir.Model:
    rng = np.random.default_rng(0)
    names = {"w": (4, 4)} | {k: SHAPES[k] for k in ("row", "wide", "one") if k in body}
    arrays = {k: rng.standard_normal(s).astype(np.float32) for k, s in names.items()} | weights
    return load(parse(f"{HEAD} g (float[N, 5, 4] x) => ({outputs}) {{ {body} }}", arrays)).model


def node_of(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.outputs[0].name == name)


def behind(model: ir.Model, layer: str, *known: str, **shapes: Any) -> Sum:
    return sum_behind(node_of(model, layer), known, 3, shapes or None)


def test_a_residual_stream_is_part_of_the_sum() -> None:
    model = graph("a = MatMul(x, w) b = Add(a, row) y = Add(x, b)")
    found = behind(model, "a", "x")
    assert (found.name, found.others) == ("y", ("x",))
    assert found.last is node_of(model, "y")


def test_sums_of_several_terms() -> None:
    model = graph("r = Relu(x) a = MatMul(r, w) b = Add(r, a) c = Add(b, x) y = Relu(c)")
    assert behind(model, "a", "x", "r").others == ("r", "x")
    assert behind(model, "a", "x", "r").name == "c"


def test_what_is_not_known_yet_ends_the_sum() -> None:
    """Of two branches, the second makes up for what the first has lost, not the other way round."""
    model = graph("a = MatMul(x, w) v = Tanh(x) b = MatMul(v, w) c = Add(a, b) y = Relu(c)")
    assert behind(model, "a", "x").name == "a"
    assert behind(model, "b", "x", "a").others == ("a",)


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("a = MatMul(x, w) b = Add(a, x) c = Relu(a) y = Add(b, c)", "float[N, 5, 4] y"),
        ("a = MatMul(x, w) b = Mul(a, x) y = Relu(b)", "float[N, 5, 4] y"),
        ("a = MatMul(x, w) y = Add(a, x)", "float[N, 5, 4] y, float[N, 5, 4] a"),
        ("a = MatMul(x, w) y = Add(a, a)", "float[N, 5, 4] y"),
        ("a = MatMul(x, w) y = Add(a, wide)", "float[3, N, 5, 4] y"),
    ],
)
def test_no_sum(body: str, outputs: str) -> None:
    """Read elsewhere too, no addition, an output, added to itself, spread over another axis."""
    model = graph(body, outputs)
    assert behind(model, "a", "x") == Sum(node_of(model, "a"), ())


def test_constants_in_nodes_are_constants() -> None:
    body = "a = MatMul(x, w) k = Constant<value_floats = [1.0, 2.0, 3.0, 4.0]>() y = Add(a, k)"
    found = behind(graph(body), "a")
    assert (found.name, found.others) == ("y", ())


def test_a_sum_with_more_rows_than_the_layer_is_none_of_its_targets() -> None:
    """A context added to every position: its layer has one row for each sample."""
    body = """m = ReduceMean<axes = [1], keepdims = 1>(x)
        a = MatMul(m, w) y = Add(a, x)"""
    model = graph(body)
    shapes = {"x": (2, 5, 4), "m": (2, 1, 4), "a": (2, 1, 4), "y": (2, 5, 4)}
    assert behind(model, "a", "x", **shapes) == Sum(node_of(model, "a"), ())
    assert behind(model, "a", "x", **shapes | {"a": (2, 5, 4)}).others == ("x",)


@pytest.mark.parametrize(
    ("op", "wanted"),
    [
        ("Relu(a)", FlatParts(0.0, np.inf)),
        ("Clip(a, low, high)", FlatParts(-1.0, 6.0)),
        ("Clip(a, low)", FlatParts(-1.0, np.inf)),
        ("Clip(a, , high)", FlatParts(-np.inf, 6.0)),
        ("Clip(a)", None),
        ("Clip(a, inner, high)", FlatParts(-2.0, 6.0)),
        ("Sigmoid(a)", None),
        ("LeakyRelu(a)", None),
    ],
)
def test_flat_parts(op: str, wanted: FlatParts | None) -> None:
    constant = "inner = Constant<value_float = -2.0>()"
    bounds = {"low": np.array(-1.0, np.float32), "high": np.array(6.0, np.float32)}
    model = graph(f"{constant} a = MatMul(x, w) y = {op}", **bounds)
    assert flat_parts(node_of(model, "a").outputs[0]) == wanted


def test_bounds_as_attributes() -> None:
    text = """<ir_version: 8, opset_import: ["": 7]>
        g (float[N, 4] x) => (float[N, 4] y) { a = Neg(x) y = Clip<max = 6.0>(a) }"""
    model = load(parse(text)).model
    assert flat_parts(node_of(model, "a").outputs[0]) == FlatParts(-np.inf, 6.0)


def test_what_others_read_too_is_not_behind_an_activation() -> None:
    model = graph("a = MatMul(x, w) b = Relu(a) y = Add(a, b)")
    assert flat_parts(node_of(model, "a").outputs[0]) is None
    model = graph("a = MatMul(x, w) y = Relu(a)", "float[N, 5, 4] y, float[N, 5, 4] a")
    assert flat_parts(node_of(model, "a").outputs[0]) is None


def test_a_constant_that_differs_between_rows_ends_the_sum() -> None:
    """An embedding of positions is no bias."""
    positions = np.zeros((5, 4), np.float32)
    model = graph("a = MatMul(x, w) b = Add(a, row) c = Add(b, pos) y = Relu(c)", pos=positions)
    layer = node_of(model, "a")
    assert sum_behind(layer, ("x",), 3).name == "c"
    assert sum_behind(layer, ("x",), 3, axes=(2,)).name == "b"
    assert sum_behind(layer, ("x",), 3, axes=(1, 2)).name == "c"
