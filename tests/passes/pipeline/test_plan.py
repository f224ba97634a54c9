"""The plan of a pipeline runs it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.solving import images, mlp

import onnxprune
from onnxprune.errors import InputError
from onnxprune.pruning.plan import Plan, PlannedStep

X = images(48, 8)
PASSES = [{"prune": {"target": {"macs": 0.6}}}, {"sparsify-weights": {"pattern": "2:4"}}]
QUICK: dict[str, Any] = {"threads": 1, "measure_latency": False}


def ran(*passes: Any, x: Any = X, **options: Any) -> onnxprune.PipelineResult:
    return onnxprune.run_pipeline(
        mlp(), list(passes), calibration={"x": x}, force=True, **QUICK, **options
    )


def written(folder: Path, result: onnxprune.PipelineResult) -> Path:
    path = folder / "plan.json"
    path.write_text(result.plan.to_json())
    return path


def rewrite(model: ir.Model) -> None:
    model.producer_name = "mine"


def test_it_gives_the_same_model_bit_for_bit(tmp_path: Path) -> None:
    first = ran(*PASSES, seed=3)
    plan = written(tmp_path, first)
    again = onnxprune.apply_pipeline(mlp(), plan, calibration={"x": X}, **QUICK)
    assert again.model.SerializeToString() == first.model.SerializeToString()
    assert again.plan.to_json() == plan.read_text()


def test_what_was_chosen_is_not_chosen_anew() -> None:
    first = ran(*PASSES)
    other = onnxprune.apply_pipeline(mlp(), first.plan, calibration={"x": images(48, 8) ** 3})
    removed = [{one["id"]: one["removed"] for one in p["groups"]} for p in _plans(first, other)]
    assert removed[0] == removed[1]
    assert any(removed[0].values())
    # the weights are solved anew on the samples there are
    assert other.model.SerializeToString() != first.model.SerializeToString()


def test_without_samples_a_plan_says_what_is_left_out() -> None:
    plan = ran(PASSES[0]).plan
    (step,) = onnxprune.apply_pipeline(mlp(), plan, **QUICK).steps
    assert step.notes == (
        "the plan was made with compensation least-squares; without samples there is none",
    )


def test_a_plan_of_two_prunings_refers_to_the_model_each_was_given() -> None:
    first = ran({"prune": {"target": {"macs": 0.8}}}, {"prune": {"target": {"macs": 0.5}}})
    again = onnxprune.apply_pipeline(mlp(), first.plan, calibration={"x": X}, **QUICK)
    assert again.model.SerializeToString() == first.model.SerializeToString()


def test_the_file_says_what_was_run() -> None:
    data = json.loads(ran(*PASSES, seed=3).plan.to_json())
    assert (data["format"], data["version"], data["seed"]) == ("onnxprune-plan", 1, 3)
    assert [one["pass"] for one in data["steps"]] == ["prune", "sparsify-weights"]
    prune, sparsify = data["steps"]
    assert prune["options"] == {"target": {"macs": 0.6}}
    assert Plan.from_dict(prune["plan"]).groups
    assert sparsify == {"pass": "sparsify-weights", "options": {"pattern": "2:4"}}


def test_another_model_is_refused() -> None:
    other = mlp()
    weights = next(one for one in other.graph.initializer if len(one.dims) == 2)
    values = onnx.numpy_helper.to_array(weights) * np.float32(2)
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    with pytest.raises(InputError, match="another model"):
        onnxprune.apply_pipeline(other, ran(*PASSES).plan, calibration={"x": X})


def test_plans_of_one_pruning_and_of_several_passes_are_read_by_one_class(tmp_path: Path) -> None:
    path = written(tmp_path, ran("sparsify-weights"))
    assert [step.name for step in Plan.load(path).steps] == ["sparsify-weights"]
    alone = onnxprune.prune(mlp(), target={"macs": 0.6}, threads=1, measure_latency=False)
    path.write_text(alone.plan.to_json())
    assert Plan.load(path) == alone.plan
    again = onnxprune.apply_pipeline(mlp(), path, threads=1, measure_latency=False)
    assert again.model.SerializeToString() == alone.model.SerializeToString()


def test_files_of_the_former_format_of_pipelines_are_read(tmp_path: Path) -> None:
    first = ran(*PASSES, seed=3)
    path = written(tmp_path, first)
    path.write_text(path.read_text().replace("onnxprune-plan", "onnxprune-pipeline", 1))
    assert Plan.load(path) == Plan.from_json(first.plan.to_json())
    again = onnxprune.apply_pipeline(mlp(), path, calibration={"x": X}, **QUICK)
    assert again.model.SerializeToString() == first.model.SerializeToString()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "has version 2, this onnxprune reads 1"),
        ({"steps": [{"pass": "prune"}]}, "is not a complete plan"),
        ({"steps": 3}, "is not a complete plan"),
        ({"seed": None}, "is not a complete plan"),
        ({"format": "other"}, "is no plan of onnxprune"),
    ],
)
def test_damaged_plans_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = written(tmp_path, ran("sparsify-weights"))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=words):
        Plan.load(path)


def test_an_unknown_pass_is_named(tmp_path: Path) -> None:
    plan = ran("sparsify-weights").plan
    damaged = Plan(plan.model, steps=(PlannedStep("sparsify"),))
    with pytest.raises(InputError, match=r"plan: pass 1: .*did you mean 'sparsify-weights'"):
        onnxprune.apply_pipeline(mlp(), damaged)


def test_what_no_file_can_hold_is_named() -> None:
    with pytest.raises(InputError, match="rewrite was given as an object"):
        ran(rewrite).plan.to_json()
    step = PlannedStep("mine.py:tidy", {"how": {"names": [rewrite]}})
    with pytest.raises(InputError, match=r"the option how of the pass mine\.py:tidy"):
        step.to_dict()


def test_options_that_no_file_can_hold_are_not_needed_with_a_plan() -> None:
    labels = np.zeros(48, np.int64)
    pruning = {"prune": {"target": {"macs": 0.6}, "labels": labels}}
    step, _ = json.loads(ran(pruning, "remove-lossless").plan.to_json())["steps"]
    assert step["options"] == {"target": {"macs": 0.6}}


def test_the_plan_of_one_pruning_is_that_of_prune() -> None:
    alone = onnxprune.prune(mlp(), calibration={"x": X}, target={"macs": 0.6}, **QUICK)
    assert ran({"prune": {"target": {"macs": 0.6}}}).plan == alone.plan


def test_options_are_written_as_data() -> None:
    given = {"path": Path("a/b"), "sizes": (1, 2), "shares": {"macs": 0.5}, "none": None}
    assert PlannedStep("any", given).to_dict()["options"] == {
        "path": str(Path("a/b")),
        "sizes": [1, 2],
        "shares": {"macs": 0.5},
        "none": None,
    }


def _plans(*results: onnxprune.PipelineResult) -> list[Any]:
    return [one.steps[0].plan for one in results]
