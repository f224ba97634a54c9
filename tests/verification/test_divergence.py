"""One number for how far outputs are from the original's, whatever the outputs mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from helpers.oracle import parse
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.model.load import load
from onnxprune.verification.divergence import divergence

SCORES = np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32)
OTHER = SCORES + np.random.default_rng(1).standard_normal((20, 5)).astype(np.float32)


def made_by(op: str, opset: int = 17, outputs: str = "float[N, 5] y") -> ir.Model:
    text = f"""<ir_version: 8, opset_import: ["": {opset}]>
        g (float[N, 5] x) => ({outputs}) {{ {op} }}"""
    weights = {"w": np.eye(5, dtype=np.float32)}
    return load(parse(text, weights)).model


def softmax(scores: Any, axis: int = -1) -> Any:
    shifted = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return shifted / shifted.sum(axis=axis, keepdims=True)


def row_weights(wanted: Any, got: Any) -> Any:
    """What rows count, [samples, ...]: each class alike, by the answers of both models."""
    weights = np.zeros(wanted.shape[:-1])
    for answers in (wanted.argmax(axis=-1), got.argmax(axis=-1)):
        share = np.zeros(answers.shape)
        for answer in np.intersect1d(answers, wanted.argmax(axis=-1)):
            share[answers == answer] = 1 / (answers == answer).sum()
        weights += share / share.sum() / 2
    return weights


def kl(wanted: Any, got: Any, axis: int = -1) -> float:
    """KL(wanted || got) of scores at temperature 2, class by class, over that of the mean."""
    wanted, got = (np.moveaxis(scores, axis, -1) for scores in (wanted, got))
    p, q = softmax(wanted / 2), softmax(got / 2)
    weights = row_weights(wanted, got)
    mean = (p * weights[..., None]).reshape(-1, p.shape[-1]).sum(axis=0)
    apart, spread = (((p * np.log(p / other)).sum(axis=-1) * weights).sum() for other in (q, mean))
    return float(apart / spread)


def relative(wanted: Any, got: Any) -> float:
    """Squared error over the variance, every row alike."""
    return float(((wanted - got) ** 2).sum(axis=-1).mean() / wanted.var(axis=0).sum())


def balanced_relative(wanted: Any, got: Any) -> float:
    """The same, class by class, around the mean at each place: [samples, ..., columns]."""
    weights = row_weights(wanted, got)[..., None]
    mean = (weights * wanted).sum(axis=0) / weights.sum(axis=0)
    return float((weights * (wanted - got) ** 2).sum() / (weights * (wanted - mean) ** 2).sum())


LINEAR = "y = MatMul(x, w)"
OPS = (LINEAR, "y = Softmax(x)", "y = LogSoftmax(x)", "y = Tanh(x)")


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_nodes_that_only_hand_on_do_not_hide_what_an_output_is(op: str) -> None:
    plain, handed = (
        made_by(f"y = {op}(x)"),
        made_by(f"a = {op}(x) b = Identity(a) y = Cast<to=1>(b)"),
    )
    both = [({"y": np.log(softmax(SCORES))}, {"y": np.log(softmax(OTHER))})]
    if op == "Softmax":
        both = [({"y": softmax(SCORES)}, {"y": softmax(OTHER)})]
    assert (
        divergence(handed, both)
        == divergence(plain, both)
        == pytest.approx(kl(SCORES, OTHER), rel=1e-4)
    )


@settings(max_examples=40)
@given(op=st.sampled_from(OPS), seed=st.integers(0, 2**16), noise=st.sampled_from((0.01, 1.0)))
def test_nothing_for_equal_outputs_something_for_others(op: str, seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    wanted = softmax(rng.standard_normal((9, 5)))
    got = softmax(np.log(wanted) + noise * rng.standard_normal((9, 5)))
    if op == "y = LogSoftmax(x)":
        wanted, got = np.log(wanted), np.log(got)
    model = made_by(op)
    assert divergence(model, [({"y": wanted}, {"y": wanted})]) == pytest.approx(0, abs=1e-9)
    assert divergence(model, [({"y": wanted}, {"y": got})]) > 1e-9


def test_scores_and_quantities() -> None:
    pairs = [({"y": SCORES}, {"y": OTHER})]
    wanted = kl(SCORES, OTHER) + 0.1 * balanced_relative(SCORES, OTHER)
    assert divergence(made_by(LINEAR), pairs) == pytest.approx(wanted, rel=1e-5)
    quantities = divergence(made_by("y = Tanh(x)"), pairs)
    assert quantities == pytest.approx(relative(SCORES, OTHER), rel=1e-5)


def test_probabilities_are_compared_as_their_scores() -> None:
    pairs = [({"y": softmax(SCORES)}, {"y": softmax(OTHER)})]
    wanted = kl(SCORES, OTHER)
    assert divergence(made_by("y = Softmax(x)"), pairs) == pytest.approx(wanted, rel=1e-4)
    logs = [({"y": np.log(softmax(SCORES))}, {"y": np.log(softmax(OTHER))})]
    assert divergence(made_by("y = LogSoftmax(x)"), logs) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("opset", [11, 17])
def test_classes_lie_on_the_axis_that_the_op_says(opset: int) -> None:
    """Segmentation: [N, classes, H, W]. Before opset 13 a Softmax ran over all axes from one on."""
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 3, 4, 2, 2))
    if opset == 11:
        wanted = kl(first.reshape(3, -1), second.reshape(3, -1))
        pairs = [tuple({"y": softmax(a.reshape(3, -1)).reshape(a.shape)} for a in (first, second))]
    else:
        wanted = kl(first, second, 1)
        pairs = [tuple({"y": softmax(a, 1)} for a in (first, second))]
    text = f"""<ir_version: 8, opset_import: ["": {opset}]>
        g (float[N, 4, 2, 2] x) => (float[N, 4, 2, 2] y) {{ y = Softmax<axis = 1>(x) }}"""
    found = divergence(load(parse(text)).model, pairs)  # type: ignore[arg-type]
    assert found == pytest.approx(wanted, rel=1e-4)


def test_a_convolution_scores_channels() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4, 2, 2] x) => (float[N, 4, 2, 2] y) { y = Conv(x, w) }"""
    weight = np.ones((4, 4, 1, 1), np.float32)
    first, second = np.random.default_rng(0).standard_normal((2, 3, 4, 2, 2))
    last = [np.moveaxis(array, 1, -1) for array in (first, second)]
    found = divergence(load(parse(text, {"w": weight})).model, [({"y": first}, {"y": second})])
    assert found == pytest.approx(kl(first, second, 1) + 0.1 * balanced_relative(*last), rel=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("op", OPS)
def test_numbers_that_are_none_are_infinitely_far(op: str, bad: float) -> None:
    got = SCORES.copy()
    got[3, 2] = bad
    assert divergence(made_by(op), [({"y": SCORES}, {"y": got})]) == np.inf


def test_what_the_original_masks_does_not_count() -> None:
    """Scores of minus infinity stand for classes that cannot be."""
    wanted, got = SCORES.copy(), OTHER.copy()
    wanted[:, 1] = got[:, 1] = -np.inf
    left = [0, 2, 3, 4]
    expected = kl(SCORES[:, left], OTHER[:, left])
    pairs = [({"y": wanted}, {"y": got})]
    assert divergence(made_by("y = LogSoftmax(x)"), pairs) == pytest.approx(expected, rel=1e-4)
    assert divergence(made_by("y = LogSoftmax(x)"), [({"y": wanted}, {"y": wanted})]) == 0
    assert np.isfinite(divergence(made_by(LINEAR), pairs))


def test_several_outputs_are_averaged_and_batches_are_one() -> None:
    model = made_by("y = Tanh(x) z = Neg(x)", outputs="float[N, 5] y, float[N, 5] z")
    whole = [({"y": SCORES, "z": SCORES}, {"y": OTHER, "z": SCORES})]
    assert divergence(model, whole) == pytest.approx(relative(SCORES, OTHER) / 2, rel=1e-5)
    parts = [
        tuple({key: array[part] for key, array in side.items()} for side in whole[0])
        for part in (slice(0, 6), slice(6, 20))
    ]
    found = divergence(model, parts)  # type: ignore[arg-type]
    assert found == pytest.approx(divergence(model, whole), rel=1e-5)


def test_batches_of_different_lengths() -> None:
    """A score for every position: [N, T] with another T in each batch."""
    rng = np.random.default_rng(0)
    pairs = [
        ({"y": one}, {"y": one + rng.standard_normal(one.shape)})
        for one in (rng.standard_normal((2, 7)), rng.standard_normal((3, 4)))
    ]
    for op in OPS[::3]:
        assert 0 < divergence(made_by(op), pairs) < 100
        assert divergence(made_by(op), [(a, a) for a, _ in pairs]) == 0


def test_other_types_do_not_count() -> None:
    model = made_by("y = ArgMax<axis = 1>(x)", outputs="int64[N, 1] y")
    labels = np.zeros((4, 1), np.int64)
    assert divergence(model, [({"y": labels}, {"y": labels + 1})]) == 0
    assert divergence(model, [({"y": [SCORES]}, {"y": [OTHER]})]) == 0
    assert divergence(model, [({"y": SCORES[:0]}, {"y": OTHER[:0]})]) == 0


def test_scalars_and_single_columns_are_quantities() -> None:
    model = made_by("m = ReduceMean<keepdims = 0>(x) y = Sqrt(m)", outputs="float y")
    pairs = [({"y": np.array(a)}, {"y": np.array(b)}) for a, b in ((1.0, 1.5), (3.0, 3.0))]
    assert divergence(model, pairs) == pytest.approx(0.125)
    column = [({"y": SCORES[:, :1]}, {"y": OTHER[:, :1]})]
    found = divergence(made_by(LINEAR), column)
    assert found == pytest.approx(relative(SCORES[:, :1], OTHER[:, :1]), rel=1e-5)


def test_an_output_that_never_varies_is_compared_with_its_size() -> None:
    pairs = [({"y": np.full((4, 2), 10.0)}, {"y": np.full((4, 2), 11.0)})]
    assert divergence(made_by("y = Tanh(x)"), pairs) == pytest.approx(0.01)


def test_shapes_that_depend_on_the_values() -> None:
    """Another number of detections."""
    pairs = [({"y": SCORES[:7]}, {"y": OTHER[:9]}), ({"y": SCORES[:3]}, {"y": OTHER[:3]})]
    same = divergence(made_by("y = Tanh(x)"), pairs[1:])
    assert divergence(made_by("y = Tanh(x)"), pairs[:1]) == 1
    assert divergence(made_by("y = Tanh(x)"), pairs) == pytest.approx((1 + same) / 2)


def test_half_precision() -> None:
    pairs = [({"y": SCORES.astype(np.float16)}, {"y": OTHER.astype(np.float16)})]
    found = divergence(made_by("y = Tanh(x)"), pairs)
    assert found == pytest.approx(relative(SCORES, OTHER), rel=1e-2)


def test_a_model_that_always_says_background_is_far_off() -> None:
    """A detector: 99 % of the places are background, and so say both."""
    rng = np.random.default_rng(0)
    face = rng.random((4, 500)) < 0.01
    wanted = np.where(face[..., None], [-3.0, 3.0], [3.0, -3.0]) + rng.normal(0, 0.1, (4, 500, 2))
    never = np.broadcast_to([3.0, -3.0], wanted.shape)
    slightly = wanted + rng.normal(0, 0.3, wanted.shape)
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 500, 2] x) => (float[N, 500, 2] y) { y = Softmax(x) }"""
    model = load(parse(text)).model
    off, near = (
        divergence(model, [({"y": softmax(wanted)}, {"y": softmax(got)})])
        for got in (never, slightly)
    )
    assert off > 100 * near


FACE = np.arange(50) < 2
"""Anchors of a detector that hold an object."""

PRESENT = np.where(FACE[:, None], [0.001, 0.999], [0.999, 0.001])


def detector(scores: str = "Softmax", columns: int = 2) -> ir.Model:
    """Boxes [N, anchors, 4] of a linear layer beside scores."""
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 50, {columns}] x, float[N, 50, 4] z)
        => (float[N, 50, {columns}] y, float[N, 50, 4] b) {{
            y = {scores}(x) b = MatMul(z, w) }}"""
    return load(parse(text, {"w": np.eye(4, dtype=np.float32)})).model


