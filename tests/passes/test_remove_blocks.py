"""Residual branches go as a whole; the layers around them make up for what they can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import ONE_THREAD, outputs
from helpers.paths import MODELS
from helpers.reducing import Weights, changed, declared, graph, shapes, weights
from numpy.typing import NDArray

import onnxprune
from onnxprune.calibration.samples import read_samples
from onnxprune.calibration.streams import Samples
from onnxprune.errors import InputError, NothingPrunable, TargetUnreachable
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import load
from onnxprune.passes.remove_blocks import RemoveBlocks

# Two branches on a stream that a linear layer makes; the first is linear, the second is small.
BODY = """x0 = Gemm (x, a, c)
          f1 = MatMul (x0, b1) y1 = Add (x0, f1)
          u = MatMul (y1, b2) r = Relu (u) f2 = MatMul (r, b3) y2 = Add (y1, f2)
          n = Relu (y2) y = MatMul (n, d)"""


# The same transformer blocks, with the sums on their own and as onnxruntime's optimiser has them.
SEPARATE = """x0 = Gemm (x, a, c) q = Unsqueeze (x0, axes) f0 = MatMul (q, b1)
    f1 = Add (f0, e) y1 = Add (f1, q) n1 = LayerNormalization <epsilon = 0.01> (y1, g, h)
    u = MatMul (n1, b2) r = Relu (u) f2 = MatMul (r, b3)
    y2 = Add (y1, f2) n2 = LayerNormalization <epsilon = 0.01> (y2, g, h)
    p = Squeeze (n2, axes) y = MatMul (p, d)"""
FUSED = """x0 = Gemm (x, a, c) q = Unsqueeze (x0, axes) f0 = MatMul (q, b1)
    n1, , , y1 = com.microsoft.SkipLayerNormalization <epsilon = 0.01> (f0, q, g, h, e)
    u = MatMul (n1, b2) r = Relu (u) f2 = MatMul (r, b3)
    n2, , , y2 = com.microsoft.SkipLayerNormalization <epsilon = 0.01> (y1, f2, g, h)
    p = Squeeze (n2, axes) y = MatMul (p, d)"""


def normalised(body: str) -> onnx.ModelProto:
    values = weights(a=(6, 8), c=(8,), b1=(8, 8), b2=(8, 4), b3=(4, 8), d=(8, 3), g=(8,), h=(8,))
    values |= {"e": np.ones(8, np.float32), "axes": np.array([1])}
    return graph("(float[N, 6] x) => (float[N, 3] y)", body, values)


def network() -> onnx.ModelProto:
    values = weights(a=(6, 8), c=(8,), b1=(8, 8), b2=(8, 4), b3=(4, 8), d=(8, 3))
    values["b3"] = np.asarray(values["b3"] * 0.05, np.float32)
    return graph("(float[N, 6] x) => (float[N, 3] y)", BODY, values)


def samples_of(proto: onnx.ModelProto, count: int = 256) -> Samples:
    x = np.random.default_rng(1).standard_normal((count, 6)).astype(np.float32)
    return read_samples({"x": x}, input_specs(load(proto).model))


def remove(proto: onnx.ModelProto, **options: Any) -> tuple[RemoveBlocks, onnx.ModelProto]:
    samples = options.pop("samples", None) or samples_of(proto)
    pass_ = RemoveBlocks(samples=samples, runtime=ONE_THREAD, **options)
    return pass_, changed(pass_, proto)


def apart(proto: onnx.ModelProto, result: onnx.ModelProto, inputs: Weights) -> float:
    """Mean squared difference as a share of the variance, on inputs of no sample."""
    wanted, got = (outputs(one, inputs)["y"].astype(np.float64) for one in (proto, result))
    return float(((wanted - got) ** 2).mean() / wanted.var())


@pytest.fixture
def fresh() -> dict[str, NDArray[np.generic]]:
    x = np.random.default_rng(2).standard_normal((400, 6))
    return {"x": x.astype(np.float32)}


@pytest.mark.parametrize("rank_by", ["divergence", "influence"])
def test_smallest_branch_goes_first(rank_by: str, fresh: Weights) -> None:
    proto = network()
    pass_, result = remove(proto, count=1, rank_by=rank_by)
    assert pass_.details["removed"] == ["y2"]
    assert {"b2", "b3"}.isdisjoint(shapes(result))
    assert declared(result) == declared(proto)
    assert apart(proto, result, fresh) < 0.05


def test_linear_branch_is_taken_over_by_the_layer_before(fresh: Weights) -> None:
    """x0 + x0 B is a linear map of x: the first layer can give it, if the branch is linear."""
    body = "x0 = Gemm (x, a, c) f = MatMul (x0, b) s = Add (x0, f) n = Relu (s) y = Gemm (n, d, e)"
    values = weights(a=(6, 8), c=(8,), b=(8, 8), d=(8, 3), e=(3,))
    proto = graph("(float[N, 6] x) => (float[N, 3] y)", body, values)
    _, repaired = remove(proto, count=1)
    _, plain = remove(proto, count=1, repair="mean")
    assert [node.op_type for node in repaired.graph.node] == ["Gemm", "Relu", "Gemm"]
    assert apart(proto, repaired, fresh) < 1e-4 < apart(proto, plain, fresh)


def test_mean_of_a_constant_branch_is_exact(fresh: Weights) -> None:
    """A branch that gives the same for every input goes into the bias before it."""
    proto = network()
    for tensor in proto.graph.initializer:
        if tensor.name == "b2":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros((8, 4), np.float32), "b2"))
    pass_, result = remove(proto, count=1, repair="mean")
    assert pass_.details["removed"] == ["y2"]
    assert apart(proto, result, fresh) < 1e-10


def test_convolutional_branch_leaves_a_mean_for_each_channel() -> None:
    body = """x0 = Relu (x) f = Conv <pads = [1, 1, 1, 1]> (x0, w) s = Add (x0, f) n = Relu (s)
              p = GlobalAveragePool (n) y = Flatten (p)"""
    proto = graph("(float[N, 4, 5, 5] x) => (float[N, 4] y)", body, weights(w=(4, 4, 3, 3)))
    x = np.random.default_rng(0).standard_normal((64, 4, 5, 5)).astype(np.float32)
    samples = read_samples({"x": x}, input_specs(load(proto).model))
    _, result = remove(proto, count=1, repair="mean", samples=samples)
    assert list(shapes(result).values()) == [(4, 1, 1)]
    assert "Conv" not in [node.op_type for node in result.graph.node]


@pytest.mark.parametrize("share", [0.9, 0.6])
def test_target_decides_how_many(share: float) -> None:
    proto = network()
    pass_, result = remove(proto, target={"params": share})
    sizes = [sum(int(np.prod(one)) for one in shapes(p).values()) for p in (proto, result)]
    assert sizes[1] <= share * sizes[0]
    assert len(pass_.details["removed"]) == (1 if share == 0.9 else 2)


def test_divergence_limits_how_many() -> None:
    proto = network()
    pass_, _ = remove(proto, max_divergence=0.05, repair="mean")
    assert pass_.details["removed"] == ["y2"]
    assert pass_.details["divergence"] <= 0.05
    pass_, result = remove(proto, max_divergence=1e-9, repair="mean")
    assert pass_.details["removed"] == []
    assert shapes(result) == shapes(proto)


def test_branch_that_is_read_elsewhere_stays() -> None:
    body = "f = MatMul (x, a) s = Add (x, f) y = Concat <axis = 1> (s, f)"
    proto = graph("(float[N, 6] x) => (float[N, 12] y)", body, weights(a=(6, 6)))
    with pytest.raises(NothingPrunable, match="0 residual blocks"):
        remove(proto, count=1)


@pytest.mark.parametrize("repair", ["least-squares", "mean"])
def test_fused_sums_lose_the_same_branches(repair: str, fresh: Weights) -> None:
    """The result is that of the same network with the sums on their own."""
    separate, fused = normalised(SEPARATE), normalised(FUSED)
    for count in (1, 2):
        one, wanted = remove(separate, count=count, repair=repair)
        other, got = remove(fused, count=count, repair=repair)
        assert one.details["removed"] == other.details["removed"]
        assert declared(got) == declared(fused)
        wanted_outputs, got_outputs = outputs(wanted, fresh)["y"], outputs(got, fresh)["y"]
        np.testing.assert_allclose(got_outputs, wanted_outputs, rtol=1e-3, atol=1e-3)


def test_fused_network_of_which_nothing_goes_is_left_alone() -> None:
    fused = normalised(FUSED)
    pass_, result = remove(fused, max_divergence=0.0, repair="mean")
    assert pass_.details["removed"] == []
    assert [one.op_type for one in result.graph.node] == [one.op_type for one in fused.graph.node]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of count"),
        ({"count": 1, "max_divergence": 0.1}, "one of count"),
        ({"count": 0}, "count=0"),
        ({"max_divergence": -1.0}, "max_divergence=-1"),
        ({"target": {}}, "target is empty"),
        ({"target": {"size": 0.5}}, "macs, params or latency"),
        ({"target": {"macs": 1.5}}, "above 0 and at most 1"),
        ({"count": 1, "plan": {}}, "does not say which blocks"),
        ({"count": 1, "samples": None}, "give calibration samples"),
    ],
)
def test_bad_options_are_refused_before_a_model_is_there(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        RemoveBlocks(**{"samples": samples_of(network()), **options})


def test_a_pipeline_refuses_before_its_first_pass_runs() -> None:
    called: list[bool] = []

    def first(proto: onnx.ModelProto) -> None:
        called.append(True)

    with pytest.raises(InputError, match="give calibration samples"):
        onnxprune.run_pipeline(network(), [first, {"remove-blocks": {"count": 1}}])
    assert called == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"count": 3}, NothingPrunable, "has 2 residual blocks"),
        ({"target": {"params": 0.1}}, TargetUnreachable, "still misses params=0.1: 0.4"),
        ({"count": 1, "plan": {"removed": ["y7"]}}, InputError, "no residual block 'y7'"),
    ],
)
def test_what_a_model_cannot_give(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        remove(network(), **options)


@pytest.mark.parametrize(
    ("target", "count"),
    [({"params": 0.9}, 1), ({"params": 0.9, "macs": 0.6}, 2), ({"macs": 0.6, "params": 0.9}, 2)],
)
def test_all_kinds_of_a_target_are_met(target: dict[str, float], count: int) -> None:
    """Of 208 parameters and 200 multiplications a branch has 64."""
    pass_, _ = remove(network(), target=target)
    assert len(pass_.details["removed"]) == count
    assert all(pass_.details["remaining"][kind] <= share for kind, share in target.items())


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_targets_of_a_pipeline_are_fractions_of_its_model(kind: str) -> None:
    proto = network()
    passes = [{"remove-blocks": {"target": {kind: 0.75}}}, {"prune": {"target": {kind: 0.6}}}]
    x = np.random.default_rng(1).standard_normal((256, 6)).astype(np.float32)
    settings: dict[str, Any] = {"calibration": {"x": x}, "threads": 1, "measure_latency": False}
    result = onnxprune.run_pipeline(proto, passes, **settings)
    shares = [getattr(one.sizes, kind) / getattr(result.original, kind) for one in result.steps]
    assert shares[0] <= 0.75
    assert shares[1] <= 0.6
    again = onnxprune.apply_pipeline(proto, result.plan, **settings)
    assert again.model == result.model


def test_a_plan_removes_the_same_blocks_again() -> None:
    proto = network()
    pass_, result = remove(proto, target={"params": 0.9})
    assert pass_.plan == {"removed": ["y2"]}
    again, repeated = remove(proto, target={"params": 0.9}, plan=pass_.plan)
    assert repeated == result
    assert again.plan == pass_.plan
    _, other = remove(proto, target={"params": 0.9}, plan={"removed": ["y1"]})
    assert {"b2", "b3"} <= set(shapes(other))


@pytest.mark.parametrize(
    ("name", "data", "found"), [("digits_resnet", "images", 4), ("digits_transformer", "rows", 4)]
)
def test_repair_keeps_accuracy_of_trained_networks(name: str, data: str, found: int) -> None:
    proto = onnx.load(MODELS / f"{name}.onnx")
    specs = input_specs(load(proto).model)
    samples = read_samples(MODELS / f"{name}_calibration.npz", specs)
    with np.load(MODELS / f"{name}_test.npz") as file:
        inputs, labels = {data: file[data]}, file["labels"]
    accuracy = {}
    for repair in ("mean", "least-squares"):
        pass_, result = remove(proto, count=2, repair=repair, samples=samples)
        assert pass_.details["blocks"] == found
        accuracy[repair] = (outputs(result, inputs)["logits"].argmax(axis=1) == labels).mean()
    assert accuracy["least-squares"] > max(accuracy["mean"] + 0.1, 0.94)


def test_fusing_with_onnxruntime_first_makes_no_difference(tmp_path: Path) -> None:
    """What onnxruntime's transformer optimiser writes keeps the accuracy of what it was given."""
    optimizer = pytest.importorskip("onnxruntime.transformers.optimizer")
    plain = MODELS / "digits_transformer.onnx"
    fused = optimizer.optimize_model(str(plain), model_type="vit", opt_level=0)
    fused.save_model_to_file(str(tmp_path / "fused.onnx"))
    with np.load(MODELS / "digits_transformer_test.npz") as file:
        inputs, labels = {"rows": file["rows"]}, file["labels"]
    accuracy = []
    for path in (plain, tmp_path / "fused.onnx"):
        proto = onnx.load(path)
        specs = input_specs(load(proto).model)
        samples = read_samples(MODELS / "digits_transformer_calibration.npz", specs)
        pass_, result = remove(proto, count=2, samples=samples)
        assert pass_.details["blocks"] == 4
        accuracy.append((outputs(result, inputs)["logits"].argmax(axis=1) == labels).mean())
    assert "SkipLayerNormalization" in {node.op_type for node in proto.graph.node}
    assert accuracy[1] == pytest.approx(accuracy[0], abs=1 / len(labels))
