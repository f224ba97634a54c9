"""What exporters and optimisers make of an embedding and an output layer."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from helpers.oracle import outputs
from helpers.quantised import whole
from helpers.reducing import Weights, changed, declared, graph, shapes, weights
from numpy.typing import NDArray

from onnxprune.errors import InputError, NothingPrunable
from onnxprune.passes.keep_tokens import KeepTokens

KEPT = [0, 2, 3, 7, 11]
OLD = np.array([[2, 11, 0], [7, 7, 3]])
NEW = np.array([[1, 4, 0], [3, 3, 2]])


def model(
    body: str, values: Weights, out: str = "float[N, T, 4] y", kind: str = "int64"
) -> onnx.ModelProto:
    """Token ids [N, T] and what is made of them."""
    return graph(f"({kind}[N, T] ids) => ({out})", body, values)


def ran(
    proto: onnx.ModelProto, ids: NDArray[np.generic], kind: str = "int64"
) -> NDArray[np.generic]:
    return outputs(proto, {"ids": ids.astype(kind)})["y"]


def embedded(values: Weights) -> onnx.ModelProto:
    """onnxruntime's fused embedding: tokens, positions, kinds, normalised."""
    node = """y, mask = com.microsoft.EmbedLayerNormalization
              (ids, kinds, words, places, sorts, gamma, beta)"""
    signature = "(int32[N, T] ids, int32[N, T] kinds) => (float[N, T, 4] y)"
    return graph(signature, node, values)


@pytest.mark.parametrize("vocabulary", [None, 6])
def test_fused_embedding(vocabulary: int | None) -> None:
    values = weights(words=(12, 4), places=(9, 4), sorts=(6, 4), gamma=(4,), beta=(4,))
    proto = embedded(values)
    kept = [0, 2, 5]
    result = changed(KeepTokens(kept, vocabulary=vocabulary), proto)
    assert shapes(result)["words"] == (3 if vocabulary is None else 12, 4)
    assert shapes(result)["sorts"] == (6 if vocabulary is None else 3, 4)
    new = {"ids": np.array([[0, 2, 1]], np.int32), "kinds": np.array([[1, 2, 0]], np.int32)}
    changing = "ids" if vocabulary is None else "kinds"
    old = new | {changing: np.array(kept, np.int32)[new[changing]]}
    np.testing.assert_array_equal(outputs(result, new)["y"], outputs(proto, old)["y"])


def test_fused_embedding_goes_on_taking_old_ids() -> None:
    values = weights(words=(12, 4), places=(9, 4), sorts=(6, 4), gamma=(4,), beta=(4,))
    proto = embedded(values)
    result = changed(KeepTokens(KEPT, remap=True, unknown=3), proto)
    given = {"ids": np.array([[11, 4, 2]], np.int32), "kinds": np.zeros((1, 3), np.int32)}
    meant = given | {"ids": np.array([[11, 3, 2]], np.int32)}
    np.testing.assert_array_equal(outputs(result, given)["y"], outputs(proto, meant)["y"])


