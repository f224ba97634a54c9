"""Sizes in attributes follow the cut, and only then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import Traced, parse, traced
from helpers.quantised import scales, whole

import onnxprune

Shape = tuple[int, ...]


def network(
    body: str,
    shapes: Mapping[str, Shape],
    x: str = "N, 4, 5",
    y: str = "N, 3, 5",
    opset: int = 23,
    **values: Any,
) -> Traced:
    rng = np.random.default_rng(1)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    text = (
        f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]> '
        f"net (float[{x}] x) => (float[{y}] y) {{ {body} }}"
    )
    return traced(parse(text, weights | {name: np.asarray(v) for name, v in values.items()}))


def attributes(proto: onnx.ModelProto, op: str) -> dict[str, Any]:
    node = next(node for node in proto.graph.node if node.op_type == op)
    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


def after(subject: Traced, op: str, tensor: str, axis: int, gone: list[int]) -> dict[str, Any]:
    """Attributes of the op once some entries of a weight's axis, and all that depends, are gone."""
    classes = subject.units(tensor, axis)
    dead = subject.closed([int(classes[i]) for i in gone])
    onnx.checker.check_model(sliced := subject.sliced(dead))
    return attributes(sliced, op)


GROUPS = {"a": (8, 4, 1), "k": (12, 2, 1), "b": (3, 12, 1)}


@pytest.mark.parametrize(("gone", "group"), [([0, 1], 3), ([0, 2, 4, 6], 4), ([], 4)])
def test_a_convolution_loses_whole_groups_or_channels_of_each(gone: list[int], group: int) -> None:
    subject = network("h = Conv(x, a) d = Conv<group=4>(h, k) y = Conv(d, b)", GROUPS)
    convolution = subject.sliced(subject.closed([int(subject.units("a", 0)[i]) for i in gone]))
    assert attributes(convolution, "Conv") == {}
    grouped = convolution.graph.node[1]
    assert onnx.helper.get_attribute_value(grouped.attribute[0]) == group


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "com.microsoft.FusedConv"])
def test_a_depthwise_convolution_has_as_many_groups_as_channels(op: str) -> None:
    shapes = {"a": (8, 4, 1, 1), "k": (8, 1, 1, 1), "b": (3, 8, 1, 1)}
    body = f"h = Conv(x, a) d = {op}<group=8>(h, k) y = Conv(d, b)"
    subject = network(body, shapes, "N, 4, 5, 5", "N, 3, 5, 5")
    classes = subject.units("a", 0)
    sliced = subject.sliced(subject.closed([int(classes[0]), int(classes[5])]))
    assert onnx.helper.get_attribute_value(sliced.graph.node[1].attribute[0]) == 6


def test_a_transposed_convolution_counts_its_groups_by_the_output() -> None:
    shapes = {"a": (8, 4, 1), "k": (8, 2, 1), "b": (3, 4, 1)}
    body = "h = Conv(x, a) d = ConvTranspose<group=2>(h, k) y = Conv(d, b)"
    assert after(network(body, shapes), "ConvTranspose", "a", 0, [4, 5, 6, 7])["group"] == 1
    assert after(network(body, shapes), "ConvTranspose", "a", 0, [1, 6])["group"] == 2


def test_an_integer_convolution_counts_its_groups_by_its_own_weight() -> None:
    subject = network(
        "q = QuantizeLinear(x, s, z) h = QLinearConv(q, s, z, a, s, i, s, z) "
        "d = QLinearConv<group=8>(h, s, z, k, s, i, s, z) f = DequantizeLinear(d, s, z) "
        "y = Conv(f, b)",
        {"b": (3, 8, 1, 1)},
        "N, 4, 5, 5",
        "N, 3, 5, 5",
        17,
        a=whole(8, 4, 1, 1),
        k=whole(8, 1, 1, 1),
        s=np.float32(0.05),
        z=np.uint8(128),
        i=np.int8(0),
    )
    sliced = subject.sliced(subject.closed([int(subject.units("a", 0)[3])]))
    assert onnx.helper.get_attribute_value(sliced.graph.node[2].attribute[0]) == 7


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_the_hidden_size_is_what_every_direction_keeps(op: str, gates: int) -> None:
    subject = network(
        f'd = {op}<hidden_size=6, direction="bidirectional">(x, w, r) '
        "t = Transpose<perm=[0, 2, 1, 3]>(d) u = Reshape(t, k) y = MatMul(u, b)",
        {"w": (2, gates * 6, 4), "r": (2, gates * 6, 6), "b": (12, 3)},
        "5, N, 4",
        "5, N, 3",
        k=np.array([0, 0, -1]),
    )
    forward = subject.units("b", 0)
    sliced = subject.sliced(subject.closed([int(forward[1]), int(forward[4])]))
    assert attributes(sliced, op)["hidden_size"] == 4
    assert attributes(subject.sliced([]), op)["hidden_size"] == 6


