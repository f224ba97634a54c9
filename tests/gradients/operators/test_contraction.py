from __future__ import annotations

import numpy as np
import pytest
from helpers.differences import check_gradient


def weight(*shape: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(1).standard_normal(shape), np.float32)


WINDOWS = [
    "",
    "<strides = [2, 2]>",
    "<pads = [1, 1, 1, 1]>",
    "<strides = [2, 1], pads = [1, 0, 0, 2]>",
    "<dilations = [2, 1], pads = [1, 1, 1, 1], strides = [2, 2]>",
    '<auto_pad = "SAME_UPPER", strides = [2, 2]>',
    '<auto_pad = "SAME_LOWER", strides = [2, 2]>',
    '<auto_pad = "VALID", strides = [3, 2]>',
    "<strides = [3, 3]>",
]


CHANNELS = [4, 9]
"""Few and many of them go different ways."""


@pytest.mark.parametrize("given", WINDOWS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_convolution(given: str, channels: int) -> None:
    weights = {"w": weight(3, channels, 3, 2), "b": weight(3)}
    body, shape = f"y = Conv{given}(x, w, b)", (2, channels, 6, 7)
    check_gradient(body, shape, weights, tuned="w b", by_runtime=channels > 4)


@pytest.mark.parametrize("given", WINDOWS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_transposed_convolution(given: str, channels: int) -> None:
    body = f"y = ConvTranspose{given}(x, w, b)"
    weights = {"w": weight(4, channels, 3, 2), "b": weight(channels)}
    # the reference evaluator takes a second for these
    check_gradient(body, (2, 4, 3, 4), weights, tuned="w b", by_runtime=True)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("given", ["", "<strides = [2]>", "<strides = [3], pads = [1, 0]>"])
@pytest.mark.parametrize("size", [5, 20])
@pytest.mark.parametrize("channels", CHANNELS)
def test_a_kernel_of_one_tap(op: str, given: str, size: int, channels: int) -> None:
    shape = (3, channels, 1) if op == "Conv" else (channels, 3, 1)
    body, weights = f"y = {op}{given}(x, w)", {"w": weight(*shape)}
    check_gradient(body, (2, channels, size), weights, tuned="w", by_runtime=True)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("group", [2, 4])
@pytest.mark.parametrize("given", ["", "strides = [2], ", "dilations = [2], pads = [1, 2], "])
@pytest.mark.parametrize("size", [6, 40])
def test_groups_of_channels(op: str, group: int, given: str, size: int) -> None:
    made = 3 if op == "ConvTranspose" else 8 if group == 4 else 6
    shape = (4, made, 3) if op == "ConvTranspose" else (made, 4 // group, 3)
    body = f"y = {op}<{given}group = {group}>(x, w)"
    check_gradient(body, (2, 4, size), {"w": weight(*shape)}, tuned="w", by_runtime=True)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("given", ["", "<pads = [2, 0]>", "<dilations = [2], pads = [1, 2]>"])
def test_many_positions(op: str, given: str) -> None:
    body, weights = f"y = {op}{given}(x, w)", {"w": weight(4, 4, 3)}
    check_gradient(body, (2, 4, 60), weights, tuned="w", by_runtime=True)


@pytest.mark.parametrize("channels", [2, 8])
def test_convolution_of_three_axes(channels: int) -> None:
    body = "y = Conv<strides = [1, 2, 1], pads = [0, 1, 0, 0, 0, 1]>(x, w)"
    weights = {"w": weight(2, channels, 1, 2, 2)}
    check_gradient(body, (1, channels, 2, 4, 3), weights, tuned="w")


@pytest.mark.parametrize("given", WINDOWS)
def test_a_computed_kernel(given: str) -> None:
    body = f"y = Conv{given}(w, x)"
    check_gradient(body, (3, 4, 3, 2), {"w": weight(2, 4, 6, 7)})


def test_computed_kernels_of_groups_and_biases() -> None:
    check_gradient("y = Conv<group = 2>(w, x)", (6, 2, 3), {"w": weight(2, 4, 6)})
    check_gradient("y = Conv(w, k, x)", (5,), {"w": weight(2, 4, 6), "k": weight(5, 4, 3)})


@pytest.mark.parametrize(("group", "made"), [(2, 6), (4, 4)])
def test_grouped_convolution(group: int, made: int) -> None:
    body = f"y = Conv<group = {group}, pads = [1, 1], strides = [2]>(x, w)"
    check_gradient(body, (2, 4, 6), {"w": weight(made, 4 // group, 3)}, tuned="w")


@pytest.mark.parametrize(
    "given", ["output_padding = [1], pads = [1, 0]", "output_shape = [11]", "pads = [0, 1]"]
)
def test_grouped_transposed_convolution(given: str) -> None:
    body = f"y = ConvTranspose<group = 2, strides = [2], {given}>(x, w)"
    check_gradient(body, (2, 4, 5), {"w": weight(4, 3, 3)}, tuned="w", by_runtime=True)


@pytest.mark.parametrize("channels", CHANNELS)
def test_a_transposed_convolution_of_a_given_extent(channels: int) -> None:
    given = "strides = [2], output_padding = [1], pads = [1, 0]"
    body = f"y = ConvTranspose<{given}>(x, w)"
    check_gradient(body, (2, 4, 5), {"w": weight(4, channels, 3)}, tuned="w", by_runtime=True)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("second", [0, 1])
@pytest.mark.parametrize("operands", ["x, w", "w, x"])
def test_gemm(first: int, second: int, operands: str) -> None:
    left = operands == "x, w"
    inner = 3 if (first if left else not second) else 4
    shape = (inner, 5) if (not second if left else first) else (5, inner)
    body = f"y = Gemm<alpha = 0.5, transA = {first}, transB = {second}>({operands})"
    check_gradient(body, (3, 4), {"w": weight(*shape)}, tuned="w")


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 1), (3, 5), (1,), ()])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_the_bias_of_gemm(shape: tuple[int, ...], beta: float) -> None:
    weights = {"w": weight(4, 5), "b": weight(*shape)}
    check_gradient(f"y = Gemm<beta = {beta}>(x, w, b)", (3, 4), weights, tuned="w b")


def test_gemm_with_a_computed_summand() -> None:
    body = "y = Gemm<beta = 0.5>(a, b, x)"
    check_gradient(body, (1, 4), {"a": weight(3, 2), "b": weight(2, 4)})


@pytest.mark.parametrize(
    ("operands", "mine", "other"),
    [
        ("x, w", (2, 3, 4), (4, 5)),
        ("x, w", (2, 1, 3, 4), (5, 4, 2)),
        ("x, w", (2, 2, 3, 4), (4, 2)),
        ("x, w", (3, 4), (2, 4, 5)),
        ("w, x", (1, 4, 3), (2, 5, 4)),
        ("w, x", (2, 4, 3), (5, 4)),
    ],
)
def test_stacks_of_matrices(operands: str, mine: tuple[int, ...], other: tuple[int, ...]) -> None:
    check_gradient(f"y = MatMul({operands})", mine, {"w": weight(*other)}, tuned="w")


@pytest.mark.parametrize(
    ("mine", "other"), [((2, 3, 4), (4,)), ((4,), (2, 4, 5)), ((4,), (4,)), ((2, 4), (4,))]
)
def test_a_product_with_a_vector(mine: tuple[int, ...], other: tuple[int, ...]) -> None:
    check_gradient("y = MatMul(x, w)", mine, {"w": weight(*other)}, tuned="w")
    if len(mine) == 1:
        check_gradient("y = MatMul(w, x)", (4,), {"w": weight(3, 4)}, tuned="w")


def test_a_product_of_two_activations() -> None:
    check_gradient("t = Transpose<perm = [0, 2, 1]>(x) y = MatMul(x, t)", (2, 3, 4))


@pytest.mark.parametrize(
    ("equation", "mine", "other"),
    [
        ("bij,jk->bik", (2, 3, 4), (4, 5)),
        ("bhid,bhjd->bhij", (1, 2, 3, 4), (1, 2, 5, 4)),
        ("bij,jk", (2, 3, 4), (4, 5)),
        ("bij,k->bk", (2, 3, 4), (5,)),
        ("...j,jk->...k", (2, 3, 4), (4, 5)),
        ("...ij,...jk", (2, 3, 4), (2, 4, 5)),
        ("b...j,...j->b...", (2, 3, 4), (3, 4)),
    ],
)
def test_einsum(equation: str, mine: tuple[int, ...], other: tuple[int, ...]) -> None:
    weights = {"w": weight(*other)}
    check_gradient(f'y = Einsum<equation = "{equation}">(x, w)', mine, weights, tuned="w")
    left, right = equation.partition("->")[0].split(",")
    turned = equation.replace(f"{left},{right}", f"{right},{left}", 1)
    check_gradient(f'y = Einsum<equation = "{turned}">(w, x)', mine, weights, tuned="w")
