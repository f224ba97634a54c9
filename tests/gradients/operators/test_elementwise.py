from __future__ import annotations

import numpy as np
import pytest
from helpers.differences import check_gradient


def scalar(number: float) -> np.ndarray:
    return np.array(number, np.float32)


def weight(*shape: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(1).uniform(0.5, 2, shape), np.float32)


@pytest.mark.parametrize(
    "op",
    [
        *("Relu", "LeakyRelu", "LeakyRelu<alpha = 0.3>", "Elu<alpha = 0.7>", "Selu", "Abs"),
        *("Sigmoid", "Tanh", "Softplus", "Softsign", "Mish", "Exp", "Neg", "Sin", "Cos"),
        *("HardSigmoid", "HardSigmoid<alpha = 0.4>", "HardSwish", "Identity", "Dropout"),
    ],
)
def test_of_one_operand(op: str) -> None:
    check_gradient(f"y = {op}(x)", (2, 5))


@pytest.mark.parametrize("op", ["Log", "Sqrt", "Reciprocal"])
def test_of_one_positive_operand(op: str) -> None:
    check_gradient(f"y = {op}(x)", (2, 5), positive=True)


@pytest.mark.parametrize("op", ["Erf", "Gelu", 'Gelu<approximate = "tanh">'])
def test_of_the_error_function(op: str) -> None:
    check_gradient(f"y = {op}(x)", (2, 5), opset=20, by_runtime=True)


@pytest.mark.parametrize("op", ["Swish", "Swish<alpha = 1.3>"])
def test_swish(op: str) -> None:
    check_gradient(f"y = {op}(x)", (2, 5), opset=24, by_runtime=True)


@pytest.mark.parametrize("op", ["Gelu", "QuickGelu", "QuickGelu<alpha = 1.3>"])
def test_of_fused_activations(op: str) -> None:
    body = f"y = com.microsoft.{op}(x)"
    check_gradient(body, (2, 5), domain="com.microsoft", by_runtime=True)


def test_silu_as_exported() -> None:
    check_gradient("s = Sigmoid(x) y = Mul(x, s)", (2, 5))


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("operands", ["x, w", "w, x"])
@pytest.mark.parametrize(
    ("mine", "other"), [((2, 3, 4), (3, 1)), ((2, 1, 3), (2, 5, 3)), ((1, 3), (2, 4, 1))]
)
def test_of_operands_that_are_broadcast(
    op: str, operands: str, mine: tuple[int, ...], other: tuple[int, ...]
) -> None:
    body, weights = f"y = {op}({operands})", {"w": weight(*other)}
    check_gradient(body, mine, weights, tuned="w", positive=True)


@pytest.mark.parametrize("op", ["Sum", "Mean"])
def test_of_several_operands(op: str) -> None:
    weights = {"w": weight(4), "v": weight(3, 1)}
    check_gradient(f"y = {op}(w, x, v)", (2, 3, 4), weights, tuned="w v", by_runtime=True)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Sum", "Mean"])
def test_of_operands_that_both_depend_on_the_input(op: str) -> None:
    check_gradient(f"t = Tanh(x) y = {op}(x, t)", (2, 3))


@pytest.mark.parametrize("exponent", [2.0, 3.0, 0.5, -1.0])
def test_a_power_of_a_constant_exponent(exponent: float) -> None:
    check_gradient("y = Pow(x, p)", (2, 3), {"p": scalar(exponent)}, positive=True)


def test_what_is_clipped_has_no_gradient() -> None:
    limits = {"low": scalar(-0.5), "high": scalar(0.5)}
    check_gradient("y = Clip(x, low, high)", (3, 5), limits)


def test_a_slope_for_each_channel() -> None:
    check_gradient("y = PRelu(x, slope)", (2, 3, 4), {"slope": weight(3, 1)}, tuned="slope")


def test_where_gives_each_branch_its_places() -> None:
    body = "m = Greater(x, z) t = Tanh(x) e = Exp(x) y = Where(m, t, e)"
    check_gradient(body, (2, 5), {"z": scalar(0.1)})


@pytest.mark.parametrize("branches", ["x, w", "w, x"])
@pytest.mark.parametrize("shape", [(5,), (2, 1), ()])
def test_where_gives_a_weight_the_places_it_was_taken_at(
    branches: str, shape: tuple[int, ...]
) -> None:
    weights = {"z": scalar(0.1), "w": weight(*shape)}
    body = f"m = Greater(x, z) y = Where(m, {branches})"
    check_gradient(body, (2, 5), weights, tuned="w", by_runtime=True)


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_an_extreme_gives_to_the_operand_that_is_it(op: str) -> None:
    check_gradient(f"t = Neg(x) s = Cos(x) y = {op}(x, t, s)", (2, 5))


def test_a_cast_between_floats() -> None:
    body = "d = Cast<to = 11>(x) t = Tanh(d) y = Cast<to = 1>(t)"
    check_gradient(body, (2, 3), by_runtime=True)


def test_a_mask_made_of_the_activation_has_no_slope() -> None:
    body = "m = Greater(x, z) f = Cast<to = 1>(m) y = Mul(x, f)"
    check_gradient(body, (2, 5), {"z": scalar(0.1)}, by_runtime=True)
