"""Fused operators, differentiated through what they are made of."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from helpers.differences import check_gradient
from helpers.oracle import ONE_THREAD, parse

from onnxprune.gradients.preparation import expand
from onnxprune.model.execution import open_session, run
from onnxprune.model.load import load
from onnxprune.model.observe import observe

FUSED = "com.microsoft"
BATCH, QUERIES, WIDTH = 2, 3, 4


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def check_fused(body: str, shape: tuple[int, ...], tuned: str = "", **weights: np.ndarray) -> None:
    check_gradient(body, shape, weights, tuned=tuned, domain=FUSED, by_runtime=True)


@pytest.mark.parametrize("call", ["BiasGelu(x, b)", "FastGelu(x, b)", "FastGelu(x)"])
def test_activations(call: str) -> None:
    check_fused(f"y = {FUSED}.{call}", (2, 5), "b" if "b" in call else "", b=weight(5))


@pytest.mark.parametrize("operands", ["x, w", "w, x"])
def test_a_scaled_product(operands: str) -> None:
    given = "transB = 1" if operands == "x, w" else "transA = 1, transB = 1"
    body = f"y = {FUSED}.FusedMatMul<alpha = 0.5, {given}>({operands})"
    given = weight(2, 5, 4) if operands == "x, w" else weight(2, 4, 5)
    check_fused(body, (2, 3, 4), "w", w=given)


def test_a_scaled_product_with_the_weights_of_a_layer() -> None:
    body = f"y = {FUSED}.FusedMatMul<alpha = 0.5, transB = 1>(x, w)"
    check_fused(body, (2, 3, 4), "w", w=weight(5, 4))


def test_gemm_with_its_activation() -> None:
    body = f"""y = {FUSED}.FusedGemm<activation = "Tanh", alpha = 0.5, transB = 1>(x, w, b)"""
    check_fused(body, (3, 4), "w b", w=weight(5, 4), b=weight(5))


@pytest.mark.parametrize(
    "activation", ['"Relu"', '"LeakyRelu", activation_params = [0.2]', '"Tanh"']
)
def test_a_convolution_with_its_activation(activation: str) -> None:
    body = f"y = {FUSED}.FusedConv<activation = {activation}, pads = [1, 1, 1, 1]>(x, w, b)"
    check_fused(body, (2, 3, 4, 4), "w b", w=weight(2, 3, 3, 3), b=weight(2))


def projections() -> dict[str, np.ndarray]:
    return {"w": weight(WIDTH, 3 * WIDTH) / 2, "b": weight(3 * WIDTH)}


@pytest.mark.parametrize(
    ("mask", "given"),
    [("", ""), ("", ", unidirectional = 1"), ("", ", scale = 0.3"), ("lengths", ""), ("kept", "")],
)
def test_attention(mask: str, given: str) -> None:
    masks = {
        "lengths": np.array([2, 3], np.int32),
        "kept": np.array([[1, 0, 1], [1, 1, 1]], np.int32),
    }
    body = f"y = {FUSED}.Attention<num_heads = 2{given}>(x, w, b, {mask})"
    more = {mask: masks[mask]} if mask else {}
    check_fused(body, (BATCH, QUERIES, WIDTH), "w b", **projections(), **more)


def test_attention_of_several_inputs() -> None:
    made = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
    body = f"{made} y = {FUSED}.MultiHeadAttention<num_heads = 2>(q, k, v, b)"
    names = {name: weight(WIDTH, WIDTH) / 2 for name in ("wq", "wk", "wv")}
    tuned = "wq wk wv b"
    check_fused(body, (BATCH, QUERIES, WIDTH), tuned, **names, b=weight(3 * WIDTH))


TABLES = {
    "words": weight(7, WIDTH),
    "places": weight(5, WIDTH)[::-1].copy(),
    "segments": 2 * weight(2, WIDTH),
    "scale": 1 + weight(WIDTH) / 2,
    "shift": weight(WIDTH),
}
WHICH = {
    "ids": np.array([[1, 6, 1], [0, 2, 4]], np.int32),
    "kinds": np.array([[0, 0, 1], [0, 1, 1]], np.int32),
    "at": np.array([[0, 1, 2], [2, 3, 4]], np.int32),
    "mask": np.array([[1, 1, 1], [1, 1, 0]], np.int32),
}


@pytest.mark.parametrize(
    ("call", "tuned"),
    [
        ("(ids, , words, places, , scale, shift)", "words places scale shift"),
        ("(ids, kinds, words, places, segments, scale, shift)", "words segments"),
        ("(ids, kinds, words, places, segments, scale, shift, mask, at)", "words places"),
    ],
)
@pytest.mark.parametrize("outputs", ["n, m", "s, m, n"])
def test_tables_of_embeddings(call: str, tuned: str, outputs: str) -> None:
    if outputs.startswith("s"):
        tuned = tuned.replace("scale", "").replace("shift", "")
    body = f"{outputs} = {FUSED}.EmbedLayerNormalization{call} t = Tanh(n) y = Mul(x, t)"
    check_fused(body, (BATCH, QUERIES, WIDTH), tuned, **TABLES, **WHICH)


@pytest.mark.parametrize("call", ["scale, shift", "scale, shift, mask"])
@pytest.mark.parametrize("opset", [12, 17])
def test_lengths_that_come_with_embeddings(call: str, opset: int) -> None:
    text = f"""<ir_version: 8, opset_import: ["": {opset}, "{FUSED}": 1]>
        g (int32[N, 3] ids) => (float[N, 3, 4] y, int32[N] lengths)
        {{ y, lengths = {FUSED}.EmbedLayerNormalization(ids, , words, places, , {call}) }}"""
    proto = parse(text, {**TABLES, "mask": WHICH["mask"]})
    model = load(proto).model
    feed = {"ids": WHICH["ids"]}
    made = expand(model, observe(model, ONE_THREAD, np.random.default_rng(0), feed).first)
    assert made.owners
    before, after = (
        run(open_session(one, ONE_THREAD), feed) for one in (proto, ir.to_proto(model))
    )
    np.testing.assert_allclose(after["y"], before["y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(after["lengths"], before["lengths"])


def angles(positions: int, half: int) -> dict[str, np.ndarray]:
    turns = np.outer(np.arange(positions), 1 / 3 ** np.arange(half)).astype(np.float32)
    return {"cos": np.cos(turns), "sin": np.sin(turns)}


@pytest.mark.parametrize(
    ("shape", "heads", "half"), [((2, 3, 8), 2, 2), ((2, 2, 3, 4), 0, 2), ((2, 3, 8), 2, 1)]
)
@pytest.mark.parametrize("first", [[0], [[0, 1, 2], [3, 2, 1]]])
def test_positions_as_angles(
    shape: tuple[int, ...], heads: int, half: int, first: list[int]
) -> None:
    given = f"num_heads = {heads}, rotary_embedding_dim = {2 * half if heads else 0}"
    body = f"y = {FUSED}.RotaryEmbedding<{given}>(x, places, cos, sin)"
    check_fused(body, shape, places=np.array(first, np.int64), **angles(5, half))


def test_weights_behind_which_entries_are_turned() -> None:
    body = f"""p = MatMul(x, w)
        y = {FUSED}.RotaryEmbedding<num_heads = 2, rotary_embedding_dim = 4>(p, k, cos, sin)"""
    given = {"w": weight(3, 8), "k": np.array([0], np.int64)}
    check_fused(body, (2, 3, 3), "w", **given, **angles(5, 2))


@pytest.mark.parametrize("rotary", [0, 1])
def test_attention_of_heads_that_share_keys(rotary: int) -> None:
    width = 16  # onnxruntime turns heads of a multiple of 16 entries
    given = f"num_heads = 4, kv_num_heads = 2, do_rotary = {rotary}"
    made = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
    body = f"""{made} o, pk, pv = {FUSED}.GroupQueryAttention<{given}>(
        q, k, v, , , lengths, total{", cos, sin" if rotary else ""})
        s = ReduceSum(pk) t = Tanh(s) y = Mul(o, t)"""
    names = {"wq": weight(WIDTH, 4 * width), "wk": weight(WIDTH, 2 * width)}
    names |= {"wv": weight(WIDTH, 2 * width), "total": np.array([QUERIES], np.int32)}
    names |= {"lengths": np.full(BATCH, QUERIES - 1, np.int32), **angles(5, width // 2)}
    names = {key: one / 4 if key.startswith("w") else one for key, one in names.items()}
    check_fused(body, (BATCH, QUERIES, WIDTH), "wq wk wv", **names)


@pytest.mark.parametrize("given", ["", ", is_causal = 1"])
def test_attention_of_the_standard(given: str) -> None:
    body = f"""q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        y = Attention<q_num_heads = 2, kv_num_heads = 1{given}>(q, k, v)"""
    weights = {"wq": weight(WIDTH, WIDTH), "wk": weight(WIDTH, 2), "wv": weight(WIDTH, 2)}
    shape, tuned = (BATCH, QUERIES, WIDTH), "wq wk wv"
    check_gradient(body, shape, weights, tuned=tuned, opset=23, by_runtime=True)


@pytest.mark.parametrize(
    "call",
    [
        *("Celu<alpha = 0.5>(x)", "ReduceL1(x)", "ReduceSumSquare(x)", "ReduceLogSumExp(x)"),
        "Shrink<lambd = 0.4, bias = 0.2>(x)",
    ],
)
def test_bodies_of_the_standard(call: str) -> None:
    check_gradient(f"y = {call}", (2, 5), by_runtime=True)


@pytest.mark.parametrize("size", [3, 5])
def test_response_of_neighbouring_channels(size: int) -> None:
    given = f"size = {size}, alpha = 0.5, beta = 0.6, bias = 2.0"
    check_gradient(f"y = LRN<{given}>(x)", (2, 5, 2, 3), by_runtime=True)


@pytest.mark.parametrize("opset", [17, 18])
def test_unit_length(opset: int) -> None:
    check_gradient("y = LpNormalization<axis = 1>(x)", (2, 5), opset=opset, by_runtime=True)


def test_a_form_without_a_body_says_what_was_expected() -> None:
    text = f"""<ir_version: 8, opset_import: ["": 17, "{FUSED}": 1]>
        g (float[2, 3, 4] x) => (float[2, 3, 4] y, float[2, 2, 2, 3, 2] p)
        {{ y, p = {FUSED}.Attention<num_heads = 2>(x, w, b) }}"""
    model = load(parse(text, projections())).model
    made = expand(model, observe(model, ONE_THREAD, np.random.default_rng(0)).first)
    assert made.owners == {}
    assert made.whole == {"y": "expected keys and values that nothing reads"}


def test_an_expanded_network_computes_the_same_under_the_same_names() -> None:
    text = f"""<ir_version: 8, opset_import: ["": 17, "{FUSED}": 1]>
        g (float[N, 3, 4] x) => (float[N, 3, 4] y)
        {{ a = {FUSED}.Attention<num_heads = 2>(x, w, b) y = {FUSED}.BiasGelu(a, c) }}"""
    proto = parse(text, {**projections(), "c": weight(WIDTH)})
    model = load(proto).model
    feed = {"x": weight(BATCH, QUERIES, WIDTH)}
    made = expand(model, observe(model, ONE_THREAD, np.random.default_rng(0), feed).first)
    assert set(made.owners.values()) == {"a", "y"}
    before, after = (
        run(open_session(one, ONE_THREAD), feed)["y"] for one in (proto, ir.to_proto(model))
    )
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


def test_a_body_that_loops_is_left_alone() -> None:
    """Anchors of a detector are a Range of floats; nothing is differentiated there."""
    values = {"z": np.array(0, np.float32), "n": np.array(5, np.float32)}
    values["one"] = np.array(1, np.float32)
    check_gradient("r = Range(z, n, one) y = Mul(x, r)", (2, 5), values)
