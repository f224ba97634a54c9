"""Sensitivity of the divergence to the outputs of layers: the diagonal of Gauss and Newton."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from helpers.oracle import parse

from onnxprune.calibration.context import RunContext
from onnxprune.gradients import sensitivity
from onnxprune.gradients.sensitivity import measure_sensitivity
from onnxprune.model.load import load
from onnxprune.model.runtime import Runtime
from onnxprune.verification.divergence import divergence

RNG = np.random.default_rng(0)
CONTEXT = RunContext(runtime=Runtime(threads=1))
FIRST = RNG.standard_normal((6, 4)).astype(np.float32)
SECOND = RNG.standard_normal((4, 3)).astype(np.float32)
BATCHES = [{"x": RNG.standard_normal((64, 6)).astype(np.float32)} for _ in range(32)]


def model(body: str, inputs: str = "float[N, 6] x", outputs: str = "float[N, 3] y") -> ir.Model:
    text = f"""<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => ({outputs}) {{ {body} }}"""
    return load(parse(text, {"a": FIRST, "b": SECOND})).model


QUANTITIES = model("h = MatMul(x, a) z = MatMul(h, b) y = Neg(z)")
SCORES = model("h = MatMul(x, a) z = MatMul(h, b) y = Softmax(z)")


def increase(original: ir.Model, changed: Any, feeds: Any = BATCHES) -> float:
    """Divergence of a model whose hidden layer is off by some noise."""
    rng = np.random.default_rng(1)
    pairs = []
    for feed in feeds:
        hidden = feed["x"] @ FIRST
        noise = changed(rng, hidden)
        first, second = hidden @ SECOND, (hidden + noise) @ SECOND
        if original is SCORES:
            raised = [np.exp(scores - scores.max(1, keepdims=True)) for scores in (first, second)]
            first, second = (each / each.sum(1, keepdims=True) for each in raised)
        else:
            first, second = -first, -second
        pairs.append(({"y": first}, {"y": second}))
    return divergence(original, pairs)


@pytest.mark.parametrize("original", [QUANTITIES, SCORES], ids=["quantities", "scores"])
@pytest.mark.parametrize("channel", range(4))
def test_half_of_it_is_what_the_divergence_grows_by(original: ir.Model, channel: int) -> None:
    known = measure_sensitivity(original, {"h": (1,)}, BATCHES, CONTEXT)

    def noise(rng: np.random.Generator, hidden: Any) -> Any:
        return 0.05 * rng.standard_normal(hidden.shape) * (np.arange(4) == channel)

    predicted = known.columns["h"][0, channel] * 0.05**2 / 2
    assert increase(original, noise) == pytest.approx(predicted, rel=0.2)


def test_rows_count_where_answers_react() -> None:
    """Sure answers hardly react, whatever is done to the hidden layer there."""
    known = measure_sensitivity(SCORES, {"h": (1,)}, BATCHES, CONTEXT)
    rows = np.concatenate([each.reshape(-1) for each in known.rows["h"]])
    assert rows.mean() == pytest.approx(1, rel=1e-3)
    scores = np.concatenate([feed["x"] for feed in BATCHES]) @ FIRST @ SECOND
    ordered = np.sort(scores, axis=1)
    sure = ordered[:, -1] - ordered[:, -2] > np.quantile(ordered[:, -1] - ordered[:, -2], 0.9)
    assert rows[~sure].mean() > 2 * rows[sure].mean()


def test_rare_answers_count_like_frequent_ones() -> None:
    """One class in fifty: its rows weigh about fifty times as much."""
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 2] x) => (float[N, 2] y) { h = MatMul(x, e) y = Softmax(h) }"""
    plain = load(parse(text, {"e": np.eye(2, dtype=np.float32)})).model
    face = np.arange(2000) % 50 == 0
    scores = np.where(face[:, None], [0.0, 8.0], [8.0, 0.0]).astype(np.float32)
    known = measure_sensitivity(plain, {"h": (1,)}, [{"x": scores}] * 2, CONTEXT)
    rows = np.concatenate([each.reshape(-1) for each in known.rows["h"]]).reshape(2, -1).mean(0)
    assert rows[face].mean() > 15 * rows[~face].mean()


def test_parts_of_a_batch_give_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure_sensitivity(SCORES, {"h": (1,), "z": (1,)}, BATCHES, CONTEXT)
    monkeypatch.setattr(sensitivity, "_ACTIVATION_BYTES", 1)
    parts = measure_sensitivity(SCORES, {"h": (1,), "z": (1,)}, BATCHES, CONTEXT)
    for name in ("h", "z"):
        np.testing.assert_allclose(parts.rows[name][1], whole.rows[name][1], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(parts.columns[name], whole.columns[name], rtol=1e-4)


def test_layers_that_gradients_do_not_get_to_say_why() -> None:
    cut = model(
        "h = MatMul(x, a) k = Neg(m) i = Det(k) z = MatMul(h, b) y = Neg(z)",
        "float[N, 6] x, float[N, 2, 2] m",
        "float[N, 3] y, float[N] i",
    )
    known = measure_sensitivity(
        cut,
        {"h": (1,), "k": (2,)},
        [{"x": BATCHES[0]["x"], "m": RNG.standard_normal((64, 2, 2)).astype(np.float32)}] * 2,
        CONTEXT,
    )
    assert "h" in known.rows
    assert "k" in known.blocked
    stuck = model(
        "h = MatMul(x, a) i = MatMul(h, b) y = ArgMax<axis = 1>(i)", outputs="int64[N, 1] y"
    )
    known = measure_sensitivity(stuck, {"h": (1,)}, BATCHES, CONTEXT)
    assert not known.rows
    assert "h" in known.blocked


def test_a_layer_that_no_answer_depends_on_needs_no_reason() -> None:
    spare = model("h = MatMul(x, a) unread = Sin(h) z = MatMul(x, a) y = Neg(z)")
    known = measure_sensitivity(spare, {"h": (1,)}, BATCHES, CONTEXT)
    assert not known.rows
    assert not known.blocked


def test_scores_of_branches_are_probabilities_outside_them() -> None:
    branches = model(
        """
        h = MatMul(x, a)
        z = MatMul(h, b)
        n = ReduceSum <keepdims = 0> (x)
        zero = Constant <value_float = 0.0> ()
        positive = Greater(n, zero)
        y = If (positive) <
            then_branch = then () => (float[N, 3] p) { p = Softmax(z) },
            else_branch = other () => (float[N, 3] q) { d = Add(z, z) q = Softmax(d) }
        >
        """
    )
    known = measure_sensitivity(branches, {"h": (1,)}, BATCHES, CONTEXT)
    assert "h" in known.rows or "h" in known.blocked


def test_the_same_seed_gives_the_same() -> None:
    first, again = (measure_sensitivity(SCORES, {"h": (1,)}, BATCHES, CONTEXT) for _ in range(2))
    np.testing.assert_array_equal(first.rows["h"][2], again.rows["h"][2])
