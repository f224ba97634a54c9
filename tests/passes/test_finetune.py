"""Weights are trained to answer as a teacher does; the graph stays, the best check-point wins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers.paths import MODELS
from helpers.reducing import graph, shapes, weights
from numpy.typing import NDArray

import onnxprune
from onnxprune.errors import CalibrationError, CollapseError, InputError, NothingPrunable

RESNET, SAMPLES, TEST = (
    MODELS / f"digits_resnet{end}" for end in (".onnx", "_calibration.npz", "_test.npz")
)
CUT = {"compensate": "none", "allocation": "uniform"}
QUICK: dict[str, Any] = {"threads": 1, "measure_latency": False}
BODY = "h = Gemm (x, a, b) r = Relu (h) y = Gemm (r, c, d)"
SIGNATURE = "(float[N, 8] x) => (float[N, 3] y)"


def network(width: int, seed: int = 0, scale: float = 0.3) -> onnx.ModelProto:
    """A layer with so many hidden units between 8 inputs and 3 outputs."""
    made = weights(seed, a=(8, width), b=(width,), c=(width, 3), d=(3,))
    return graph(SIGNATURE, BODY, {name: scale * value for name, value in made.items()})


def inputs(count: int = 128) -> dict[str, NDArray[np.float32]]:
    return {"x": np.random.default_rng(1).standard_normal((count, 8)).astype(np.float32)}


def finetuned(model: Any = None, **options: Any) -> onnxprune.PruneResult:
    options = {"calibration": inputs(), "teacher": network(16, seed=1), "effort": 4, **options}
    return onnxprune.finetune(network(6) if model is None else model, **QUICK, **options)


def tuning_of(result: onnxprune.PruneResult, step: int = -1) -> Any:
    tuning = result.steps[step].tuning
    assert tuning is not None
    return tuning


def agreement(first: Any, second: Any) -> float:
    """Share of test images for which two models name the same digit."""
    with np.load(TEST) as file:
        images = file["images"]
    answers = [
        ort.InferenceSession(each, providers=["CPUExecutionProvider"]).run(
            None, {"images": images}
        )[0]
        for each in (first, second)
    ]
    return float(np.mean(answers[0].argmax(1) == answers[1].argmax(1)))


@pytest.fixture(scope="module")
def samples() -> dict[str, NDArray[np.float32]]:
    with np.load(SAMPLES) as file:
        return {"images": file["images"][:160]}


@pytest.fixture(scope="module")
def small(samples: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A network that lost much and was not made up for, and the plan of that."""
    folder = tmp_path_factory.mktemp("small")
    result = onnxprune.prune(
        RESNET, calibration=samples, target={"macs": 0.5}, **CUT, force=True, **QUICK
    )
    result.save(folder / "small.onnx")
    (folder / "plan.json").write_text(result.plan.to_json())
    return folder / "small.onnx", folder / "plan.json"


def test_a_pruned_model_answers_as_its_original_again(
    small: tuple[Path, Path], samples: Any, tmp_path: Path
) -> None:
    options = {"calibration": samples, "teacher": RESNET, "pruning": small[1], "effort": 12}
    result = onnxprune.finetune(small[0], **options, **QUICK)
    result.save(tmp_path / "tuned.onnx")
    tuning = tuning_of(result)
    assert tuning.after < 0.5 * tuning.before
    assert (tuning.before, tuning.after) == (
        tuning.points[0].held_out,
        min(point.held_out for point in tuning.points),
    )
    before, after = (agreement(RESNET, each) for each in (small[0], tmp_path / "tuned.onnx"))
    assert after > before + 0.05
    # the graph is as it was, all weights moved
    models = [onnx.load(each) for each in (small[0], tmp_path / "tuned.onnx")]
    assert shapes(models[0]) == shapes(models[1])
    assert [node.op_type for node in models[0].graph.node] == [
        node.op_type for node in models[1].graph.node
    ]
    assert all(tuning.moved[name] > 0 for name in shapes(models[0]) if name in tuning.moved)
    assert len(tuning.moved) > 10


def test_the_plan_says_which_units_inside_can_be_compared(
    small: tuple[Path, Path], samples: Any
) -> None:
    compared = [
        tuning_of(
            onnxprune.finetune(
                small[0], calibration=samples, teacher=RESNET, effort=1, force=True, **more, **QUICK
            )
        ).features
        for more in ({}, {"pruning": small[1]})
    ]
    assert len(compared[0]) < len(compared[1])


def test_in_a_pipeline_the_original_is_the_teacher(samples: Any, small: tuple[Path, Path]) -> None:
    prune = {"target": {"macs": 0.5}, **CUT}
    steps = [{"prune": prune}, {"finetune": {"effort": 12}}]
    result = onnxprune.run_pipeline(RESNET, steps, calibration=samples, force=True, **QUICK)
    tuning = tuning_of(result)
    assert tuning.teacher == "the original"
    assert tuning.after < 0.5 * tuning.before
    agreements = [step.outputs[0].agreement for step in result.steps]
    assert agreements[0] < agreements[1]
    # what was cut is known from the pass before
    alone = onnxprune.finetune(
        small[0], calibration=samples, teacher=RESNET, pruning=small[1], effort=12, **QUICK
    )
    assert tuning_of(alone).features == tuning.features
    assert tuning_of(alone).after == pytest.approx(tuning.after, rel=1e-3)


