"""Second-order elimination: what is left makes up for what goes."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx_ir as ir
import pytest
from helpers.oracle import difference, outputs, traced
from helpers.solving import CONTEXT, batches, images, mlp
from numpy.typing import NDArray

from onnxprune.compensation.least_squares import LeastSquares, Refit, Settings
from onnxprune.passes.sparsity.patterns import Pattern, parse_pattern
from onnxprune.passes.sparsity.second_order import ZerosOnceSolved, sparse_weights
from onnxprune.surgery.editable_model import EditableModel

PATTERNS = ["unstructured", "2:4", "4:8", "2x1", "1x4", "3x8"]


def problem(inputs: int, outputs: int = 6) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights, and the covariance of strongly correlated inputs."""
    rng = np.random.default_rng(inputs)
    mixed = rng.standard_normal((inputs, inputs)) @ np.diag(np.linspace(0.1, 3, inputs))
    return rng.standard_normal((outputs, inputs)), mixed @ mixed.T / inputs


def damped(covariance: NDArray[np.float64], damping: float) -> NDArray[np.float64]:
    return covariance + damping * np.diagonal(covariance).mean() * np.eye(len(covariance))


def error(lost: NDArray[np.float64], covariance: NDArray[np.float64]) -> float:
    """Mean squared error of the outputs where weights differ by this much."""
    return float(np.einsum("od,de,oe->", lost, covariance, lost))


def best_at(
    stays: NDArray[np.bool_], weight: NDArray[np.float64], covariance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The least-squares solution, output by output, where only some weights may differ from 0."""
    best = np.zeros_like(weight)
    for row, kept in enumerate(stays):
        right = (covariance @ weight[row])[kept]
        best[row, kept] = np.linalg.solve(covariance[np.ix_(kept, kept)], right)
    return best


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("inputs", [16, 300])
def test_zeros_lie_as_the_pattern_says(pattern: str, inputs: int) -> None:
    weight, covariance = problem(inputs)
    how = parse_pattern(pattern)
    stays = sparse_weights(weight, covariance, how, 0.5) != 0
    np.testing.assert_array_equal(stays, how.mask(stays.astype(float), 0.5))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_stays_is_the_least_squares_solution(pattern: str) -> None:
    weight, covariance = problem(16)
    made = sparse_weights(weight, covariance, parse_pattern(pattern), 0.5, damping=0.1)
    wanted = best_at(made != 0, weight, damped(covariance, 0.1))
    np.testing.assert_allclose(made, wanted, atol=1e-5)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_with_many_inputs_no_other_weights_with_these_zeros_do_better(pattern: str) -> None:
    weight, covariance = problem(300)
    curvature = damped(covariance, 0.01)
    made = sparse_weights(weight, covariance, parse_pattern(pattern), 0.5, damping=0.01)
    least = error(weight - best_at(made != 0, weight, curvature), curvature)
    assert least <= error(weight - made, curvature) <= 1.001 * least
    assert error(weight - made, curvature) <= error(weight * (made == 0), curvature)


def test_the_first_to_go_is_the_one_that_those_behind_make_up_for_best() -> None:
    weight, covariance = problem(6, outputs=1)

    def cost(gone: int) -> float:
        """Error when inputs behind are solved for and those in front stay as they are."""
        behind = np.arange(6) > gone
        moved = np.where(np.arange(6) == gone, -weight, 0.0)
        right = -(moved @ covariance)[0, behind]
        if behind.any():
            moved[0, behind] = np.linalg.solve(covariance[np.ix_(behind, behind)], right)
        return error(moved, covariance)

    made = sparse_weights(weight, covariance, Pattern(), 1 / 6, damping=0.0)
    assert np.flatnonzero(made[0] == 0).tolist() == [min(range(6), key=cost)]


def test_inputs_that_come_twice_lose_one_of_each_pair_and_nothing_else() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 16))
    doubled = np.tile(np.eye(8) + 0.5, (2, 2))
    damping = 1e-8
    made = sparse_weights(weight, doubled, Pattern(), 0.5, damping)
    assert (made[:, :8] == 0).all()
    # each second one taking both weights costs nothing but what damping makes of it
    moved = np.concatenate([-weight[:, :8], weight[:, :8]], axis=1)
    assert error(weight - made, doubled) <= error(moved, damped(doubled, damping)) * (1 + 1e-6)
    assert error(moved, doubled) < 1e-9


def test_inputs_without_correlation_lose_the_weights_that_give_least() -> None:
    weight = np.random.default_rng(0).standard_normal((2, 4))
    covariance = np.diag([4.0, 1.0, 0.25, 9.0])
    masks = [np.reshape(one, (2, 4)) for one in product([0, 1], repeat=8) if sum(one) == 4]
    least = min(error(weight * (1 - mask), covariance) for mask in masks)
    made = sparse_weights(weight, covariance, Pattern(), 0.5, damping=0.0)
    assert error(weight - made, covariance) == pytest.approx(least)


def test_inputs_that_never_change_break_nothing() -> None:
    weight, covariance = problem(12)
    covariance[3] = covariance[:, 3] = 0
    assert np.isfinite(sparse_weights(weight, covariance, Pattern(), 0.5)).all()
    assert np.isfinite(sparse_weights(weight, np.zeros((12, 12)), Pattern(), 0.5)).all()


def test_a_covariance_that_rounding_made_indefinite_breaks_nothing() -> None:
    weight, covariance = problem(12)
    covariance[:3, :3] -= 1.1 * covariance[:3, :3]
    made = sparse_weights(weight, covariance, Pattern(), 0.5)
    assert np.isfinite(made).all()
    assert np.count_nonzero(made) == weight.size / 2


X = images(256, 8)


def solved(
    amounts: dict[str, float], settings: Settings | None = None
) -> tuple[EditableModel, Refit]:
    subject = traced(mlp())
    full = EditableModel(subject.model.clone(), subject.coupling)
    zeros = ZerosOnceSolved(amounts, Pattern())
    feeds = batches({"x": X})
    return full, LeastSquares(full, subject.model, feeds, CONTEXT, settings, zeros).fit()


def share_of_zeros(full: EditableModel, name: str) -> float:
    return float((full.coupling.facts.constants[name].numpy() == 0).mean())


def test_only_layers_with_an_amount_lose_weights() -> None:
    full, refit = solved({"b": 0.5})
    assert [share_of_zeros(full, name) for name in ("w1", "w2", "w3")] == [0, 0.5, 0]
    assert "b" in {one.node for one in refit.layers if one.solved}


def test_without_amounts_nothing_changes() -> None:
    full, refit = solved({})
    assert not refit.layers
    made = ir.to_proto(full.model)
    assert difference(outputs(mlp(), {"x": X}), outputs(made, {"x": X})) == 0


def test_a_layer_of_too_many_unknowns_keeps_its_weights_and_says_so() -> None:
    full, refit = solved({"a": 0.5, "b": 0.5}, Settings(largest=10))
    assert [share_of_zeros(full, name) for name in ("w1", "w2")] == [0.5, 0]
    refused = {one.node: one.reason for one in refit.layers if not one.solved}
    assert refused["b"] == "12 unknowns are more than 10"


def test_later_layers_are_fitted_to_what_is_left() -> None:
    """The means of every layer that is solved are those of the original."""
    full, _ = solved({"a": 0.5, "b": 0.5, "y": 0.5})
    wanted, found = (
        outputs(one, {"x": X})["y"].mean(axis=0) for one in (mlp(), ir.to_proto(full.model))
    )
    np.testing.assert_allclose(found, wanted, atol=1e-4)
