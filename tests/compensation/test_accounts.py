"""Every layer that is cut and not re-fitted is named, with its reason and its costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from helpers.oracle import parse
from helpers.paths import MODELS
from numpy.typing import NDArray

import onnxprune
from onnxprune import PruneResult
from onnxprune.compensation.least_squares import ROWS_DIFFER, LayerFit

HEAD = '<ir_version: 10, opset_import: ["": 17]>'
RNG = np.random.default_rng(0)


def floats(**shapes: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
    return {
        name: (RNG.standard_normal(shape) / np.sqrt(shape[-2])).astype(np.float32)
        for name, shape in shapes.items()
    }


def pruned(
    body: str, weights: Mapping[str, Any], x: tuple[int, ...] = (6,), **options: Any
) -> PruneResult:
    """Cut a network to half of its channels; its layers are re-fitted."""
    extents = ", ".join(map(str, x))
    text = f"{HEAD} g (float[N, {extents}] x) => (float[N, {extents}] y) {{ {body} }}"
    proto = parse(text, weights)
    rank = len(proto.graph.output[0].type.tensor_type.shape.dim)
    assert rank == len(x) + 1
    given: dict[str, Any] = {
        "calibration": {"x": RNG.standard_normal((96, *x)).astype(np.float32)},
        "target": {"channels": 0.5},
        "compensate": "least-squares",
        "measure_latency": False,
        "lossless": False,
        "threads": 1,
        "force": True,  # a random network may come to nothing
    }
    return onnxprune.prune(proto, **given | options)


def reasons(result: PruneResult) -> dict[str, str]:
    return {fit.node: fit.reason for fit in result.report.repairs if fit.cut and not fit.solved}


def solved(result: PruneResult) -> set[str]:
    return {fit.node for fit in result.report.repairs if fit.solved}


def test_layers_say_what_they_cost() -> None:
    result = pruned("h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)", floats(a=(6, 8), b=(8, 6)))
    fits = {fit.node: fit for fit in result.report.repairs}
    batch = result.report.batch
    assert fits["y"] == LayerFit(
        "y", fits["y"].before, fits["y"].after, True, "", cut=True, macs=batch * 48
    )
    assert fits["h"].cut
    assert fits["h"].reason == "nothing is lost there"
    assert not result.report.unfolded
    assert not [text for text in result.report.warnings if "least squares" in text]


def test_shared_stacked_and_whole_number_weights() -> None:
    """Each network has one layer that reads removed units and that cannot be re-fitted."""
    start = "h = MatMul(x, a) r = Relu(h) "
    plain = floats(a=(6, 8), b=(8, 6), s=(8, 8))
    shared = pruned(start + "c = MatMul(r, s) d = MatMul(c, s) y = MatMul(d, b)", plain)
    assert reasons(shared)["c"] == reasons(shared)["d"] == "its weight is read by several nodes"

    quantised: dict[str, Any] = floats(a=(6, 8))
    quantised["q"] = RNG.integers(-127, 127, (8, 6)).astype(np.int8)
    quantised["scale"] = np.array(0.01, np.float32)
    dequantised = pruned(start + "b = DequantizeLinear(q, scale) y = MatMul(r, b)", quantised)
    assert reasons(dequantised)["y"] == "its weight is worked out by DequantizeLinear"

    stack = floats(a=(6, 8), b=(3, 8, 6))
    stacked = pruned(start + "y = MatMul(r, b)", stack, x=(3, 4, 6))
    assert reasons(stacked)["y"] == "its weights differ between rows (a stack of matrices)"

    halves = floats(a=(6, 8), b=(8, 6))
    halves["one"] = np.ones(6, np.float32)
    worked_out = pruned(start + "w = Mul(b, one) y = MatMul(r, w)", halves)
    assert reasons(worked_out)["y"] == "its weight is worked out by Mul"
    assert worked_out.report.unfolded == {"y": "its weight is worked out by Mul"}
    for each in (shared, dequantised, stacked):
        assert not each.report.unfolded


def test_asked_for_and_nothing_re_fitted_is_a_warning() -> None:
    weights: dict[str, Any] = floats(a=(6, 8))
    weights["q"] = RNG.integers(-127, 127, (8, 6)).astype(np.int8)
    weights["scale"] = np.array(0.01, np.float32)
    body = "h = MatMul(x, a) r = Relu(h) b = DequantizeLinear(q, scale) y = MatMul(r, b)"
    result = pruned(body, weights)
    assert not solved(result)
    (warning,) = (text for text in result.report.warnings if "least squares" in text)
    assert "did not re-fit the only layer that lost something" in warning
    assert "DequantizeLinear" in warning
    assert warning in result.report.to_dict()["warnings"]
    assert "did not re-fit the only layer" in result.to_html()
    for other in ("mean", "none"):
        warnings = pruned(body, weights, compensate=other).report.warnings
        assert not [text for text in warnings if "least squares" in text]


def test_recurrent_layers_have_nothing_that_makes_up_for_what_they_read() -> None:
    """A GRU reads what is removed: neither its weights nor a bias take it up."""
    weights = floats(a=(6, 8), w=(1, 15, 8), r=(1, 15, 5), b=(5, 6))
    body = """h = MatMul(x, a) t = Relu(h)
        s, _ = GRU<hidden_size = 5>(t, w, r)  axis = Constant<value_ints = [1]>()
        q = Squeeze(s, axis) y = MatMul(q, b)"""
    for compensate in ("least-squares", "mean"):
        result = pruned(body, weights, x=(3, 6), compensate=compensate)
        # the sequence is the first axis here
        assert "GRU" in result.report.unfolded["s"]
        if compensate == "least-squares":
            assert reasons(result)["s"] == "GRU is no linear layer by itself"


def test_sums_have_no_weight_to_make_up_with() -> None:
    weights: dict[str, Any] = floats(a=(6, 8), b=(8, 6))
    weights["axes"] = np.array([1])
    body = "h = MatMul(x, a) r = Relu(h) s = ReduceSum(r, axes) z = MatMul(r, b) y = Add(z, s)"
    result = pruned(body, weights)
    assert result.report.widths == {"a[1]": (8, 4)}
    assert not result.report.unfolded


def test_rows_that_differ_are_a_reason() -> None:
    """Units lie on two axes of what the product reads, and it sums over one of them."""
    weights: dict[str, Any] = floats(a=(6, 8), b=(4, 6), c=(12, 6))
    weights |= {"two": np.array([0, 2, 4]), "flat": np.array([0, 12])}
    body = """h = MatMul(x, a) r = Relu(h) t = Reshape(r, two) m = MatMul(t, b)
        f = Relu(m) g = Reshape(f, flat) y = MatMul(g, c)"""
    result = pruned(body, weights)
    assert result.report.widths["a[1]"][0] > 8  # pieces of it, too
    assert reasons(result)["m"] == ROWS_DIFFER


def test_reasons_reach_text_and_json() -> None:
    weights = floats(a=(6, 8), b=(8, 6), s=(8, 8))
    body = "h = MatMul(x, a) r = Relu(h) c = MatMul(r, s) d = MatMul(c, s) y = MatMul(d, b)"
    report = pruned(body, weights).report
    (entry,) = (each for each in report.to_dict()["repairs"] if each["node"] == "c")
    assert entry["reason"] == "its weight is read by several nodes"
    assert entry["macs"] == report.batch * 64
    page = report.to_html()
    assert "its weight is read by several nodes" in page


def test_models_of_the_repository_have_no_gap() -> None:
    """Every layer of these is re-fitted, loses nothing, or was tried."""
    for name in ("digits_mlp", "digits_resnet_bn", "digits_transformer"):
        archive = np.load(MODELS / f"{name.removesuffix('_bn')}_calibration.npz")
        samples = {key: archive[key][:64] for key in archive.files}
        result = onnxprune.prune(
            onnx.load(MODELS / f"{name}.onnx"),
            calibration=samples,
            target={"macs": 0.6},
            measure_latency=False,
            threads=1,
        )
        assert set(reasons(result).values()) <= {"", "nothing is lost there"}
        assert not result.report.unfolded
