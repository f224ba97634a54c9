"""Which constants are trained, told by what reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.reducing import graph, weights
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from onnxprune.distillation.parameters import left_out, parameters_of, values_of, with_values
from onnxprune.model.load import load

SIGNATURE = "(float[N, 4] x) => (float[] y)"


def vector(*entries: float) -> np.ndarray:
    return np.array(entries, np.float32)


def model(body: str, values: dict[str, Any], signature: str = SIGNATURE) -> ir.Model:
    return load(graph(signature, body, values)).model


def trained(body: str, signature: str = SIGNATURE, /, *, tables: bool = False, **given: Any) -> str:
    """Names of what is trained; weights are given as shapes or as arrays."""
    values = {
        name: np.ones(value, np.float32) if isinstance(value, tuple) else np.asarray(value)
        for name, value in given.items()
    }
    loaded = model(body, values, signature)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=2)(loaded)
    return " ".join(parameters_of(loaded.graph, embeddings=tables))


def test_weights_that_are_left_out_are_named() -> None:
    body = "d = DequantizeLinear(w, s, z) h = MatMul(x, d) y = MatMul(h, v)"
    values = {
        "w": np.ones((4, 3), np.int8),
        "s": np.array(0.1, np.float32),
        "z": np.array(0, np.int8),
    }
    loaded = model(body, {**values, "v": np.ones((3, 2), np.float32)})
    ((name, reason),) = left_out(loaded.graph).items()
    assert name == "w"
    assert "integers" in reason
    branches = "then_branch = a () => (float[] t) { t = MatMul(x, v) }"
    branches += ", else_branch = b () => (float[] e) { e = MatMul(x, u) }"
    inner = model(
        f"y = If (c) <{branches}>",
        {"c": np.array(True), **{n: np.ones((4, 2), np.float32) for n in "uv"}},
    )
    assert set(left_out(inner.graph)) == {"u", "v"}
    assert all("body of" in reason for reason in left_out(inner.graph).values())


IMAGES = "(float[N, 3, 8, 8] x) => (float[] y)"
STATISTICS = {"s": (5,), "t": (5,), "m": (5,), "v": (5,)}


def test_weights_and_biases_of_layers() -> None:
    assert trained("y = Conv(x, w, b)", IMAGES, w=(5, 3, 3, 3), b=(5,)) == "w b"
    assert trained("y = ConvTranspose(x, w, b)", IMAGES, w=(3, 5, 2, 2), b=(5,)) == "w b"
    assert trained("y = Gemm(x, w, b)", w=(4, 3), b=(3,)) == "w b"
    assert trained("y = MatMul(w, x)", "(float[4, 4] x) => (float[] y)", w=(3, 4)) == "w"
    assert trained('y = Einsum<equation = "bi,ij->bj">(x, w)', w=(4, 3)) == "w"


def test_weights_that_are_moved_or_rounded_on_their_way() -> None:
    assert trained("t = Transpose(w) y = MatMul(x, t)", w=(3, 4)) == "w"
    body = "c = Cast<to = 1>(w) r = Reshape(c, s) y = MatMul(x, r)"
    assert trained(body, w=np.ones(12, np.float16), s=[4, 3]) == "w"
    rounded = "q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) y = MatMul(x, d)"
    scale, zero = {"s": np.float32(0.1), "z": np.int8(0)}, np.ones((4, 3), np.int8)
    assert trained(rounded, w=(4, 3), **scale) == "w"
    # integers have no gradient
    assert trained("d = DequantizeLinear(w, s, z) y = MatMul(x, d)", w=zero, **scale) == ""


def test_a_weight_that_is_read_twice_is_named_once() -> None:
    assert trained("h = MatMul(x, w) t = Transpose(w) y = MatMul(h, t)", w=(4, 4)) == "w"


def test_weights_in_constant_nodes() -> None:
    body = "w = Constant<value = float[4, 2] {1, 2, 3, 4, 5, 6, 7, 8}>() y = MatMul(x, w)"
    assert trained(body) == "w"


def test_a_vector_added_to_what_a_layer_gives_is_its_bias() -> None:
    assert trained("h = MatMul(x, w) y = Add(h, b)", w=(4, 3), b=(3,)) == "w b"
    assert trained("h = MatMul(x, w) y = Add(b, h)", w=(4, 3), b=(1, 3)) == "w b"
    body = "h = Conv(x, w) y = Add(h, b)"
    assert trained(body, IMAGES, w=(5, 3, 1, 1), b=(1, 5, 1, 1)) == "w b"


def test_scale_and_shift_of_normalisations() -> None:
    batch = "y = BatchNormalization(x, s, t, m, v)"
    # mean and variance are what was measured, not learnt
    assert trained(batch, "(float[N, 5, 4] x) => (float[] y)", **STATISTICS) == "s t"
    assert trained("y = LayerNormalization(x, s, t)", s=(4,), t=(4,)) == "s t"
    instance = "y = InstanceNormalization(x, s, t)"
    assert trained(instance, IMAGES, s=(3,), t=(3,)) == "s t"


@pytest.mark.parametrize(
    "divided",
    [
        "r = Sqrt(e) n = Div(d, r)",
        "r = Sqrt(e) q = Reciprocal(r) n = Mul(d, q)",
        "r = Sqrt(e) q = Div(unit, r) n = Mul(d, q)",
        "n = Mul(d, p) p = Pow(e, half)",
    ],
)
def test_scale_and_shift_of_a_layer_normalisation_that_is_written_out(divided: str) -> None:
    if "Pow" in divided:
        divided = "p = Pow(e, half) n = Mul(d, p)"
    body = f"""mean = ReduceMean<axes = [-1]>(x) d = Sub(x, mean) dd = Mul(d, d)
        v = ReduceMean<axes = [-1]>(dd) e = Add(v, small) {divided} g = Mul(n, s) y = Add(g, t)"""
    constants = {"small": np.float32(1e-5), "unit": np.float32(1), "half": np.float32(-0.5)}
    assert trained(body, s=(4,), t=(4,), **constants) == "s t"


def test_other_constants_stay_as_they_are() -> None:
    # numbers of a formula
    body = "h = MatMul(x, w) a = Mul(h, c) b = Add(a, d) y = Div(b, e)"
    numbers = {"c": np.float32(2), "d": np.float32(0.5), "e": np.float32(3)}
    assert trained(body, w=(4, 3), **numbers) == "w"
    # where a grid stands, and how wide a step of it is
    body = "h = MatMul(x, w) s = Sigmoid(h) t = Mul(s, two) g = Add(t, grid) y = Mul(g, stride)"
    assert trained(body, w=(4, 6), two=np.float32(2), grid=(6,), stride=(6,)) == "w"
    # boxes by their anchors
    body = "h = MatMul(x, w) o = Div(h, ten) m = Mul(o, widths) y = Add(m, centres)"
    assert trained(body, w=(4, 6), ten=np.float32(10), widths=(6,), centres=(6,)) == "w"
    # means and deviations of inputs
    assert trained("d = Sub(x, m) n = Div(d, s) y = MatMul(n, w)", m=(4,), s=(4,), w=(4, 3)) == "w"
    # a vector that is added to the input
    assert trained("h = Add(x, b) y = MatMul(h, w)", b=(4,), w=(4, 3)) == "w"


def test_what_masks_the_scores_of_attention_is_no_bias() -> None:
    body = "q = MatMul(x, a) k = MatMul(x, b) t = Transpose(k) s = MatMul(q, t) y = Add(s, mask)"
    given = {"a": (4, 4), "b": (4, 4), "mask": (1, 6)}
    assert trained(body, "(float[6, 4] x) => (float[] y)", **given) == "a b"
    scaled = body.replace("y = Add(s", "r = Mul(s, eighth) y = Add(r")
    eighth = {"eighth": np.float32(0.125)}
    assert trained(scaled, "(float[6, 4] x) => (float[] y)", **given, **eighth) == "a b"


def test_tables_of_embeddings_only_when_asked_for() -> None:
    body, signature = "h = Gather(e, x) y = MatMul(h, w)", "(int64[N] x) => (float[] y)"
    assert trained(body, signature, e=(9, 4), w=(4, 3)) == "w"
    assert trained(body, signature, tables=True, e=(9, 4), w=(4, 3)) == "e w"


def test_values_come_back_in_the_type_of_the_file() -> None:
    loaded = model(
        "h = Cast<to = 10>(x) m = MatMul(h, w) y = Cast<to = 1>(m)",
        {"w": np.ones((4, 3), np.float16)},
    )
    values = values_of(loaded, ["w"])
    assert values["w"].dtype == np.float32
    made = with_values(loaded, {"w": values["w"] + np.float32(1 / 3)})
    changed = made.graph.initializers["w"].const_value
    assert changed is not None
    assert changed.dtype == ir.DataType.FLOAT16
    assert np.array_equal(changed.numpy(), np.full((4, 3), np.float16(4 / 3)))
    # the model itself is as it was
    assert np.array_equal(values_of(loaded, ["w"])["w"], np.ones((4, 3)))


def test_values_of_constant_nodes_are_changed_where_they_are() -> None:
    body = "h = MatMul(x, w) b = Constant<value_floats = [1.0, 2.0, 3.0]>() y = Add(h, b)"
    loaded = model(body, weights(w=(4, 3)))
    assert trained(body, **weights(w=(4, 3))) == "w b"
    made = with_values(loaded, {"b": vector(4, 5, 6)})
    (constant,) = [node for node in ir.to_proto(made).graph.node if node.op_type == "Constant"]
    assert constant.output == ["b"]
    (attribute,) = constant.attribute
    found = attribute.floats or onnx.numpy_helper.to_array(attribute.t)
    assert list(found) == [4, 5, 6]
