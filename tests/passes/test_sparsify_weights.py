"""Single weights become zero: where, how many, and what the others do about it."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.oracle import ONE_THREAD, difference, outputs
from helpers.solving import HEAD, MLP, floats, images, mlp, parse
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.api import run_pipeline
from onnxprune.calibration.samples import read_samples
from onnxprune.calibration.streams import Samples
from onnxprune.errors import InputError
from onnxprune.model.inputs import input_specs
from onnxprune.passes.sparsify_weights import SparsifyWeights
from onnxprune.passes.sparsity.patterns import parse_pattern

CNN = f"""{HEAD} g (float[N, 8, 6, 6] x) => (float[N, 5] y) {{
    a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w1, b1)  h = Relu(a)
    d = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=16> (h, w2)  k = Relu(d)
    p = GlobalAveragePool(k)  f = Flatten(p)  y = Gemm(f, w3) }}"""
SIZES = {"w1": (16, 8, 3, 3), "b1": (16,), "w2": (16, 1, 3, 3), "w3": (16, 5)}


def cnn() -> onnx.ModelProto:
    return parse(CNN, floats(0, **SIZES))


def correlated(count: int = 256) -> NDArray[np.float32]:
    """Inputs of which some nearly follow from others."""
    rng = np.random.default_rng(3)
    few = rng.standard_normal((count, 3)) @ rng.standard_normal((3, 8))
    return (few + 0.1 * rng.standard_normal((count, 8))).astype(np.float32)


def samples(proto: onnx.ModelProto, x: NDArray[np.float32]) -> Samples:
    return read_samples({"x": x}, input_specs(ir.from_proto(proto)))


def sparse(
    proto: onnx.ModelProto, x: NDArray[np.float32] | None = None, **options: Any
) -> tuple[onnx.ModelProto, SparsifyWeights]:
    model = ir.from_proto(proto)
    given = samples(proto, x) if x is not None else None
    one = SparsifyWeights(samples=given, runtime=ONE_THREAD, **options)
    one(model)
    result = ir.to_proto(model)
    onnx.checker.check_model(result, full_check=True)
    return result, one


def weight(proto: onnx.ModelProto, name: str) -> NDArray[Any]:
    return next(numpy_helper.to_array(one) for one in proto.graph.initializer if one.name == name)


def test_without_samples_the_smallest_weights_of_each_layer_go() -> None:
    made, one = sparse(mlp(), amount=0.25)
    for name in ("w1", "w2", "w3"):
        before, after = weight(mlp(), name), weight(made, name)
        gone = after == 0
        assert gone.mean() == 0.25
        assert np.abs(before[gone]).max() <= np.abs(before[~gone]).min()
        np.testing.assert_array_equal(after[~gone], before[~gone])
    assert one.details["zeros"] == 0.25


def test_a_global_threshold_spares_the_layer_of_the_largest_weights() -> None:
    proto = mlp()
    for tensor in proto.graph.initializer:
        if tensor.name == "w2":
            tensor.CopyFrom(numpy_helper.from_array(100 * numpy_helper.to_array(tensor), "w2"))
    _, one = sparse(proto, threshold="global", amount=0.3)
    assert one.details["layers"]["b"] < 0.05 < one.details["layers"]["a"]


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "obs"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8", "4x1", "2x4"])
def test_zeros_of_a_matrix_lie_along_its_inputs(criterion: str, pattern: str) -> None:
    made, _ = sparse(mlp(), correlated(), criterion=criterion, pattern=pattern)
    how = parse_pattern(pattern)
    for name in ("w1", "w2", "w3"):
        stays = weight(made, name).T != 0  # [outputs, inputs]
        np.testing.assert_array_equal(stays, how.mask(stays.astype(float), (~stays).mean()))
        assert 0.4 <= (~stays).mean() <= 0.6


@pytest.mark.parametrize("criterion", ["magnitude", "obs"])
def test_zeros_of_a_convolution_lie_along_its_channels(criterion: str) -> None:
    made, one = sparse(cnn(), images(64, 8, 6, 6), criterion=criterion, pattern="2:4")
    stays = weight(made, "w1") != 0
    assert (stays.reshape(16, 2, 4, 3, 3).sum(axis=2) == 2).all()
    # a depthwise convolution keeps its weights; the second-order criterion fits them anew
    assert (weight(made, "w2") != 0).all()
    assert set(one.details["layers"]) == {"a", "y"}


def linear(weight: NDArray[Any]) -> onnx.ModelProto:
    text = f"{HEAD} g (float[N, {{}}] x) => (float[N, {{}}] y) {{{{ y = MatMul(x, w) }}}}"
    return parse(text.format(*weight.shape), {"w": weight.astype(np.float32)})


def test_inputs_that_come_twice_lose_one_of_each_pair_and_nothing_else() -> None:
    once = images(512, 8)
    proto = linear(np.random.default_rng(1).uniform(1, 2, (16, 4)))
    x = np.concatenate([once, once], axis=1)
    made, _ = sparse(proto, x, criterion="obs")
    stays = weight(made, "w") != 0
    assert (stays[:8] ^ stays[8:]).all()
    # the damping of one per cent is all that weights are drawn to zero by
    assert difference(outputs(proto, {"x": x}), outputs(made, {"x": x})) < 0.02


def test_uncorrelated_inputs_lose_by_wanda_the_weights_that_give_least() -> None:
    signs = np.array(list(product([-1.0, 1.0], repeat=4)), np.float32)
    x = signs * np.array([2, 1, 0.5, 3], np.float32)
    proto = linear(floats(2, w=(4, 2))["w"])

    def lost(kept: NDArray[Any]) -> float:
        return float(np.square(x @ kept - x @ weight(proto, "w")).sum())

    masks = [np.reshape(one, (4, 2)) for one in product([0, 1], repeat=8) if sum(one) == 4]
    least = min(lost(weight(proto, "w") * mask) for mask in masks)
    by_wanda, by_size = (
        lost(weight(sparse(proto, x, criterion=name)[0], "w")) for name in ("wanda", "magnitude")
    )
    assert by_wanda == pytest.approx(least, rel=1e-5)
    assert by_wanda < by_size


def test_all_layers_solved_anew_are_closer_than_by_scores_alone() -> None:
    proto, x = mlp(), correlated(1024)
    feed = {"x": x}
    by_score, solved = (
        difference(outputs(proto, feed), outputs(sparse(proto, x, criterion=name)[0], feed))
        for name in ("wanda", "obs")
    )
    assert solved < by_score


def test_the_mean_of_what_goes_is_kept() -> None:
    text = f"{HEAD} g (float[N, 8] x) => (float[N, 4] y) {{ y = Gemm(x, w, b) }}"
    proto = parse(text, floats(0, w=(8, 4), b=(4,)))
    x = correlated() + 3
    made, _ = sparse(proto, x, criterion="wanda")
    means = [outputs(one, {"x": x})["y"].mean(axis=0) for one in (proto, made)]
    np.testing.assert_allclose(means[0], means[1], atol=1e-4)


def test_include_and_exclude() -> None:
    assert set(sparse(mlp(), include=["w1"])[1].details["layers"]) == {"a"}
    assert set(sparse(mlp(), exclude=["w1"])[1].details["layers"]) == {"b", "y"}
    with pytest.raises(InputError, match="no weight can be set to zero"):
        sparse(mlp(), exclude=["*"])


def test_a_weight_that_two_nodes_read_stays() -> None:
    text = f"""{HEAD} g (float[N, 8] x) => (float[N, 8] y)
        {{ a = MatMul(x, w)  b = MatMul(a, w)  y = MatMul(b, v) }}"""
    _, one = sparse(parse(text, floats(0, w=(8, 8), v=(8, 8))))
    assert set(one.details["layers"]) == {"y"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"amount": 1.0}, "between 0 and 1"),
        ({"pattern": "2:4", "amount": 0.5}, "leave amount out"),
        ({"pattern": "2:4", "threshold": "global"}, "no choice"),
        ({"criterion": "wanda"}, "give samples"),
        ({"pattern": "2to4"}, "unknown pattern"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        SparsifyWeights(**options)


def test_units_left_without_weights_are_then_removed_exactly() -> None:
    proto = mlp()
    weights = {one.name: numpy_helper.to_array(one).copy() for one in proto.graph.initializer}
    weights["w1"][:, [2, 5]] *= 1e-3  # nothing comes in, so that only the bias is left
    weights["w2"][[7, 8]] *= 1e-3  # nobody reads the unit
    proto = parse(MLP, weights)
    passes = [{"sparsify-weights": {"amount": 0.4}}, "remove-lossless"]
    result = run_pipeline(proto, passes, threads=1, measure_latency=False)
    assert weight(result.model, "w1").shape == (8, 8)
    assert weight(result.model, "w2").shape[0] == 8
    first = run_pipeline(proto, passes[:1], threads=1, measure_latency=False)
    feed = {"x": correlated()}
    assert difference(outputs(first.model, feed), outputs(result.model, feed)) < 1e-5


@pytest.mark.parametrize(
    ("pattern", "tensor"), [("1x8", "w1"), ("12x1", "w2")], ids=["incoming", "outgoing"]
)
@pytest.mark.parametrize("criterion", ["magnitude", "obs"])
def test_units_of_whole_blocks_are_then_removed_exactly(
    pattern: str, tensor: str, criterion: str
) -> None:
    proto, x = mlp(), correlated()
    options = {"pattern": pattern, "amount": 0.5, "include": [tensor], "criterion": criterion}
    passes = [{"sparsify-weights": options}, "remove-lossless"]
    run = {"calibration": {"x": x}, "threads": 1, "measure_latency": False, "force": True}
    zeros, small = (run_pipeline(proto, passes[:n], **run).model for n in (1, 2))
    assert np.count_nonzero(weight(zeros, tensor)) == weight(proto, tensor).size / 2
    assert weight(small, "w1").shape == (8, 6)
    assert weight(small, "w2").shape == (6, 12)
    assert difference(outputs(zeros, {"x": x}), outputs(small, {"x": x})) < 1e-5


def test_the_same_seed_gives_the_same_weights() -> None:
    made = [sparse(mlp(), correlated(), seed=3)[0].SerializeToString() for _ in range(2)]
    assert made[0] == made[1]
