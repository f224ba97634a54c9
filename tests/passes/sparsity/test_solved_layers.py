"""Zeros set while layers are solved from front to back."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from helpers.oracle import ONE_THREAD, difference, outputs, traced
from helpers.solving import batches, images, mlp
from onnxprune.passes.sparsity.patterns import Pattern
from onnxprune.passes.sparsity.solved_layers import ZerosOnceSolved

from onnxprune.compensation.least_squares import LeastSquares, Settings
from onnxprune.surgery.editable_model import EditableModel

X = images(256, 8)


def solved(
    amounts: dict[str, float], settings: Settings | None = None
) -> tuple[EditableModel, LeastSquares]:
    subject = traced(mlp())
    full = EditableModel(subject.model.clone(), subject.coupling)
    zeros = ZerosOnceSolved(amounts, Pattern())
    feeds = batches({"x": X})
    solving = LeastSquares(
        full, subject.model, (), feeds, ONE_THREAD, settings=settings, finish=zeros
    )
    solving(full.model)
    return full, solving


def share_of_zeros(full: EditableModel, name: str) -> float:
    return float((full.coupling.facts.constants[name].numpy() == 0).mean())


def test_only_layers_with_an_amount_lose_weights() -> None:
    full, solving = solved({"b": 0.5})
    assert [share_of_zeros(full, name) for name in ("w1", "w2", "w3")] == [0, 0.5, 0]
    assert "b" in {one.node for one in solving.repairs if one.solved}


def test_without_amounts_nothing_changes() -> None:
    full, solving = solved({})
    assert solving.repairs == []
    made = ir.to_proto(full.model)
    assert difference(outputs(mlp(), {"x": X}), outputs(made, {"x": X})) == 0


def test_a_layer_of_too_many_unknowns_keeps_its_weights_and_says_so() -> None:
    full, solving = solved({"a": 0.5, "b": 0.5}, Settings(largest=10))
    assert [share_of_zeros(full, name) for name in ("w1", "w2")] == [0.5, 0]
    refused = {one.node: one.reason for one in solving.repairs if not one.solved}
    assert refused["b"] == "12 unknowns are more than 10"


def test_later_layers_are_fitted_to_what_is_left() -> None:
    """The means of every layer that is solved are those of the original."""
    full, _ = solved({"a": 0.5, "b": 0.5, "y": 0.5})
    wanted, found = (
        outputs(one, {"x": X})["y"].mean(axis=0) for one in (mlp(), ir.to_proto(full.model))
    )
    np.testing.assert_allclose(found, wanted, atol=1e-4)
