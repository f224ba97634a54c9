"""Which tensors inside are compared, and what of the teacher they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from helpers.oracle import ONE_THREAD
from helpers.reducing import graph, weights

from onnxprune.distillation.features import features_of
from onnxprune.distillation.losses import Feature
from onnxprune.distillation.teacher import Teacher, with_variance
from onnxprune.model.load import load
from onnxprune.model.observe import observe

SIGNATURE = "(float[N, 4] x) => (float[N, 3] y)"
X = np.random.default_rng(5).standard_normal((6, 4)).astype(np.float32)


def everything(name: str) -> Mapping[int, np.ndarray]:
    return {}


def chosen(student: Any, teacher: Any, kept: Any = everything, x: np.ndarray = X) -> list[Feature]:
    models = [load(each).model for each in (student, teacher)]
    rng = np.random.default_rng(0)
    first, second = (observe(model, ONE_THREAD, rng, {"x": x}).first for model in models)
    return features_of(models[0], models[1], (first, second), kept)


def names(features: list[Feature]) -> list[str]:
    return [feature.name for feature in features]


def residual(blocks: int, hidden: int = 5) -> Any:
    """Blocks of two layers each, beside which what they read passes."""
    body, values, last = "s0 = MatMul(x, stem)", {"stem": (4, 6), "head": (6, 3)}, "s0"
    for number in range(1, blocks + 1):
        body += f" h{number} = MatMul({last}, a{number}) r{number} = Relu(h{number})"
        body += f" g{number} = MatMul(r{number}, b{number}) s{number} = Add(g{number}, {last})"
        values |= {f"a{number}": (6, hidden), f"b{number}": (hidden, 6)}
        last = f"s{number}"
    return graph(SIGNATURE, f"{body} y = MatMul({last}, head)", weights(**values))


def test_sums_of_residual_blocks() -> None:
    assert names(chosen(residual(3), residual(3))) == ["s1", "s2", "s3"]


def test_of_many_some_are_taken_and_the_last() -> None:
    found = names(chosen(residual(30), residual(30)))
    assert len(found) <= 12
    assert found[-1] == "s30"
    gaps = np.diff([int(name[1:]) for name in found])
    assert set(gaps.tolist()) <= {2, 3}


def test_without_sums_what_layers_read() -> None:
    body = "h = MatMul(x, a) r = Relu(h) i = MatMul(r, b) t = Relu(i) y = MatMul(t, c)"
    proto = graph(SIGNATURE, body, weights(a=(4, 6), b=(6, 5), c=(5, 3)))
    assert names(chosen(proto, proto)) == ["r", "t"]


def test_a_bias_is_no_sum() -> None:
    body = "h = MatMul(x, a) k = Add(h, b) r = Relu(k) y = MatMul(r, c)"
    proto = graph(SIGNATURE, body, weights(a=(4, 6), b=(6,), c=(6, 3)))
    assert names(chosen(proto, proto)) == ["r"]


def test_sums_inside_fused_normalisations() -> None:
    body, values, last = "e = MatMul(x, stem)", {"stem": (4, 8), "head": (8, 3)}, "e"
    for number in range(3):
        body += f" h{number} = MatMul({last}, w{number})"
        body += f" s{number} = com.microsoft.SkipLayerNormalization(h{number}, {last}, g, b)"
        values[f"w{number}"] = (8, 8)
        last = f"s{number}"
    values |= {"g": (8,), "b": (8,)}
    signature = "(float[N, 2, 4] x) => (float[N, 2, 3] y)"
    proto = graph(signature, f"{body} y = MatMul({last}, head)", weights(**values))
    x = np.random.default_rng(5).standard_normal((6, 2, 4)).astype(np.float32)
    assert names(chosen(proto, proto, x=x)) == ["s0", "s1", "s2"]


def test_of_a_pruned_model_the_units_that_it_kept() -> None:
    body = "h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)"
    values = weights(a=(4, 6), b=(6, 3))
    indices = np.array([0, 2, 5])
    small = {"a": values["a"][:, indices], "b": values["b"][indices]}
    student, teacher = (graph(SIGNATURE, body, each) for each in (small, values))
    kept = {"h": {1: indices}, "r": {1: indices}}
    (feature,) = chosen(student, teacher, lambda name: kept.get(name, {}))
    assert (feature.name, list(feature.kept)) == ("r", [1])
    # what the teacher gives for it is what the student has
    _, theirs = Teacher(load(teacher).model, [feature], ONE_THREAD).run({"x": X})
    _, own = Teacher(load(student).model, [Feature("r")], ONE_THREAD).run({"x": X})
    np.testing.assert_allclose(theirs["r"], own["r"], rtol=1e-5)
    # without a word about what was kept, sizes do not fit
    assert chosen(student, teacher) == []


def test_tensors_whose_units_are_others_now_are_left_out() -> None:
    sums = chosen(residual(4), residual(4), lambda name: None if name == "s2" else {})
    assert names(sums) == ["s1", "s3", "s4"]


def test_tensors_that_only_one_of_both_has_are_left_out() -> None:
    body = "h = MatMul(x, a) r = Relu(h) i = MatMul(r, b) t = Relu(i) y = MatMul(t, c)"
    values = weights(a=(4, 6), b=(6, 5), c=(5, 3))
    student = graph(SIGNATURE, body, values)
    teacher = graph(SIGNATURE, body.replace("t = ", "u = ").replace("(t", "(u"), values)
    assert names(chosen(student, teacher)) == ["r"]


def test_constant_and_broken_features_do_not_count() -> None:
    values = {
        "same": np.ones((6, 4)),
        "broken": np.full((6, 4), np.inf),
        "varying": np.arange(24.0).reshape(6, 4),
    }
    found = with_variance([Feature(name) for name in values], [values])
    assert names(found) == ["varying"]
    assert found[0].variance == float(values["varying"].var(axis=0).mean())


def test_the_variance_is_that_around_the_mean_of_each_channel() -> None:
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((8, 3, 5, 5)) + 10 * np.arange(3).reshape(3, 1, 1)
    (feature,) = with_variance([Feature("maps")], [{"maps": maps[:4]}, {"maps": maps[4:]}])
    wanted = np.mean([maps[:, channel].var() for channel in range(3)])
    assert feature.variance == pytest.approx(wanted)


def test_a_teacher_gives_its_outputs_and_features_in_single_precision() -> None:
    half = load(
        graph(
            "(float16[N, 4] x) => (float16[N, 3] y)",
            "h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)",
            {n: v.astype(np.float16) for n, v in weights(a=(4, 6), b=(6, 3)).items()},
        )
    ).model
    outputs, features = Teacher(half, [Feature("r")], ONE_THREAD).run({"x": X.astype(np.float16)})
    assert outputs["y"].dtype == features["r"].dtype == np.float32
    assert half.graph.outputs[0].dtype == ir.DataType.FLOAT16
