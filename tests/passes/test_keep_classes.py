"""Classes that are not wanted leave the classifier; the others give what they gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.oracle import feed, outputs
from helpers.paths import MODELS
from helpers.reducing import Weights, changed, declared, graph, metadata, shapes, weights

import onnxprune
from onnxprune.calibration.samples import read_samples
from onnxprune.errors import InputError, NothingPrunable
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import load
from onnxprune.passes.keep_classes import KEPT_CLASSES, KeepClasses

KEPT = [1, 4, 5]
LINEAR = weights(w=(4, 6), b=(6,))


def classifier(
    tail: str, out: str = "float[N, 6] y", values: Weights | None = None, opset: int = 17
) -> onnx.ModelProto:
    """Six classes: z is the logits, the tail makes the outputs of them."""
    body = f"h = MatMul (x, w) z = Add (h, b) {tail}"
    return graph(f"(float[N, 4] x) => ({out})", body, {**LINEAR, **(values or {})}, opset)


@pytest.mark.parametrize("batch", [2, 5])
def test_logits_of_kept_classes_are_what_they_were(batch: int) -> None:
    proto = classifier("y = Identity (z)")
    result = changed(KeepClasses(KEPT), proto)
    inputs = feed(proto, batch)
    assert shapes(result) == {"w": (4, 3), "b": (3,)}
    assert declared(result) == {"y": ["N", 3]}
    np.testing.assert_allclose(outputs(result, inputs)["y"], outputs(proto, inputs)["y"][:, KEPT])


@pytest.mark.parametrize("opset", [12, 17])
def test_softmax_shares_out_among_kept_classes(opset: int) -> None:
    proto = classifier("y = Softmax <axis = 1> (z)", opset=opset)
    result = changed(KeepClasses(KEPT), proto)
    inputs = feed(proto, 3)
    whole = outputs(proto, inputs)["y"][:, KEPT]
    wanted = whole / whole.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(outputs(result, inputs)["y"], wanted, rtol=1e-5)
    assert outputs(result, inputs)["y"].sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize("opset", [12, 17])
def test_softmax_written_out_shares_out_as_well(opset: int) -> None:
    """As JAX and TensorFlow are exported."""
    total = "<axes = [1]> (e)" if opset == 12 else "(e, axis)"
    tail = (
        "m = ReduceMax <axes = [1]> (z) c = Sub (z, m) e = Exp (c) "
        f"s = ReduceSum {total} y = Div (e, s)"
    )
    proto = classifier(tail, values={"axis": np.array([1])} if opset > 12 else None, opset=opset)
    result = changed(KeepClasses(KEPT), proto)
    inputs = feed(proto, 3)
    whole = outputs(proto, inputs)["y"][:, KEPT]
    wanted = whole / whole.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(outputs(result, inputs)["y"], wanted, rtol=1e-5)


def test_independent_scores_stay() -> None:
    proto = classifier("y = Sigmoid (z)")
    inputs = feed(proto, 3)
    got = outputs(changed(KeepClasses(KEPT), proto), inputs)["y"]
    np.testing.assert_allclose(got, outputs(proto, inputs)["y"][:, KEPT], rtol=1e-6)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_labels_are_the_old_numbers_of_the_best_kept_class(op: str) -> None:
    tail = f"p = Softmax (z) y = {op} <axis = 1, keepdims = 0> (p)"
    proto = classifier(f"{tail} q = Identity (p)", "int64[N] y, float[N, 6] q")
    result = changed(KeepClasses(KEPT), proto)
    inputs = feed(proto, 40)
    scores = outputs(proto, inputs)["q"][:, KEPT]
    best = scores.argmax(axis=1) if op == "ArgMax" else scores.argmin(axis=1)
    labels = outputs(result, inputs)["y"]
    assert labels.tolist() == np.array(KEPT)[best].tolist()
    assert len(set(labels.tolist())) > 1
    assert declared(result) == {"y": ["N"], "q": ["N", 3]}


def test_label_alone_is_the_old_number() -> None:
    proto = classifier("y = ArgMax <axis = 1, keepdims = 0> (z)", "int64[N] y")
    result = changed(KeepClasses(KEPT, classes=6), proto)
    inputs = feed(proto, 40)
    scores = outputs(classifier("y = Identity (z)"), inputs)["y"][:, KEPT]
    assert shapes(result)["w"] == (4, 3)
    np.testing.assert_array_equal(outputs(result, inputs)["y"], np.array(KEPT)[scores.argmax(1)])


def test_top_k_names_old_numbers() -> None:
    tail = "k = Constant <value_ints = [2]> () v, y = TopK <axis = 1> (z, k) q = Identity (z)"
    proto = classifier(tail, "float[N, 2] v, int64[N, 2] y, float[N, 6] q")
    result = changed(KeepClasses(KEPT, classes=6), proto)
    inputs = feed(proto, 20)
    scores = outputs(proto, inputs)["q"][:, KEPT]
    best = np.argsort(-scores, axis=1)[:, :2]
    np.testing.assert_array_equal(outputs(result, inputs)["y"], np.array(KEPT)[best])


def test_top_k_of_more_than_is_kept_is_refused() -> None:
    tail = "k = Constant <value_ints = [4]> () v, y = TopK <axis = 1> (z, k) q = Identity (z)"
    proto = classifier(tail, "float[N, 4] v, int64[N, 4] y, float[N, 6] q")
    with pytest.raises(NothingPrunable, match="4 of 3 entries"):
        changed(KeepClasses(KEPT, classes=6), proto)


def test_head_with_anchors_loses_the_classes_of_each() -> None:
    """A detection head: 3 anchors of 6 classes each in one convolution."""
    values = {
        **weights(w=(18, 4, 1, 1), b=(18,)),
        "split": np.array([0, 3, 6, -1], np.int64),
        "last": np.array([0, -1, 6], np.int64),
    }
    body = """z = Conv (x, w, b) r = Reshape (z, split) t = Transpose <perm = [0, 1, 3, 2]> (r)
              f = Reshape (t, last) y = Sigmoid (f)"""
    proto = graph("(float[N, 4, 2, 2] x) => (float[N, A, 6] y)", body, values)
    result = changed(KeepClasses(KEPT, classes=6), proto)
    inputs = feed(proto, 2)
    assert shapes(result)["w"] == (9, 4, 1, 1)
    got = outputs(result, inputs)["y"]
    np.testing.assert_allclose(got, outputs(proto, inputs)["y"][:, :, KEPT], rtol=1e-6)


def test_normalised_classes_are_refused_with_the_reason() -> None:
    values = weights(s=(6,), t=(6,))
    proto = classifier("y = LayerNormalization (z, s, t)", values=values)
    with pytest.raises(NothingPrunable, match="takes statistics over it"):
        changed(KeepClasses(KEPT), proto)


def test_softmax_that_weighs_something_is_refused() -> None:
    """The expectation over six bins is no choice among six classes."""
    tail = "p = Softmax (z) e = MatMul (p, v) y = Concat <axis = 1> (p, e)"
    proto = classifier(tail, "float[N, 7] y, float[N, 6] p", values=weights(v=(6, 1)))
    with pytest.raises(NothingPrunable, match="Softmax"):
        changed(KeepClasses(KEPT, classes=6), proto)


def test_weights_that_add_up_all_classes_are_refused() -> None:
    proto = classifier(
        "y = MatMul (z, m) q = Identity (z)", "float[N, 6] q, float[N, 5] y", weights(m=(6, 5))
    )
    with pytest.raises(NothingPrunable, match="'y' is computed from all entries of 'z'"):
        changed(KeepClasses(KEPT, classes=6), proto)


def test_classifier_without_plain_weights_is_refused_by_name() -> None:
    linear = """y, p = ai.onnx.ml.LinearClassifier <coefficients = [1., 2., 3., 4., 5., 6.],
                intercepts = [0., 0., 0.], classlabels_ints = [0, 1, 2]> (x)"""
    proto = graph("(float[N, 2] x) => (int64[N] y, float[N, 3] p)", linear, {})
    proto.opset_import.add(domain="ai.onnx.ml", version=3)
    with pytest.raises(NothingPrunable, match=r"the 3 entries of 'p' .*made by LinearClassifier"):
        changed(KeepClasses([1]), proto)


def test_outputs_that_are_no_scores_are_refused() -> None:
    proto = classifier("i = Cast <to = 7> (z) y = Add (i, i)", "int64[N, 6] y")
    with pytest.raises(InputError, match=r"none of the outputs \['y'\] is a tensor of scores"):
        changed(KeepClasses(KEPT, classes=6), proto)


def test_two_axes_with_as_many_entries_are_ambiguous() -> None:
    values = {**weights(w=(36, 4)), "split": np.array([0, 6, 6], np.int64)}
    body = "t = Transpose (w) z = MatMul (x, t) y = Reshape (z, split)"
    proto = graph("(float[N, 4] x) => (float[N, 6, 6] y)", body, values)
    with pytest.raises(NothingPrunable, match="not clear which"):
        changed(KeepClasses(KEPT, classes=6), proto)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": [6]}, "there are 6"),
        ({"keep": ["cat"]}, "names are not known"),
        ({"keep": "0,1,2,3,4,5"}, "all 6 are kept"),
        ({"keep": ""}, "none are given"),
        ({"keep": [1], "classes": 7}, "no output has an axis with 7"),
        ({"keep": [1], "classes": 6, "outputs": ["q"]}, "no output 'q'"),
        ({"keep": [1], "classes": 6, "names": ["a", "b"]}, "2 names"),
        ({"keep": "missing.txt"}, "cannot be read"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        changed(KeepClasses(**options), classifier("y = Identity (z)"))  # type: ignore[arg-type]


def test_names_from_files_and_metadata(tmp_path: Path) -> None:
    names, wanted = tmp_path / "names.txt", tmp_path / "wanted.txt"
    names.write_text("ant\nbee\ncat\ndog\nelk\nfox\n")
    wanted.write_text("fox\nbee\nelk\n")
    proto = classifier("y = Identity (z)")
    result = changed(KeepClasses(str(wanted), names=str(names)), proto)
    assert json.loads(metadata(result)[KEPT_CLASSES]) == KEPT
    again = changed(KeepClasses(["fox", "bee"]), result)
    assert json.loads(metadata(again)[KEPT_CLASSES]) == [1, 5]
    assert metadata(again)["names"] == "{0: 'bee', 1: 'fox'}"


def test_scikit_learn_labels_are_the_old_ones() -> None:
    proto = onnx.load(MODELS / "digits_mlp.onnx")
    result = changed(KeepClasses([3, 7, 9]), proto)
    with np.load(MODELS / "digits_mlp_test.npz") as file:
        inputs = {"pixels": file["pixels"]}
    before, after = outputs(proto, inputs), outputs(result, inputs)
    best = before["probabilities"][:, [3, 7, 9]].argmax(axis=1)
    assert after["label"].tolist() == np.array([3, 7, 9])[best].tolist()
    assert after["probabilities"].shape == (len(best), 3)


@pytest.mark.parametrize("count", [600, 60])
def test_later_passes_see_the_samples_of_the_kept_classes(count: int) -> None:
    """If there are enough; which they are, the original says."""
    proto = classifier("y = Softmax (z)")
    x = np.random.default_rng(3).standard_normal((count, 4)).astype(np.float32)
    samples = read_samples({"x": x}, input_specs(load(proto).model))
    pass_ = KeepClasses(KEPT, samples=samples)
    changed(pass_, proto)
    mine = np.isin(outputs(proto, {"x": x})["y"].argmax(axis=1), KEPT)
    assert 0 < mine.sum() < count
    seen = pass_.convert({"x": x})["x"]
    np.testing.assert_array_equal(seen, x[mine] if mine.sum() >= 64 else x)
    assert pass_.details["own_samples"] == (mine.sum() >= 64) == (count == 600)
    every = KeepClasses(KEPT, own_samples=False, samples=samples)
    changed(every, proto)
    assert len(every.convert({"x": x})["x"]) == count


def test_a_pipeline_goes_on_with_these_samples() -> None:
    data = MODELS / "digits_resnet_calibration.npz"
    seen: list[int] = []

    def count(model: ir.Model, samples: Any) -> None:
        seen.append(sum(len(one["images"]) for one in samples.batches(32)))

    passes: list[Any] = [{"keep-classes": {"keep": "3,7,9"}}, count]
    source = MODELS / "digits_resnet.onnx"
    onnxprune.run_pipeline(source, passes, calibration=data, threads=1, measure_latency=False)
    with np.load(data) as file:
        images = file["images"]
    best = outputs(onnx.load(source), {"images": images})["logits"].argmax(axis=1)
    assert seen == [int(np.isin(best, (3, 7, 9)).sum())]


def test_three_digits_under_two_fifths_of_the_multiplications() -> None:
    """No more than a point below the original restricted to them."""
    proto, kept = onnx.load(MODELS / "digits_resnet.onnx"), [3, 7, 9]
    with np.load(MODELS / "digits_resnet_test.npz") as file:
        wanted = np.isin(file["labels"], kept)
        inputs, labels = {"images": file["images"][wanted]}, file["labels"][wanted]
    smaller = changed(KeepClasses(kept), proto)
    macs = [onnxprune.inspect(one).sizes.macs for one in (proto, smaller)]
    calibration = MODELS / "digits_resnet_calibration.npz"
    target = {"macs": 0.4 * macs[0] / macs[1]}
    pruned = onnxprune.prune(smaller, calibration=calibration, target=target, force=True).model
    assert onnxprune.inspect(pruned).sizes.macs <= 0.4 * macs[0]
    before = outputs(proto, inputs)["logits"][:, kept].argmax(axis=1)
    after = outputs(pruned, inputs)["logits"].argmax(axis=1)
    accuracy = [float((np.array(kept)[one] == labels).mean()) for one in (before, after)]
    assert accuracy[1] >= accuracy[0] - 0.01