def test_a_teacher_of_another_size() -> None:
    result = finetuned(effort=40, force=True)
    tuning = tuning_of(result)
    assert tuning.after < 0.5 * tuning.before
    assert tuning.teacher == "a model in memory"
    # answers are compared with the teacher's
    assert result.steps[0].outputs[0].kappa > 0.6


def test_same_bytes_twice_and_other_bytes_for_another_seed() -> None:
    first, second, other = (finetuned(seed=seed, force=True) for seed in (0, 0, 1))
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert first.model.SerializeToString() != other.model.SerializeToString()


def test_the_plan_gives_the_same_bytes_without_looking_for_a_rate(tmp_path: Path) -> None:
    teacher, plan = tmp_path / "teacher.onnx", tmp_path / "plan.json"
    onnx.save(network(16, seed=1), teacher)
    first = finetuned(teacher=teacher, augment=(), effort=8, force=True)
    plan.write_text(first.plan.to_json())
    again = onnxprune.apply(network(6), plan, calibration=inputs(), **QUICK)
    assert again.model.SerializeToString() == first.model.SerializeToString()
    assert tuning_of(first).probes
    assert not tuning_of(again).probes
    assert again.plan.to_json() == plan.read_text()


def test_a_plan_cannot_hold_a_teacher_in_memory(tmp_path: Path) -> None:
    first = finetuned(force=True)
    plan = tmp_path / "plan.json"
    plan.write_text(first.plan.to_json())
    with pytest.raises(InputError, match=r"option teacher as an object of Python.* as a path"):
        onnxprune.apply(network(6), plan, calibration=inputs(), **QUICK)
    again = onnxprune.apply(network(6), first.plan, calibration=inputs(), **QUICK)
    assert again.model.SerializeToString() == first.model.SerializeToString()


def test_the_start_is_kept_where_nothing_is_better() -> None:
    model = network(6)
    # nobody is nearer to itself than it is
    result = finetuned(model, teacher=network(6))
    assert result.model.graph.initializer == model.graph.initializer
    assert not result.steps[0].modified
    assert tuning_of(result).best == 0
    assert tuning_of(result).after == tuning_of(result).before == 0
    assert any("no check-point was better" in note for note in result.steps[0].notes)


def test_a_model_without_teacher_and_labels_has_nothing_to_learn() -> None:
    model = network(6)
    result = finetuned(model, teacher=None)
    assert result.model.graph.initializer == model.graph.initializer
    assert "own teacher" in result.steps[0].notes[0]
    assert result.steps[0].tuning is None


def test_labels_are_learnt_beside_the_teacher_and_without_one() -> None:
    samples = inputs()
    # what no model here says of itself
    labels = (samples["x"][:, 0] > 0).astype(np.int64)
    for teacher, learnt in ((network(16, seed=1), ("teacher", "labels")), (None, ("labels",))):
        result = finetuned(teacher=teacher, labels=labels, effort=30, force=True)
        tuning, quality = tuning_of(result), result.steps[0].quality
        assert tuning.learnt == learnt
        assert tuning.after < tuning.before
        assert quality is not None
        assert (quality.measure, quality.held_out, quality.samples) == ("accuracy", True, 32)
        assert quality.result > quality.original
    # better than before by the labels: that answers are others is what was asked for
    assert finetuned(teacher=None, labels=labels, effort=30).steps[0].modified


def test_labels_for_a_metric_alone_are_not_learnt() -> None:
    def share(outputs: Any, labels: Any) -> float:
        return float(np.mean([text == "yes" for text in labels]))

    texts = ["yes", "no"] * 64
    result = finetuned(labels=texts, metric=share, force=True)
    assert tuning_of(result).learnt == ("teacher",)
    assert result.steps[0].quality is not None
    assert "own teacher" in finetuned(teacher=None, labels=texts, metric=share).steps[0].notes[0]


def test_a_loss_of_gradients_alone_is_judged_by_the_teacher() -> None:
    def squared(outputs: Any, targets: Any) -> dict[str, Any]:
        return {"y": outputs["y"] - targets}

    targets = np.zeros((128, 3), np.float32)
    tuning = tuning_of(finetuned(labels=targets, loss=squared, effort=8, force=True))
    assert tuning.learnt == ("teacher", "labels")
    assert tuning.after < tuning.before


def stopping(at: str, part: float) -> Any:
    """Progress that is interrupted in a loop of some name, after a part of its items."""

    def progress(items: Iterable[Any], what: str, total: int | None = None) -> Iterator[Any]:
        for number, item in enumerate(items):
            if what == at and total is not None and number >= part * total:
                raise KeyboardInterrupt
            yield item

    return progress


