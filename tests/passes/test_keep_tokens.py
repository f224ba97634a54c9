"""Tokens that are not needed leave embedding and output layer; the others give what they gave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.oracle import outputs
from helpers.quantised import whole
from helpers.reducing import Weights, changed, declared, graph, metadata, shapes, weights
from numpy.typing import NDArray

from onnxprune.api import run_pipeline
from onnxprune.errors import CalibrationError, InputError, NothingPrunable
from onnxprune.passes.keep_tokens import KEPT_TOKENS, KeepTokens

KEPT = [0, 2, 3, 7, 11]
OLD = np.array([[2, 11, 0], [7, 7, 3]])
NEW = np.array([[1, 4, 0], [3, 3, 2]])
EMBED = "e = Gather (table, ids)"
TABLES = weights(table=(12, 4), w=(4, 12), inner=(4, 4))


def language_model(
    body: str, values: Weights | None = None, *, out: str = "float[N, T, 12] y", kind: str = "int64"
) -> onnx.ModelProto:
    """Twelve tokens with four features each."""
    return graph(f"({kind}[N, T] ids) => ({out})", body, {**TABLES, **(values or {})})


def ran(
    proto: onnx.ModelProto, ids: NDArray[np.generic], kind: str = "int64"
) -> NDArray[np.generic]:
    return outputs(proto, {"ids": ids.astype(kind)})["y"]


@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_embedding_and_untied_output_rows_go(kind: str) -> None:
    proto = language_model(f"{EMBED} h = MatMul (e, inner) y = MatMul (h, w)", kind=kind)
    result = changed(KeepTokens(KEPT), proto)
    assert shapes(result) == {"table": (5, 4), "w": (4, 5), "inner": (4, 4)}
    assert declared(result) == {"y": ["N", "T", 5]}
    np.testing.assert_allclose(ran(result, NEW, kind), ran(proto, OLD, kind)[..., KEPT], rtol=1e-6)


def test_tied_output_rows_go_with_the_embedding() -> None:
    body = f"{EMBED} h = MatMul (e, inner) u = Transpose <perm = [1, 0]> (table) y = MatMul (h, u)"
    proto = language_model(body)
    result = changed(KeepTokens(KEPT), proto)
    assert shapes(result)["table"] == (5, 4)
    np.testing.assert_allclose(ran(result, NEW), ran(proto, OLD)[..., KEPT], rtol=1e-6)


def test_encoder_without_logits() -> None:
    proto = language_model(f"{EMBED} y = MatMul (e, inner)", out="float[N, T, 4] y")
    result = changed(KeepTokens(KEPT), proto)
    np.testing.assert_array_equal(ran(result, NEW), ran(proto, OLD))


def test_next_token_is_named_by_its_old_id() -> None:
    tail = "z = MatMul (e, w) y = ArgMax <axis = 2, keepdims = 0> (z) l = Identity (z)"
    proto = language_model(f"{EMBED} {tail}", out="int64[N, T] y, float[N, T, 12] l")
    result = changed(KeepTokens(KEPT), proto)
    best = outputs(proto, {"ids": OLD})["l"][..., KEPT].argmax(axis=-1)
    np.testing.assert_array_equal(ran(result, NEW), np.array(KEPT)[best])


def test_remap_takes_old_ids_and_replaces_those_gone() -> None:
    proto = language_model(f"{EMBED} y = MatMul (e, inner)", out="float[N, T, 4] y")
    result = changed(KeepTokens(KEPT, remap=True, unknown=3), proto)
    assert shapes(result)["table"] == (5, 4)
    np.testing.assert_array_equal(ran(result, OLD), ran(proto, OLD))
    gone, stand_in = np.array([[1, 2, 10]]), np.array([[3, 2, 3]])
    np.testing.assert_array_equal(ran(result, gone), ran(proto, stand_in))


@pytest.mark.parametrize("padding", [7, 5])
def test_comparison_with_padding_is_renumbered(padding: int) -> None:
    body = f"""{EMBED} pad = Equal (ids, p) real = Not (pad) m = Cast <to = 1> (real)
               wide = Unsqueeze (m, last) y = Mul (e, wide)"""
    values = {"p": np.array(padding, np.int64), "last": np.array([2], np.int64)}
    proto = language_model(body, values, out="float[N, T, 4] y")
    result = changed(KeepTokens(KEPT), proto)
    np.testing.assert_array_equal(ran(result, NEW), ran(proto, OLD))
    assert (ran(result, NEW) == 0).any() == (padding in OLD)


def test_arithmetic_on_ids_needs_remap() -> None:
    """Positions are counted from ids here; they have to stay what they are."""
    body = f"{EMBED} c = Cast <to = 1> (ids) s = Unsqueeze (c, last) y = Mul (e, s)"
    proto = language_model(body, {"last": np.array([2], np.int64)}, out="float[N, T, 4] y")
    with pytest.raises(NothingPrunable, match="use remap"):
        changed(KeepTokens(KEPT), proto)
    result = changed(KeepTokens([*KEPT], remap=True, unknown=0), proto)
    np.testing.assert_array_equal(ran(result, OLD), ran(proto, OLD))


def test_quantised_embedding() -> None:
    body = """q = Gather (bytes, ids) e = DequantizeLinear (q, scale, zero)
              y = MatMul (e, inner)"""
    values = {"bytes": whole(12, 4), "scale": np.float32(0.02), "zero": np.int8(3)}
    proto = language_model(
        body, {k: np.asarray(v) for k, v in values.items()}, out="float[N, T, 4] y"
    )
    result = changed(KeepTokens(KEPT), proto)
    assert shapes(result)["bytes"] == (5, 4)
    np.testing.assert_array_equal(ran(result, NEW), ran(proto, OLD))


def test_largest_table_is_meant_unless_said_otherwise() -> None:
    proto = graph(
        "(int64[N, T] ids, int64[N, T] kinds) => (float[N, T, 4] y)",
        "e = Gather (table, ids) k = Gather (few, kinds) y = Add (e, k)",
        weights(table=(12, 4), few=(6, 4)),
    )
    assert shapes(changed(KeepTokens([0, 1]), proto)) == {"table": (2, 4), "few": (6, 4)}
    result = changed(KeepTokens([0, 1], vocabulary=6), proto)
    assert shapes(result) == {"table": (12, 4), "few": (2, 4)}


def test_map_is_written_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "ids.json"
    proto = language_model(f"{EMBED} y = MatMul (e, w)")
    result = changed(KeepTokens([11, 7, 3, 2, 0, 7], map_file=str(path)), proto)
    assert json.loads(path.read_text()) == json.loads(metadata(result)[KEPT_TOKENS]) == KEPT
    assert declared(changed(KeepTokens(str(path)), proto)) == {"y": ["N", "T", 5]}
    again = changed(KeepTokens([1, 4]), result)
    assert json.loads(metadata(again)[KEPT_TOKENS]) == [2, 11]


def test_feeds_of_the_original_can_be_converted() -> None:
    proto = language_model(f"{EMBED} y = MatMul (e, w)")
    strict, lenient = KeepTokens(KEPT), KeepTokens(KEPT, unknown=0)
    for pass_ in (strict, lenient):
        changed(pass_, proto)
    np.testing.assert_array_equal(strict.convert({"ids": OLD})["ids"], NEW)
    assert lenient.convert({"ids": np.array([[1, 11]])})["ids"].tolist() == [[0, 4]]
    with pytest.raises(CalibrationError, match="unknown=ID"):
        strict.convert({"ids": np.array([[1, 11]])})


def test_logits_that_cannot_be_cut_are_refused() -> None:
    body = f"{EMBED} z = MatMul (e, w) y = LayerNormalization (z, s)"
    with pytest.raises(NothingPrunable, match="takes statistics over it"):
        changed(KeepTokens(KEPT), language_model(body, weights(s=(12,))))


def test_model_without_a_table_is_refused() -> None:
    proto = graph("(float[N, 4] x) => (float[N, 4] y)", "y = MatMul (x, w)", weights(w=(4, 4)))
    with pytest.raises(NothingPrunable, match="no integer input is looked up"):
        changed(KeepTokens(KEPT), proto)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": [12]}, "there are 12"),
        ({"keep": [1, 2], "unknown": 0}, "not among the kept"),
        ({"keep": [1, 2], "remap": True}, "remap needs unknown"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        changed(KeepTokens(**options), language_model(f"{EMBED} y = MatMul (e, w)"))  # type: ignore[arg-type]


def test_pipeline_goes_on_with_converted_samples() -> None:
    proto = language_model(f"{EMBED} h = MatMul (e, inner) y = MatMul (h, w)")
    samples = {"ids": np.random.default_rng(0).choice(KEPT, (64, 5))}
    steps = [{"keep-tokens": {"keep": KEPT}}, {"prune": {"target": {"params": 0.7}}}]
    result = run_pipeline(proto, steps, calibration=samples, measure_latency=False)
    assert [step.new_interface for step in result.steps] == [True, False]
    assert isinstance(result.model, onnx.ModelProto)
    assert ran(result.model, NEW).shape == (2, 3, 5)