HEADS = {"wq": (4, 16), "wk": (4, 8), "wv": (4, 8), "b": (16, 3)}
QKV = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
TOKENS = {"x": "N, 5, 4", "y": "N, 5, 3"}
PLAIN_SCALE = pytest.approx(0.5)
"""1/sqrt(4), the scale of heads of four dims."""


def attention(more: str = "") -> Traced:
    """Four query heads of four dims on two key/value heads."""
    node = f"t = Attention<q_num_heads=4, kv_num_heads=2{more}>(q, k, v)"
    return network(f"{QKV} {node} y = MatMul(t, b)", HEADS, **TOKENS)


def test_a_key_head_takes_its_query_heads_along_and_the_scale_stays_implied() -> None:
    found = after(attention(), "Attention", "wk", 1, [0, 1, 2, 3])
    assert found == {"q_num_heads": 2, "kv_num_heads": 1}


def test_narrower_heads_keep_the_scale_of_the_original_size() -> None:
    found = after(attention(), "Attention", "wk", 1, [0, 5])
    assert found == {"q_num_heads": 4, "kv_num_heads": 2, "scale": PLAIN_SCALE}


def test_a_given_scale_is_kept() -> None:
    found = after(attention(", scale=0.25"), "Attention", "wk", 1, [0, 5])
    assert found == {"q_num_heads": 4, "kv_num_heads": 2, "scale": 0.25}


def test_value_dims_say_nothing_about_the_scale() -> None:
    assert "scale" not in after(attention(), "Attention", "wv", 1, [0, 5])


def test_heads_on_an_axis_of_their_own_need_no_count() -> None:
    apart = " ".join(
        f"{n}r = Reshape({n}, s) {n}h = Transpose<perm=[0, 2, 1, 3]>({n}r)" for n in "qkv"
    )
    subject = network(
        f"{QKV} {apart} u = Attention(qh, kh, vh) t4 = Transpose<perm=[0, 2, 1, 3]>(u) "
        "t = Reshape(t4, z) y = MatMul(t, b)",
        {"wq": (4, 12), "wk": (4, 12), "wv": (4, 12), "b": (12, 3)},
        **TOKENS,
        s=np.array([0, 5, 3, 4]),
        z=np.array([0, 5, 12]),
    )
    assert after(subject, "Attention", "wk", 1, [0, 1, 2, 3]) == {}
    assert after(subject, "Attention", "wk", 1, [0, 4, 8]) == {"scale": PLAIN_SCALE}


def test_fused_attention_counts_the_heads_it_keeps() -> None:
    separate = network(
        f"{QKV} t = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v) y = MatMul(t, b)",
        HEADS | {"wq": (4, 8), "b": (8, 3)},
        **TOKENS,
    )
    assert after(separate, "MultiHeadAttention", "wk", 1, [4, 5, 6, 7]) == {"num_heads": 1}
    narrow = after(separate, "MultiHeadAttention", "wk", 1, [0, 7])
    assert narrow == {"num_heads": 2, "scale": PLAIN_SCALE}
    packed = network(
        "t = com.microsoft.Attention<num_heads=2>(x, w, c) y = MatMul(t, b)",
        {"w": (4, 24), "c": (24,), "b": (8, 3)},
        **TOKENS,
    )
    assert after(packed, "Attention", "b", 0, [0, 1, 2, 3]) == {"num_heads": 1}
    assert after(packed, "Attention", "b", 0, [0, 7]) == {"num_heads": 2, "scale": PLAIN_SCALE}