def test_offsets_count_where_their_scores_do() -> None:
    """They are no classes, and go with the rows of scores."""
    scores = np.broadcast_to(PRESENT, (3, 50, 2))
    offsets = np.random.default_rng(0).standard_normal((3, 50, 4))
    moved = [np.where(where[:, None], offsets + 0.1, offsets) for where in (FACE, ~FACE)]
    of_faces, of_background = (
        divergence(detector(), [({"y": scores, "b": offsets}, {"y": scores, "b": each})])
        for each in moved
    )
    assert of_faces == pytest.approx(of_background, rel=0.3)


@pytest.mark.parametrize("centred", [False, True], ids=["corners", "centre and size"])
@pytest.mark.parametrize("op", ["Softmax", "Sigmoid"])
def test_boxes_count_where_there_is_an_object_by_their_size(op: str, centred: bool) -> None:
    scores = np.stack(3 * [PRESENT if op == "Softmax" else PRESENT[:, 1:]])
    rng = np.random.default_rng(0)
    places, sizes = rng.random((3, 50, 2)), 0.1 + rng.random((3, 50, 2))
    places = places + 2 * sizes.max() * centred
    boxes = np.concatenate([places, sizes if centred else places + sizes], axis=-1)
    error = 0.2 * np.concatenate([sizes, sizes], axis=-1)

    def of(where: Any) -> float:
        moved = np.where(where[:, None], boxes + error, boxes)
        return divergence(
            detector(op, scores.shape[-1]), [({"y": scores, "b": boxes}, {"y": scores, "b": moved})]
        )

    assert of(~FACE) == 0
    # a fifth of width and height; the scores do not differ, and half of the outputs are boxes
    assert of(FACE) == pytest.approx(1 / 2)