def test_fused_normalisation_and_gelu_between_embedding_and_output() -> None:
    body = """e = Gather (table, ids) h = MatMul (e, inner)
              n = com.microsoft.SkipLayerNormalization (h, e, gamma, beta)
              g = com.microsoft.FastGelu (n, beta)
              y = com.microsoft.FusedMatMul <transB = 1> (g, table)"""
    values = weights(table=(12, 4), inner=(4, 4), gamma=(4,), beta=(4,))
    proto = model(body, values, "float[N, T, 12] y")
    result = changed(KeepTokens(KEPT), proto)
    assert shapes(result)["table"] == (5, 4)
    np.testing.assert_allclose(ran(result, NEW), ran(proto, OLD)[..., KEPT], rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_output_layer_is_a_gemm(tied: bool) -> None:
    head = "table" if tied else "untied"
    body = f"""e = Gather (table, ids) f = Reshape (e, rows) z = Gemm <transB = 1> (f, {head}, bias)
               y = Reshape (z, whole)"""
    values = {
        **weights(table=(12, 4), untied=(12, 4), bias=(12,)),
        "rows": np.array([-1, 4], np.int64),
        "whole": np.array([-1, 3, 12], np.int64),
    }
    if tied:
        del values["untied"]
    proto = graph("(int64[N, 3] ids) => (float[N, 3, 12] y)", body, values)
    result = changed(KeepTokens(KEPT), proto)
    assert shapes(result)[head] == (5, 4)
    assert declared(result) == {"y": ["N", 3, 5]}
    np.testing.assert_allclose(ran(result, NEW), ran(proto, OLD)[..., KEPT], rtol=1e-5)


@pytest.mark.parametrize("per_row", [True, False])
def test_quantised_table_in_front_of_the_lookup(per_row: bool) -> None:
    axis = "<axis = 0>" if per_row else ""
    body = f"""table = DequantizeLinear {axis} (bytes, scale, zero) e = Gather (table, ids)
               u = Transpose <perm = [1, 0]> (table) y = MatMul (e, u)"""
    count = (12,) if per_row else ()
    values = {
        "bytes": whole(12, 4),
        "scale": np.asarray(np.linspace(0.01, 0.02, 12)[: 12 if per_row else 1], np.float32),
        "zero": np.full(count, 3, np.int8),
    }
    values["scale"] = values["scale"].reshape(count)
    proto = model(body, values, "float[N, T, 12] y")
    result = changed(KeepTokens(KEPT), proto)
    assert shapes(result)["bytes"] == (5, 4)
    assert shapes(result)["scale"] == ((5,) if per_row else ())
    np.testing.assert_allclose(ran(result, NEW), ran(proto, OLD)[..., KEPT], rtol=1e-6)


def test_quantised_table_behind_the_lookup_and_in_front_of_the_output() -> None:
    body = """q = Gather (bytes, ids) e = DequantizeLinear (q, scale, zero)
              table = DequantizeLinear (bytes, scale, zero) u = Transpose <perm = [1, 0]> (table)
              y = MatMul (e, u)"""
    values = {
        "bytes": whole(12, 4),
        "scale": np.array(0.02, np.float32),
        "zero": np.array(3, np.int8),
    }
    proto = model(body, values, "float[N, T, 12] y")
    result = changed(KeepTokens(KEPT), proto)
    assert shapes(result)["bytes"] == (5, 4)
    np.testing.assert_allclose(ran(result, NEW), ran(proto, OLD)[..., KEPT], rtol=1e-6)


def test_half_precision() -> None:
    body = "e = Gather (table, ids) z = MatMul (e, w) y = Softmax (z)"
    values = {
        name: array.astype(np.float16) for name, array in weights(table=(12, 4), w=(4, 12)).items()
    }
    proto = model(body, values, "float16[N, T, 12] y")
    result = changed(KeepTokens(KEPT), proto)
    part = ran(proto, OLD)[..., KEPT].astype(np.float64)
    wanted = part / part.sum(axis=-1, keepdims=True)
    half_ulps = 4 * float(np.finfo(np.float16).eps)
    np.testing.assert_allclose(ran(result, NEW), wanted, rtol=half_ulps, atol=1e-4)


def test_rows_in_front_of_the_first_token_stay() -> None:
    """The rows 0 and 1 are the model's own: ids are looked up two rows further on."""
    body = """two = Constant <value_int = 2> () i = Add (ids, two) e = Gather (table, i)
              u = Transpose <perm = [1, 0]> (table) y = MatMul (e, u)"""
    proto = model(body, weights(table=(14, 4)), "float[N, T, 14] y")
    result = changed(KeepTokens(KEPT), proto)
    assert shapes(result)["table"] == (7, 4)
    wanted = ran(proto, OLD)[..., [0, 1, *(one + 2 for one in KEPT)]]
    np.testing.assert_allclose(ran(result, NEW), wanted, rtol=1e-6)
    remapped = changed(KeepTokens(KEPT, remap=True, unknown=0), proto)
    np.testing.assert_allclose(ran(remapped, OLD), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "count_from_the_end",
    [
        "b = Less (ids, none) i = Where (b, a, ids)",
        """f = Cast <to = 1> (ids) z = Cast <to = 1> (none) b = Less (f, z) n = Not (b)
           p = Cast <to = 7> (b) q = Cast <to = 7> (n) l = Mul (p, a) r = Mul (ids, q)
           i = Add (l, r)""",
    ],
)
def test_ids_below_zero_go_on_counting_from_the_end(count_from_the_end: str) -> None:
    """As Keras writes it, and as tf2onnx writes that."""
    values = {
        **weights(table=(12, 4), inner=(4, 4)),
        "none": np.array(0, np.int64),
        "size": np.array(12, np.int64),
    }
    body = f"a = Add (ids, size) {count_from_the_end} e = Gather (table, i) y = MatMul (e, inner)"
    proto = model(body, values)
    result = changed(KeepTokens(KEPT), proto)
    assert shapes(result)["table"] == (5, 4)
    np.testing.assert_array_equal(ran(result, NEW), ran(proto, OLD))
    last = np.array([[-1, -2]])
    np.testing.assert_array_equal(ran(result, last), ran(proto, np.array([[11, 7]])))


@pytest.mark.parametrize("op", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
@pytest.mark.parametrize("number_first", [False, True])
@pytest.mark.parametrize("number", [-100, -1, 0, 2, 5, 11, 50])
def test_comparisons_come_out_as_before(op: str, number_first: bool, number: int) -> None:
    operands = "number, ids" if number_first else "ids, number"
    body = f"""e = Gather (table, ids) c = {op} ({operands}) f = Cast <to = 1> (c)
               w = Unsqueeze (f, last) y = Mul (e, w)"""
    values = {
        **weights(table=(12, 4)),
        "number": np.array(number, np.int64),
        "last": np.array([2], np.int64),
    }
    proto = model(body, values)
    np.testing.assert_array_equal(ran(changed(KeepTokens(KEPT), proto), NEW), ran(proto, OLD))


def test_special_tokens_are_compared_with_all_at_once() -> None:
    body = """e = Gather (table, ids) u = Unsqueeze (ids, last) c = Equal (u, special)
              f = Cast <to = 1> (c) s = ReduceMax <axes = [2]> (f) y = Mul (e, s)"""
    special = np.array([0, 5, 7], np.int64)
    values = {**weights(table=(12, 4)), "special": special, "last": np.array([2], np.int64)}
    proto = model(body, values)
    np.testing.assert_array_equal(ran(changed(KeepTokens(KEPT), proto), NEW), ran(proto, OLD))


@pytest.mark.parametrize("remap", [False, True])
def test_highest_id_marks_the_end(remap: bool) -> None:
    """As CLIP has it: new ids are in the order of the old ones."""
    body = """e = Gather (table, ids) a = ArgMax <axis = 1> (ids) u = Unsqueeze (a, last)
              i = Expand (u, wide) y = GatherElements <axis = 1> (e, i)"""
    values = {
        **weights(table=(12, 4)),
        "last": np.array([2], np.int64),
        "wide": np.array([1, 1, 4], np.int64),
    }
    proto = model(body, values, "float[N, 1, 4] y")
    result = changed(KeepTokens(KEPT, remap=remap, unknown=0), proto)
    np.testing.assert_array_equal(ran(result, OLD if remap else NEW), ran(proto, OLD))


def test_tables_worked_out_from_constants() -> None:
    """A table that is scaled or joined, and one with a single number for each token."""
    body = """s = Mul (table, scale) j = Concat <axis = 0> (s, added)
              e = Gather <axis = -2> (j, ids) b = Gather (weight, ids)
              w = Unsqueeze (b, last) y = Mul (e, w)"""
    values = {
        **weights(table=(8, 4), added=(4, 4), weight=(12,)),
        "scale": np.array([2], np.float32),
        "last": np.array([2], np.int64),
    }
    proto = model(body, values)
    result = changed(KeepTokens(KEPT), proto)
    sizes = shapes(result)
    assert (sizes["table"], sizes["added"], sizes["weight"]) == ((4, 4), (1, 4), (5,))
    np.testing.assert_array_equal(ran(result, NEW), ran(proto, OLD))


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        ("gone = Equal (ids, label) i = Where (gone, none, ids)", "lookup in 'table'"),
        ("i = Clip (ids, none, most)", "lookup in 'table'"),
        ("i = Identity (ids) z = Mul (ids, ids)", "Mul z"),
    ],
)
def test_ids_with_a_meaning_of_their_own_need_remap(work: str, reason: str) -> None:
    values = {
        **weights(table=(12, 4), inner=(4, 4)),
        "label": np.array(-100, np.int64),
        "none": np.array(0, np.int64),
        "most": np.array(11, np.int64),
    }
    used = {name: array for name, array in values.items() if name in f"{work} table inner"}
    out = "float[N, T, 4] y" + (", int64[N, T] z" if "z =" in work else "")
    proto = model(f"{work} e = Gather (table, i) y = MatMul (e, inner)", used, out)
    with pytest.raises(NothingPrunable, match=f"{reason}.*use remap"):
        changed(KeepTokens(KEPT), proto)
    result = changed(KeepTokens(KEPT, remap=True, unknown=0), proto)
    np.testing.assert_array_equal(ran(result, OLD), ran(proto, OLD))