def test_fused_attention_of_unequal_widths_knows_them_all() -> None:
    """Two heads of four dims, six of the values: queries and keys shrink apart from the values."""
    subject = network(
        "t = com.microsoft.Attention<num_heads=2, qkv_hidden_sizes=[8, 8, 12]>(x, w, c) "
        "y = MatMul(t, b)",
        {"w": (4, 28), "c": (28,), "b": (12, 3)},
        **TOKENS,
    )
    assert after(subject, "Attention", "w", 1, [0, 5]) == {
        "num_heads": 2,
        "qkv_hidden_sizes": [6, 6, 12],
        "scale": PLAIN_SCALE,
    }
    values = after(subject, "Attention", "b", 0, [0, 1, 7, 10])
    assert values == {"num_heads": 2, "qkv_hidden_sizes": [8, 8, 8]}
    head = after(subject, "Attention", "w", 1, [0, 1, 2, 3])
    assert head == {"num_heads": 1, "qkv_hidden_sizes": [4, 4, 6]}


def test_grouped_queries_go_with_their_key_and_value_head() -> None:
    subject = grouped_queries()
    found = after(subject, "GroupQueryAttention", "wk", 1, [9])
    assert found == {"num_heads": 4, "kv_num_heads": 2}
    assert subject.groups[0].size == 3


def grouped_queries() -> Traced:
    """Six query heads of eight dims on three key/value heads, without a cache."""
    return network(
        f"{QKV} n = Shape<start=0, end=1>(x) last = Expand(four, n) "
        "t = com.microsoft.GroupQueryAttention<num_heads=6, kv_num_heads=3>"
        "(q, k, v, , , last, five) y = MatMul(t, b)",
        {"wq": (4, 48), "wk": (4, 24), "wv": (4, 24), "b": (48, 3)},
        **TOKENS,
        four=np.array([4], np.int32),
        five=np.array(5, np.int32),
    )


def test_grouped_queries_are_pruned_with_a_certificate() -> None:
    result = onnxprune.prune(
        grouped_queries().proto, target={"channels": 0.5}, criterion="l2", compensate="none"
    )
    assert result.report.certificate.error < 1e-5
    assert attributes(result.model, "GroupQueryAttention")["kv_num_heads"] == 2


@pytest.mark.parametrize(
    ("gone", "heads", "turned"), [(range(8), 1, 4), ([0, 8], 2, 2), ([4, 12], 2, 4), ([], 2, 4)]
)
def test_a_rotary_embedding_knows_its_heads_and_how_many_dims_turn(
    gone: list[int], heads: int, turned: int
) -> None:
    """Two heads of eight dims, of which four turn: 0 with 2 and 1 with 3."""
    subject = network(
        "q = MatMul(x, a) shape = Shape<start=0, end=2>(x) ids = Expand(at, shape) "
        "t = RotaryEmbedding<num_heads=2, rotary_embedding_dim=4>(q, cos, sin, ids) "
        "y = MatMul(t, b)",
        {"a": (4, 16), "b": (16, 3), "cos": (5, 2), "sin": (5, 2)},
        **TOKENS,
        at=np.arange(5)[None],
    )
    found = after(subject, "RotaryEmbedding", "a", 1, list(gone))
    assert found == {"num_heads": heads, "rotary_embedding_dim": turned}


def test_group_normalization_keeps_groups_of_the_same_size() -> None:
    subject = network(
        "h = Conv(x, a) t = GroupNormalization<num_groups=4>(h, g, c) y = Conv(t, b)",
        {"a": (8, 4, 1), "b": (3, 8, 1), "g": (8,), "c": (8,)},
    )
    assert after(subject, "GroupNormalization", "a", 0, [0])["num_groups"] == 3


def test_a_packed_matrix_names_its_rows() -> None:
    subject = network(
        "t = com.microsoft.MatMulNBits<K=16, N=8, bits=4, block_size=16>(x, k, s) y = MatMul(t, b)",
        {"b": (8, 3)},
        "N, 16",
        "N, 3",
        k=whole(8, 1, 8, dtype=np.uint8),
        s=scales(8),
    )
    assert after(subject, "MatMulNBits", "b", 0, [0, 3])["N"] == 6