def test_stopping_keeps_the_best_so_far_and_the_plan_repeats_it() -> None:
    result = finetuned(effort=8, progress=stopping("fine-tuning", 0.5), force=True)
    tuning = tuning_of(result)
    assert 0 < tuning.best <= tuning.stopped < tuning.steps
    assert tuning.after < tuning.before
    assert any("stopped after" in note for note in result.steps[0].notes)
    again = onnxprune.apply(network(6), result.plan, calibration=inputs(), **QUICK)
    assert again.model.SerializeToString() == result.model.SerializeToString()


def test_stopping_before_a_rate_is_found_keeps_the_start() -> None:
    model = network(6)
    progress = stopping("finding the learning rate", 0.5)
    result = finetuned(model, progress=progress, force=True)
    assert result.model.graph.initializer == model.graph.initializer
    assert tuning_of(result).stopped == 0


def test_answers_that_do_not_follow_the_teacher_are_refused() -> None:
    with pytest.raises(CollapseError, match="no longer follow"):
        finetuned(effort=1)
    assert "no longer follow" in finetuned(effort=1, force=True).steps[0].warnings[-1]


def test_tables_of_embeddings_stay_unless_they_are_asked_for() -> None:
    values = weights(e=(9, 6), c=(6, 3))
    signature, body = "(int64[N] x) => (float[N, 3] y)", "h = Gather (e, x) y = MatMul (h, c)"
    model, teacher = (
        graph(signature, body, {name: scale * value for name, value in values.items()})
        for scale in (1.0, 1.5)
    )
    samples = {"x": np.random.default_rng(0).integers(0, 9, 64)}
    moved = [
        set(tuning_of(finetuned(model, teacher=teacher, calibration=samples, **more)).moved)
        for more in ({}, {"embeddings": True})
    ]
    assert moved == [{"c"}, {"c", "e"}]


def test_the_report_has_the_course(tmp_path: Path) -> None:
    result = finetuned(force=True)
    (step,) = result.to_dict()["steps"]
    tuning = step["tuning"]
    assert tuning["points"][0] == {"step": 0, "fitted": None, "held_out": tuning["before"]}
    assert tuning["points"][-1]["step"] == tuning["steps"]
    assert {"rate", "probes", "moved", "frozen", "features", "samples", "batch"} <= tuning.keys()
    page = result.to_html()
    for text in ("Fine-tuning report", "held out", "trained on", "moved by"):
        assert text in page


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"teacher": "nowhere.onnx"}, InputError, "teacher nowhere.onnx: no such file"),
        (
            {
                "teacher": graph(
                    "(float[N, 8] z) => (float[N, 3] y)", "y = MatMul (z, c)", weights(c=(8, 3))
                )
            },
            InputError,
            "has the inputs z, the model x",
        ),
        (
            {
                "teacher": graph(
                    "(float[N, 8] x) => (float[N, 4] y)", "y = MatMul (x, c)", weights(c=(8, 4))
                )
            },
            InputError,
            r"has y as float \[\?, 4\], the model as float \[\?, 3\]",
        ),
        ({"calibration": inputs(3)}, CalibrationError, "too few samples"),
        ({"calibration": None}, InputError, "give --calibration"),
        ({"labels": [0, 1, 2], "loss": "cross-entropy"}, InputError, "3 labels for 128 samples"),
        ({"effort": "much"}, InputError, "effort must be"),
        ({"augment": ["turn"]}, InputError, "augment must be"),
        ({"loss": "nonsense"}, InputError, "unknown loss 'nonsense'"),
        ({"metric": "nonsense"}, InputError, "nonsense"),
    ],
)
def test_what_cannot_be_used_is_named(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        finetuned(**options)


def test_a_teacher_that_fixes_its_batch() -> None:
    proto = network(16, seed=1)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    with pytest.raises(InputError, match="does not run on the samples, 2 at a time"):
        finetuned(teacher=proto)


def test_half_precision_is_trained_in_single_and_stays_half() -> None:
    signature = "(float16[N, 8] x) => (float16[N, 3] y)"
    model, teacher = (
        graph(
            signature,
            BODY,
            {
                name: (0.3 * value).astype(np.float16)
                for name, value in weights(seed, a=(8, 6), b=(6,), c=(6, 3), d=(3,)).items()
            },
        )
        for seed in (0, 1)
    )
    samples = {"x": inputs()["x"].astype(np.float16)}
    result = finetuned(model, teacher=teacher, calibration=samples, effort=20, force=True)
    assert tuning_of(result).after < tuning_of(result).before
    kinds = {tensor.data_type for tensor in result.model.graph.initializer}
    assert kinds == {onnx.TensorProto.FLOAT16}


def test_a_plan_for_another_model_than_the_teacher(small: tuple[Path, Path], samples: Any) -> None:
    with pytest.raises(InputError, match="another model than the teacher"):
        onnxprune.finetune(
            small[0], calibration=samples, teacher=small[0], pruning=small[1], **QUICK
        )


def test_nothing_to_tune() -> None:
    signature, body = "(float[N, 8] x) => (float[N, 8] y)", "y = Relu (x)"
    teacher = graph(signature, "y = Tanh (x)", {})
    with pytest.raises(NothingPrunable, match="nothing can be fine-tuned"):
        finetuned(graph(signature, body, {}), teacher=teacher)