def test_ids_that_are_returned_need_remap() -> None:
    body = "again = Identity (ids) e = Gather (table, ids) y = Identity (e)"
    proto = model(body, weights(table=(12, 4)), "float[N, T, 4] y, int64[N, T] again")
    with pytest.raises(NothingPrunable, match=r"output 'again'.*use remap"):
        changed(KeepTokens(KEPT), proto)


def test_second_table_of_other_size_needs_remap() -> None:
    body = "e = Gather (table, ids) f = Gather (few, ids) y = Add (e, f)"
    proto = model(body, weights(table=(12, 4), few=(10, 4)))
    with pytest.raises(NothingPrunable, match=r"'few' \(10 rows\).*use remap"):
        changed(KeepTokens(KEPT), proto)


def test_outputs_that_are_not_named_stay_whole() -> None:
    body = "e = Gather (table, ids) y = MatMul (e, w) z = MatMul (e, v)"
    out = "float[N, T, 12] y, float[N, T, 12] z"
    proto = model(body, weights(table=(12, 4), w=(4, 12), v=(4, 12)), out)
    result = changed(KeepTokens(KEPT, outputs=["y"]), proto)
    assert declared(result) == {"y": ["N", "T", 5], "z": ["N", "T", 12]}


def test_named_output_without_a_token_axis() -> None:
    body = "e = Gather (table, ids) y = MatMul (e, w)"
    proto = model(body, weights(table=(12, 4), w=(4, 11)), "float[N, T, 11] y")
    with pytest.raises(InputError, match=r"'y' has no axis with 12 entries; its shape is \(2, "):
        changed(KeepTokens(KEPT, outputs=["y"]), proto)


def test_ids_beside_the_vocabulary_stay_what_they_are() -> None:
    pass_ = KeepTokens(KEPT)
    changed(pass_, model("e = Gather (table, ids) y = Identity (e)", weights(table=(12, 4))))
    assert pass_.convert({"ids": np.array([[-100, 7, 2]])})["ids"].tolist() == [[-100, 3, 1]]


def test_map_is_offered_for_a_file_beside_the_model() -> None:
    proto = model("e = Gather (table, ids) y = Identity (e)", weights(table=(12, 4)))
    pass_ = KeepTokens(KEPT)
    changed(pass_, proto)
    assert {suffix: json.loads(text) for suffix, text in pass_.files.items()} == {
        ".tokens.json": KEPT
    }