def test_the_mean_at_each_place_scores_one() -> None:
    wanted = np.random.default_rng(0).standard_normal((20, 5)) + 10 * np.arange(5)
    always = np.broadcast_to(wanted.mean(axis=0), wanted.shape)
    model = made_by("y = Tanh(x)")
    assert divergence(model, [({"y": wanted}, {"y": always})]) == pytest.approx(1)


def test_the_mean_distribution_scores_one() -> None:
    wanted = softmax(3 * SCORES)
    classes = wanted.argmax(axis=1)
    weights = (1 / np.bincount(classes))[classes]
    cool = softmax(3 * SCORES / 2)
    always = np.broadcast_to((weights @ cool / weights.sum()) ** 2, wanted.shape)
    always = always / always.sum(axis=1, keepdims=True)
    found = divergence(made_by("y = Softmax(x)"), [({"y": wanted}, {"y": always})])
    assert found == pytest.approx(1, rel=0.35)  # its own answers are one class


def test_probabilities_are_decisions_for_themselves() -> None:
    """A voice detector: one number, the probability of speech."""
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 1] x) => (float[N, 1] y) { y = Sigmoid(x) }"""
    model = load(parse(text)).model
    wanted = np.where(np.arange(100) < 5, 0.99, 0.01)[:, None]
    silent, worse = np.full((100, 1), 0.01), np.where(wanted < 0.5, 0.02, 0.9)
    far, near = (divergence(model, [({"y": wanted}, {"y": each})]) for each in (silent, worse))
    assert far > 10 * near
