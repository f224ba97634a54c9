"""Units that do the same: one of them stays."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx
import pytest
from helpers.oracle import difference, outputs
from helpers.solving import HEAD, floats, images, parse
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.api import run_pipeline
from onnxprune.errors import InputError
from onnxprune.passes.merge_duplicates import Likeness, MergeDuplicates

NET = f"""{HEAD} g (float[N, 6] x) => (float[N, 4] y)
    {{ a = Gemm(x, w1, b1)  h = Tanh(a)  y = Gemm(h, w2, b2) }}"""
X = images(256, 6)


def network(noise: float) -> onnx.ModelProto:
    """Units 1 and 5 are the same but for some noise; unit 2 is minus unit 3, the same way."""
    weights = floats(0, w1=(6, 10), b1=(10,), w2=(10, 4), b2=(4,))
    rng = np.random.default_rng(1)
    for name in ("w1", "b1"):
        columns = weights[name]
        columns[..., 5] = columns[..., 1] + noise * rng.standard_normal(columns.shape[:-1])
        columns[..., 2] = -columns[..., 3] + noise * rng.standard_normal(columns.shape[:-1])
    return parse(NET, weights)


def merged(proto: onnx.ModelProto, x: NDArray[Any] | None = X, **options: Any) -> onnx.ModelProto:
    calibration = {"x": x} if x is not None else None
    passes = [{"merge-duplicates": options}]
    return run_pipeline(
        proto, passes, calibration=calibration, threads=1, measure_latency=False
    ).model


def width(proto: onnx.ModelProto) -> int:
    sizes = {one.name: numpy_helper.to_array(one).shape for one in proto.graph.initializer}
    assert sizes["w1"][1] == sizes["w2"][0]
    return int(sizes["w2"][0])


def test_equal_units_go_without_samples() -> None:
    result = merged(network(0.0), None)
    assert width(result) == 9
    assert difference(outputs(network(0.0), {"x": X}), outputs(result, {"x": X})) < 1e-5


def test_nearly_equal_and_opposite_units_go_with_samples() -> None:
    result = merged(network(0.01))
    assert width(result) == 8
    assert difference(outputs(network(0.01), {"x": X}), outputs(result, {"x": X})) < 0.02


def test_units_that_are_not_alike_enough_stay() -> None:
    assert width(merged(network(0.3), similarity=0.9999)) == 10


def test_similarity_is_a_share() -> None:
    with pytest.raises(InputError, match="above 0 and at most 1"):
        MergeDuplicates(similarity=1.5)


def test_the_most_variable_of_several_stands_for_all() -> None:
    alike = np.array([[1, 0.95, -0.97, 0], [0.95, 1, -0.8, 0], [-0.97, -0.8, 1, 0], [0, 0, 0, 1]])

    def twins(*deviations: float) -> dict[int, int]:
        covariance = alike * np.multiply.outer(deviations, deviations)
        return Likeness([(cast("Any", None), covariance)]).twins(0.9)

    assert twins(1, 2, 3, 0) == {0: 2}
    assert twins(3, 2, 1, 0) == {1: 0, 2: 0}
