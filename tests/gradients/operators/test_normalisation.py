from __future__ import annotations

import numpy as np
import pytest
from helpers.differences import check_gradient

FUSED = "com.microsoft"


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset", [12, 13])
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_softmax(op: str, opset: int, axis: int) -> None:
    body = f"y = {op}<axis = {axis}>(x)"
    check_gradient(body, (2, 3, 4), opset=opset, by_runtime=True)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 2, 2)])
def test_batch_normalisation(shape: tuple[int, ...]) -> None:
    weights = {"s": weight(3), "b": weight(3), "m": weight(3), "v": weight(3) ** 2 + 0.5}
    check_gradient("y = BatchNormalization(x, s, b, m, v)", shape, weights, tuned="s b")


def test_layer_normalisation() -> None:
    weights = {"s": weight(4), "b": weight(4)}
    check_gradient("y = LayerNormalization(x, s, b)", (2, 3, 4), weights, tuned="s b")


def test_layer_normalisation_over_several_axes() -> None:
    body, weights = "y = LayerNormalization<axis = 1>(x, s, b)", {"b": weight(3, 1)}
    check_gradient(body, (2, 3, 4), weights | {"s": weight(3, 4)}, tuned="s b")


def test_root_mean_square() -> None:
    body, weights = "y = RMSNormalization(x, s)", {"s": weight(4)}
    check_gradient(body, (2, 3, 4), weights, opset=23, tuned="s")


def test_root_mean_square_before_the_standard_had_it() -> None:
    body, weights = "y = SimplifiedLayerNormalization(x, s)", {"s": weight(4)}
    check_gradient(body, (2, 3, 4), weights, tuned="s", by_runtime=True)


SKIP = {"skip": weight(2, 3, 4), "s": weight(4), "shift": weight(4), "b": 3 * weight(4)[::-1]}
CALLS = [
    ("SkipLayerNormalization(x, skip, s)", "skip s"),
    ("SkipLayerNormalization(x, skip, s, shift)", "skip s shift"),
    ("SkipLayerNormalization(x, skip, s, shift, b)", "skip s shift b"),
    ("SkipLayerNormalization(x, skip, s, , b)", "skip s b"),
    ("SkipSimplifiedLayerNormalization(x, skip, s)", "skip s"),
    ("SkipSimplifiedLayerNormalization(x, skip, s, b)", "skip s b"),
]


@pytest.mark.parametrize(("call", "tuned"), CALLS)
def test_fused_with_the_residual_sum(call: str, tuned: str) -> None:
    body, shape = f"y = {FUSED}.{call}", (2, 3, 4)
    check_gradient(body, shape, SKIP, tuned=tuned, domain=FUSED, by_runtime=True)


@pytest.mark.parametrize(("call", "tuned"), CALLS)
def test_the_residual_sum_as_an_output_of_its_own(call: str, tuned: str) -> None:
    body, shape = f"n, , , t = {FUSED}.{call} y = Mul(n, t)", (2, 3, 4)
    check_gradient(body, shape, SKIP, tuned=tuned, domain=FUSED, by_runtime=True)


def test_the_residual_sum_alone() -> None:
    body = f"n, , , y = {FUSED}.SkipLayerNormalization(x, skip, s, shift, b)"
    check_gradient(body, (2, 3, 4), SKIP, tuned="skip b", domain=FUSED, by_runtime=True)


def test_instance_normalisation() -> None:
    weights = {"s": weight(3), "b": weight(3)}
    check_gradient("y = InstanceNormalization(x, s, b)", (2, 3, 4), weights, tuned="s b")


@pytest.mark.parametrize(("opset", "scales"), [(18, 2), (21, 4)])
def test_group_normalisation(opset: int, scales: int) -> None:
    weights = {"s": weight(scales), "b": weight(scales)}
    body = "y = GroupNormalization<num_groups = 2>(x, s, b)"
    check_gradient(body, (2, 4, 3), weights, tuned="s b", opset=opset, by_runtime=True)
