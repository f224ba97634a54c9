"""Quantisation as a pass, before and after pruning."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.oracle import ONE_THREAD, difference, outputs
from helpers.solving import HEAD, floats, images, mlp, parse

from onnxprune.api import run_pipeline
from onnxprune.calibration.samples import read_samples
from onnxprune.calibration.streams import Samples
from onnxprune.cost.latency.measure import Latency
from onnxprune.errors import InputError
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import load
from onnxprune.passes.quantize import Quantize

CNN = f"""{HEAD} g (float[N, 8, 6, 6] x) => (float[N, 5] y) {{
    a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w1, b1)  h = Relu(a)
    p = GlobalAveragePool(h)  f = Flatten(p)  y = Gemm(f, w2, b2) }}"""
SIZES = {"w1": (16, 8, 3, 3), "b1": (16,), "w2": (16, 5), "b2": (5,)}
X = images(64, 8, 6, 6)


def cnn() -> onnx.ModelProto:
    return parse(CNN, floats(0, **SIZES))


def quantised(proto: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    return ir.to_proto(Quantize(**options)(ir.from_proto(proto)).model)


def kinds(proto: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in proto.graph.node}


def test_static_puts_8_bit_tensors_around_every_layer() -> None:
    made = quantised(cnn(), samples=given(cnn()))
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds(made)
    types = {one.data_type for one in made.graph.initializer if len(one.dims) > 1}
    assert types == {onnx.TensorProto.INT8}
    assert difference(outputs(cnn(), {"x": X}), outputs(made, {"x": X})) < 0.1


def bright(outputs: Any, reference: Any, labels: Any) -> float:
    return float(100 * (outputs["y"].argmax(1) == reference["y"].argmax(1)).mean())


def test_quality_by_a_metric_or_labels_is_in_the_details() -> None:
    proto, samples = cnn(), given(cnn())
    labels = outputs(proto, {"x": X})["y"].argmax(1)
    for options, name in (
        ({"metric": bright}, "bright"),
        ({"metric": "r2"}, "r2"),
        ({"labels": labels}, "accuracy"),
        ({"metric": "agreement", "mode": "dynamic"}, "agreement"),
    ):
        made = Quantize(**options, samples=samples, runtime=ONE_THREAD)
        made(ir.from_proto(proto))
        assert made.details["quality"]["measure"] == name
        assert 50 < made.details["quality"]["result"] <= 100
        assert made.details["quality"]["samples"] == len(X)


def test_operators_are_chosen_by_the_metric() -> None:
    """A metric that counts integer operators against a result prefers linear ones alone."""
    calls = []

    def first_is_worse(outputs: Any, reference: Any, labels: Any) -> float:
        calls.append(1)
        return {1: 1.0, 2: 0.2, 3: 0.9}.get(len(calls), 1.0)

    made = Quantize(metric=first_is_worse, samples=given(cnn()), runtime=ONE_THREAD)
    made(ir.from_proto(cnn()))
    assert made.details["operators"] == "linear"
    assert made.details["drop"] == {"all": pytest.approx(0.8), "linear": pytest.approx(0.1)}


def test_a_pipeline_says_what_quality_is() -> None:
    options = {"calibration": {"x": X}, "threads": 1, "measure_latency": False}
    result = run_pipeline(cnn(), ["quantize"], metric=bright, **options)
    assert "drop" in result.steps[0].details
    assert result.steps[0].quality.measure == "bright"


@pytest.mark.parametrize("options", [{"metric": "r2"}, {"labels": [1]}])
def test_quality_needs_samples(options: Any) -> None:
    with pytest.raises(InputError, match="--calibration"):
        Quantize(**options)


def test_unknown_metrics_are_refused_before_anything_runs() -> None:
    with pytest.raises(InputError, match="did you mean 'kappa'"):
        Quantize(metric="kapa", samples=given(cnn()))


def test_what_onnxruntime_warns_of_is_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    proto = cnn()
    for tensor in proto.graph.initializer:  # as exporters of IR version 3 do
        declared = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        proto.graph.input.append(declared)
    quantised(proto, samples=given(cnn()))
    assert capfd.readouterr() == ("", "")


def test_dynamic_needs_no_samples() -> None:
    made = quantised(mlp())
    assert "DynamicQuantizeLinear" in kinds(made)
    x = images(32, 8)
    assert difference(outputs(mlp(), {"x": x}), outputs(made, {"x": x})) < 0.1


def test_refusals() -> None:
    with pytest.raises(InputError, match="static quantisation needs samples"):
        Quantize(mode="static")
    once = quantised(mlp())
    with pytest.raises(InputError, match="quantised already"):
        quantised(once)


def test_nodes_can_stay_as_they_are() -> None:
    proto = mlp()
    for number, node in enumerate(proto.graph.node):
        node.name = f"n{number}"
    made = quantised(proto, exclude=["n0", "n2", "n4"])
    assert "MatMulInteger" not in kinds(made)
    with pytest.raises(InputError, match="'m\\*' matches no node"):
        quantised(proto, exclude=["m*"])


def given(proto: onnx.ModelProto, x: Any = X) -> Samples:
    return read_samples({"x": x}, input_specs(ir.from_proto(proto)))


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_ranges_of_activations_by_any_method(method: str) -> None:
    x = images(50, 8, 6, 6)  # the last batch is shorter than the others
    made = quantised(cnn(), samples=given(cnn(), x), method=method)
    assert "QuantizeLinear" in kinds(made)
    assert difference(outputs(cnn(), {"x": x}), outputs(made, {"x": x})) < 0.3


def test_inputs_and_outputs_stay_declared_as_they_were() -> None:
    made = quantised(cnn(), samples=given(cnn()))
    assert made.graph.input == cnn().graph.input
    assert made.graph.output == cnn().graph.output
    assert outputs(made, {"x": X[:3]})["y"].shape == (3, 5)


def half(opset: int) -> onnx.ModelProto:
    weights = {name: array.astype(np.float16) for name, array in floats(0, **SIZES).items()}
    return parse(CNN.replace("float[", "float16[").replace(": 17", f": {opset}"), weights)


def test_half_precision_is_quantised_in_static_mode_since_opset_19() -> None:
    x = X.astype(np.float16)
    made = quantised(half(19), samples=given(half(19), x))
    assert "QuantizeLinear" in kinds(made)
    found = outputs(made, {"x": x})
    assert found["y"].dtype == np.float16
    assert difference(outputs(half(19), {"x": x}), found) < 0.1
    with pytest.raises(InputError, match="FLOAT16 below opset 19; quantise the float32 model"):
        quantised(half(17), samples=given(half(17), x))
    with pytest.raises(InputError, match="FLOAT16 in dynamic mode; quantise the float32 model"):
        quantised(half(19))


def test_below_opset_13_one_scale_counts_for_a_whole_weight() -> None:
    old = parse(CNN.replace(": 17", ": 12"), floats(0, **SIZES))
    made = quantised(old, samples=given(old))
    scales = [one for one in made.graph.initializer if one.name.endswith("_scale")]
    assert {prod(one.dims) for one in scales} == {1}
    assert difference(outputs(old, {"x": X}), outputs(made, {"x": X})) < 0.1


def test_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(cnn(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    # of a size that one message does not hold
    monkeypatch.setattr("onnxprune.passes.quantize._LARGE", 0)
    for options in ({"samples": given(cnn())}, {"mode": "dynamic"}):
        made = Quantize(**options)(load(tmp_path / "m.onnx").model).model
        found = outputs(ir.to_proto(made), {"x": X})
        assert difference(outputs(cnn(), {"x": X}), found) < 0.1


@pytest.mark.parametrize("shape", [(), (1, 4)])
def test_biases_of_no_axis_or_two(shape: tuple[int, ...]) -> None:
    text = f"{HEAD} g (float[N, 8] x) => (float[N, 4] y) {{ y = Gemm(x, w, b) }}"
    weights = {**floats(0, w=(8, 4)), "b": np.full(shape, 0.5, np.float32)}
    proto, x = parse(text, weights), images(32, 8)
    made = quantised(proto, samples=given(proto, x))
    assert "QuantizeLinear" in kinds(made)
    assert "b" not in {one.name for one in made.graph.initializer}
    assert difference(outputs(proto, {"x": x}), outputs(made, {"x": x})) < 0.1


def test_a_model_without_anything_to_quantise_stays_as_it_is() -> None:
    proto = parse(f"{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{ y = Sin(x) }}", {})
    one = Quantize(mode="dynamic")
    assert not one(ir.from_proto(proto)).modified
    assert "nothing to quantise" in one.remark(None)


def test_outputs_that_are_no_tensors_are_refused_in_static_mode() -> None:
    text = f"{HEAD} g (float[N, 8] x) => (seq(float[N, 8]) y) {{ y = SequenceConstruct(x) }}"
    proto = parse(text, {})
    with pytest.raises(InputError, match="'y' is none"):
        quantised(proto, samples=given(proto, images(4, 8)))


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(0.5, "makes this model faster: a run takes 50.0%"), (1.1, "does not make this model faster")],
)
def test_whether_it_is_faster_is_said_with_the_figure(ratio: float, words: str) -> None:
    one = Quantize(mode="dynamic")
    one(ir.from_proto(mlp()))
    latency = Latency(1.0, ratio, ratio, ratio, ratio, 30, (ratio - 0.01, ratio + 0.01))
    assert words in one.remark(latency)


def test_nothing_is_said_of_latency_on_a_busy_machine() -> None:
    one = Quantize(mode="dynamic")
    one(ir.from_proto(mlp()))
    remark = one.remark(Latency(1.0, 0.6, 0.6, 0.3, 8.0, 30, (0.33, 8.45)))
    assert "cannot be told: the machine is busy" in remark
    assert "%" not in remark


@pytest.mark.parametrize(("width", "advised"), [(16, False), (13, True)])
def test_alignment_is_advised_where_widths_are_not_aligned(width: int, advised: bool) -> None:
    proto = parse(CNN, floats(0, w1=(width, 8, 3, 3), b1=(width,), w2=(width, 5), b2=(5,)))
    one = Quantize(mode="dynamic")
    one(ir.from_proto(proto))
    remark = one.remark(Latency(1.0, 1.1, 1.1, 1.1, 1.1, 30, (1.09, 1.11)))
    assert ("round_to" in remark) == advised


@pytest.mark.parametrize(
    "passes",
    [
        [{"prune": {"target": {"macs": 0.6}}}, {"quantize": {"mode": "static"}}],
        [{"quantize": {"mode": "static"}}, {"prune": {"target": {"macs": 0.6}}}],
        ["sparsify-weights", "quantize"],
    ],
    ids=["prune then quantize", "quantize then prune", "sparsify then quantize"],
)
def test_in_a_pipeline(passes: list[Any]) -> None:
    result = run_pipeline(cnn(), passes, calibration={"x": X}, threads=1, measure_latency=False)
    assert "DequantizeLinear" in kinds(result.model)
    onnx.checker.check_model(result.model)
    (compared,) = result.steps[-1].outputs
    assert 0 < compared.relative_error < 1
    macs = result.steps[-1].sizes.macs
    assert macs == result.original.macs or macs <= 0.6 * result.original.macs
    assert np.isfinite(outputs(result.model, {"x": X})["y"]).all()
    assert ONE_THREAD.threads == 1


MASKED = f"""{HEAD} g (float[N, 8] x) => (float[N, 5] y) {{
    h = Gemm(x, w1, b1)  m = Add(h, mask)  p = Softmax(m)  y = MatMul(p, w2) }}"""


def masked() -> onnx.ModelProto:
    """Scores of which half are masked by a large negative number, as attention has them."""
    values = floats(0, w1=(8, 12), b1=(12,), w2=(12, 5))
    values["mask"] = np.where(np.arange(12) % 2, -1e9, 0).astype(np.float32)
    return parse(MASKED, values)


def test_operators_that_spoil_a_range_are_left_alone() -> None:
    proto, x = masked(), images(64, 8)
    wanted = outputs(proto, {"x": x})
    apart = {}
    for operators in ("auto", "linear", "all"):
        pass_ = Quantize(samples=given(proto, x), operators=operators, runtime=ONE_THREAD)
        made = ir.to_proto(pass_(ir.from_proto(proto)).model)
        apart[operators] = difference(wanted, outputs(made, {"x": x}))
        assert pass_.details["operators"] == ("all" if operators == "all" else "linear")
    assert apart["auto"] == apart["linear"] < 0.1 < apart["all"]


def test_all_operators_are_quantised_where_nothing_is_lost_by_it() -> None:
    pass_ = Quantize(samples=given(cnn()), runtime=ONE_THREAD)
    pass_(ir.from_proto(cnn()))
    assert pass_.details["operators"] == "all"
    few = Quantize(samples=given(cnn(), X[:3]), runtime=ONE_THREAD)
    few(ir.from_proto(cnn()))
    assert few.details["operators"] == "all"
    assert "divergence" not in few.details
