"""Layers in the bodies of If, Loop and Scan: re-fitted on the runs of their body."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import outputs, parse
from numpy.typing import NDArray

import onnxprune

LOOP = "t = Loop(n, , h)<body = step (int64 i, bool c, float[N, 8] s) => (bool d, float[N, 8] r)"
LAYERS = "m = MatMul(s, k) q = Relu(m) p = MatMul(q, l)"
OTHERS = "m2 = MatMul(s, k2) q2 = Relu(m2) p2 = MatMul(q2, l2)"
BRANCHES = (
    f"If(f)<then_branch = one () => (float[N, 8] p) {{ {LAYERS} }}, "
    f"else_branch = two () => (float[N, 8] p2) {{ {OTHERS} }}>"
)
CASES = {
    "loop": f"{LOOP} {{ {LAYERS} e = Tanh(p) r = Add(e, s) d = Identity(c) }}>",
    "scan": (
        "g = ReduceMax<axes=[1], keepdims=0>(h) z = Sub(g, g) "
        "u, t = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1], "
        "body = step (float[N, 8] v, float[N, 8] w) => (float[N, 8] r, float[N, 8] o) "
        f"{{ s = Add(v, w) {LAYERS} r = Tanh(p) o = Identity(r) }}>(z, h)"
    ),
    "branches": f"s = Tanh(h) t = {BRANCHES}",
    "branches in a loop": f"{LOOP} {{ o = {BRANCHES} e = Tanh(o) r = Add(e, s) d = Identity(c) }}>",
    "loop in a branch": (
        f"t = If(f)<then_branch = one () => (float[N, 8] a1) {{ {LOOP.replace('t =', 'a1 =')} "
        f"{{ {LAYERS} e = Tanh(p) r = Add(e, s) d = Identity(c) }}> }}, "
        "else_branch = two () => (float[N, 8] a2) { a2 = Neg(h) }>"
    ),
}


def similar(rng: np.random.Generator, rows: int, columns: int, few: int) -> NDArray[np.float32]:
    """Columns that are multiples of fewer, with some noise."""
    base = rng.standard_normal((few, rows))[np.arange(columns) % few]
    base = base * rng.uniform(0.5, 1.5, (columns, 1))
    noisy = base + 0.03 * rng.standard_normal((columns, rows))
    array: NDArray[np.float32] = (noisy / np.sqrt(rows)).astype(np.float32).T.copy()
    return array


def network(body: str, *, tokens: bool = False) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {"a": similar(rng, 6, 8, 8), "b": similar(rng, 8, 3, 3)}
    weights |= {"k": similar(rng, 8, 24, 10), "l": similar(rng, 24, 8, 8)}
    if "k2" in body:
        weights |= {"k2": similar(rng, 8, 24, 10), "l2": similar(rng, 24, 8, 8)}
    if "Loop" in body:
        weights["n"] = np.array(4)
    head = ""
    if "If(f)" in body:
        weights["zero"] = np.array(0, np.float32)
        head = "j = ReduceSum<keepdims=0>(x) f = Greater(j, zero) "
    given, made = ("N, 5, 6", "N, 5, 3") if tokens else ("N, 6", "N, 3")
    return parse(
        f'<ir_version: 8, opset_import: ["": 17]> net (float[{given}] x) => (float[{made}] y) '
        f"{{ {head} h = MatMul(x, a) {body} y = MatMul(t, b) }}",
        weights,
    )


def batches(count: int, seed: int, *, tokens: bool = False) -> list[dict[str, NDArray[np.float32]]]:
    """Batches of 16, every second of them below zero on average."""
    rng = np.random.default_rng(seed)
    shape = (16, 5, 6) if tokens else (16, 6)
    drawn = [rng.standard_normal(shape) + (0.4 if n % 2 else -0.4) for n in range(count)]
    return [{"x": array.astype(np.float32)} for array in drawn]


def lost(first: onnx.ModelProto, second: onnx.ModelProto, given: list[dict[str, Any]]) -> float:
    """Mean squared difference over the variance."""
    pairs = [(outputs(first, feed)["y"], outputs(second, feed)["y"]) for feed in given]
    wanted, got = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return float(np.mean((wanted - got) ** 2) / wanted.var())


@pytest.mark.parametrize("case", CASES)
def test_as_good_as_anywhere_else(case: str) -> None:
    """Nine of 24 units go of which ten are enough: nothing is lost but the noise."""
    tokens = case == "scan"
    model = network(CASES[case], tokens=tokens)
    given, test = (batches(24, seed, tokens=tokens) for seed in (1, 2))
    settings: dict[str, Any] = {
        "target": {"channels": 0.6},
        "exclude": ["a", "b"],
        "calibration": given,
    }
    fitted = onnxprune.prune(model, **settings)
    folded = onnxprune.prune(model, **settings, compensate="mean")
    assert lost(model, folded.model, test) > 0.03
    assert lost(model, fitted.model, test) < 0.001
    solved = {fit.node for fit in fitted.report.repairs if fit.solved}
    assert solved == ({"p", "p2"} if "k2" in CASES[case] else {"p"})
