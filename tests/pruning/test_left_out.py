"""What statistics, rewriting and judgement leave out is said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.paths import MODELS
from numpy.typing import NDArray
from onnx import helper

import onnxprune
from onnxprune import PruneResult
from onnxprune.calibration.batches import load_held_batches


def samples(name: str) -> dict[str, NDArray[Any]]:
    archive = np.load(MODELS / f"{name}_calibration.npz")
    return {key: archive[key][:64] for key in archive.files}


def pruned(proto: onnx.ModelProto, name: str, criterion: str = "l2") -> PruneResult:
    return onnxprune.prune(
        proto, calibration=samples(name), target={"macs": 0.6}, measure_latency=False, threads=1
    )


def answers_only(*, scores: bool) -> onnx.ModelProto:
    """A classifier that returns the best class, and its scores or not."""
    proto = onnx.load(MODELS / "digits_mlp.onnx")
    probabilities = proto.graph.output[1]
    best = helper.make_node("ArgMax", [probabilities.name], ["best"], axis=1, keepdims=0)
    proto.graph.node.append(best)
    answers = helper.make_tensor_value_info("best", onnx.TensorProto.INT64, ["N"])
    kept = [probabilities, answers] if scores else [answers]
    del proto.graph.output[:]
    proto.graph.output.extend(kept)
    return proto


def test_outputs_that_no_allocation_is_judged_by() -> None:
    report = pruned(answers_only(scores=True), "digits_mlp", "reconstruction").report
    assert report.unmeasured == ("best",)
    assert not [text for text in report.warnings if "allocations" in text]


def test_no_output_that_tells_allocations_apart_is_a_warning() -> None:
    report = pruned(answers_only(scores=False), "digits_mlp", "reconstruction").report
    assert set(report.trials.values()) == {0.0}
    (warning,) = (text for text in report.warnings if "allocations" in text)
    assert "no output of the model is of floating point" in warning
    assert "--labels" in warning


def test_samples_that_do_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def few(*arguments: Any) -> Sequence[Any]:
        return load_held_batches(*arguments)[:3]

    monkeypatch.setattr("onnxprune.pruning.workspace.load_held_batches", few)
    report = pruned(onnx.load(MODELS / "digits_resnet.onnx"), "digits_resnet").report
    assert "layers are fitted on 48 of the 64 samples" in report.note


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("compensation.lossless.remove", "units that no output seems to need are kept in"),
        ("compensation.components.align", "units are not made into components in"),
    ],
)
def test_groups_that_are_not_rewritten(
    monkeypatch: pytest.MonkeyPatch, module: str, said: str
) -> None:
    """As if the outputs differed without their units, or with components."""

    def none_agree(_: Any, groups: Sequence[str], *__: Any) -> tuple[list[str], tuple[str, ...]]:
        return [], tuple(groups)

    monkeypatch.setattr(f"onnxprune.{module}.agreeing_groups", none_agree)
    result = pruned(onnx.load(MODELS / "digits_transformer.onnx"), "digits_transformer")
    assert said in result.report.note
    assert "the outputs would differ" in result.report.note
