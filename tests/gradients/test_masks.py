"""The gradient of a mask, against scaling a unit by hand where its readers read it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import ONE_THREAD, Traced, parse, traced
from helpers.paths import MODELS
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.samples import read_samples
from onnxprune.coupling.group_view import MaskGradients
from onnxprune.coupling.groups import Group
from onnxprune.errors import InputError
from onnxprune.gradients.losses import Objective
from onnxprune.gradients.masks import mask_gradients
from onnxprune.model.execution import open_session, run
from onnxprune.model.inputs import input_specs

_STEP = 2e-2

CONTEXT = RunContext(runtime=ONE_THREAD)


def gradients_of(
    subject: Traced, samples: Any, objective: Objective, groups: list[Group] | None = None
) -> dict[str, MaskGradients]:
    read = read_samples(samples, input_specs(subject.model))
    chosen = subject.groups if groups is None else groups
    return mask_gradients(subject.model, chosen, read, objective, CONTEXT).gradients


def scaled(proto: onnx.ModelProto, group: Group, unit: int, factor: float) -> onnx.ModelProto:
    """The network in which every reader of a group reads a unit times a factor."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    for number, reading in enumerate(group.readings):
        tensor = reading.consumer.tensor
        node = next(n for n in changed.graph.node if reading.consumer.node in n.output)
        mask = np.where(reading.units == unit, factor, 1.0).astype(np.float32)
        order = np.argsort(reading.axes)
        rank = max(reading.axes) + 1
        extents = dict(zip(reading.axes, mask.shape, strict=True))
        trailing = [1] * (rank_of(changed, tensor) - rank)
        mask = mask.transpose(order).reshape([extents.get(a, 1) for a in range(rank)] + trailing)
        name = f"mask_{number}"
        changed.graph.initializer.append(onnx.numpy_helper.from_array(mask, name))
        multiply = onnx.helper.make_node("Mul", [tensor, name], [f"{name}_out"])
        place = list(changed.graph.node).index(node)
        for slot, read in enumerate(node.input):
            if read == tensor:
                node.input[slot] = f"{name}_out"
        changed.graph.node.insert(place, multiply)
    return changed


def rank_of(proto: onnx.ModelProto, tensor: str) -> int:
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    found = next(one for one in values if one.name == tensor)
    return len(found.type.tensor_type.shape.dim)


def losses(proto: onnx.ModelProto, feed: Any, labels: NDArray[Any]) -> NDArray[np.float64]:
    """Cross-entropy of each sample."""
    scores = list(run(open_session(proto, ONE_THREAD), feed).values())[-1].astype(np.float64)
    if not np.allclose(scores.sum(axis=1), 1):
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    logs = np.log(scores / scores.sum(axis=1, keepdims=True))
    return -logs[np.arange(len(labels)), labels]


def by_differences(
    proto: onnx.ModelProto, group: Group, unit: int, feed: Any, labels: NDArray[Any]
) -> NDArray[np.float64]:
    """Derivative of each sample's loss with respect to the mask, by a five-point difference."""
    around = [
        losses(scaled(proto, group, unit, 1 + step * _STEP), feed, labels)
        for step in (-2, -1, 1, 2)
    ]
    return (around[0] - 8 * around[1] + 8 * around[2] - around[3]) / (12 * _STEP)


def samples_of(name: str, count: int) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    with np.load(MODELS / f"{name}_test.npz") as file:
        arrays = {key: file[key][:count] for key in file.files}
    return arrays, arrays.pop("labels").astype(np.int64)


@pytest.mark.parametrize("name", ["digits_mlp", "digits_resnet", "digits_transformer"])
def test_the_gradient_of_a_mask_is_what_scaling_the_unit_does(name: str) -> None:
    proto = onnx.load(MODELS / f"{name}.onnx")
    feed, labels = samples_of(name, 24)
    subject = traced(proto)
    found = gradients_of(subject, feed, Objective("cross-entropy", labels))
    assert {group.name for group in subject.groups} == found.keys()
    for group in subject.groups:
        gradients = found[group.name]
        assert gradients.count == 24
        most = float(np.sqrt(gradients.mean_square).max())
        for unit in np.argsort(gradients.mean_square)[-2:].tolist():
            wanted = by_differences(proto, group, unit, feed, labels)
            close = {"rtol": 0.03, "atol": 0.01 * most}
            np.testing.assert_allclose(
                np.sqrt(gradients.mean_square[unit]), np.sqrt((wanted**2).mean()), **close
            )
            np.testing.assert_allclose(
                gradients.mean_magnitude[unit], np.abs(wanted).mean(), **close
            )


NETWORK = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3, 4] input) => (float[N, 2] y)
    { a = Conv(input, w1) h = Tanh(a) c = Conv(h, w2) p = GlobalAveragePool(c)
      y = Flatten(p) }"""


def weights(**shapes: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(one).astype(np.float32) for name, one in shapes.items()}


def made_up(*shape: int) -> dict[str, NDArray[Any]]:
    return {"input": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}


def test_of_a_linear_reader_by_hand() -> None:
    """y = mean over places of W h, so that dL/dm_j = mean_p h_jp (W' dL/dy)_j."""
    w = weights(w1=(5, 3, 1), w2=(2, 5, 1))
    subject, feed = traced(parse(NETWORK, w)), made_up(7, 3, 4)
    labels = np.random.default_rng(2).standard_normal((7, 2))
    found = gradients_of(subject, feed, Objective("mse", labels))["w1[0]"]
    h = np.tanh(np.einsum("oi,nip->nop", w["w1"][..., 0], feed["input"]))
    y = np.einsum("oi,nip->no", w["w2"][..., 0], h) / 4
    by_hand = h.mean(axis=2) * ((y - labels) @ w["w2"][..., 0])
    np.testing.assert_allclose(found.mean_square, (by_hand**2).mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.mean_magnitude, np.abs(by_hand).mean(axis=0), rtol=1e-4)


def test_towards_the_mean_only_what_varies_counts() -> None:
    w = weights(w1=(5, 3, 1), w2=(2, 5, 1))
    w["w1"][2] = 0
    text = NETWORK.replace("h = Tanh(a)", "b = Add(a, one) h = Tanh(b)")
    subject = traced(parse(text, {**w, "one": np.ones((5, 1), np.float32)}))
    feed = made_up(7, 3, 4)
    group = next(one for one in subject.groups if "w1[0]" in one.name)
    (reading,) = group.readings
    h = np.tanh(np.einsum("oi,nip->nop", w["w1"][..., 0], feed["input"]) + 1)
    read = read_samples(feed, input_specs(subject.model))
    found = mask_gradients(
        subject.model,
        [group],
        read,
        Objective("mse"),
        CONTEXT,
        means={reading: h.mean(axis=(0, 2))},
    ).gradients[group.name]
    still = found.mean_magnitude == found.mean_magnitude.min()
    assert found.mean_magnitude[still] < 1e-6
    assert (found.mean_magnitude[~still] > 1e-3).all()


def test_samples_are_told_apart_whatever_the_batch() -> None:
    """Time comes first inside, so that rows of the activations are no samples."""
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 6, 3] input) => (float[N, 2] y)
        { t = Transpose<perm = [1, 0, 2]>(input) a = MatMul(t, w1) h = Tanh(a)
          c = MatMul(h, w2) y = ReduceMean<axes = [0], keepdims = 0>(c) }"""
    subject = traced(parse(text, weights(w1=(3, 5), w2=(5, 2))))
    feed, labels = made_up(6, 6, 3), np.arange(6) % 2
    together = gradients_of(subject, feed, Objective("cross-entropy", labels))["w1[1]"]
    alone = [{"input": feed["input"][i : i + 1]} for i in range(6)]
    apart = gradients_of(subject, alone, Objective("cross-entropy", labels))["w1[1]"]
    assert together.count == apart.count == 6
    np.testing.assert_allclose(together.mean_square, apart.mean_square, rtol=1e-4)


def test_rows_of_several_places_are_added_up_by_sample() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4, 3] input) => (float[N, 2] y)
        { f = Reshape(input, flat) a = Gemm(f, w1) h = Tanh(a) c = Gemm(h, w2)
          r = Reshape(c, back) y = ReduceMean<axes = [1], keepdims = 0>(r) }"""
    w = weights(w1=(3, 5), w2=(5, 2))
    w |= {"flat": np.array([-1, 3]), "back": np.array([-1, 4, 2])}
    subject, feed = traced(parse(text, w)), made_up(6, 4, 3)
    labels = np.arange(6) % 2
    found = gradients_of(subject, feed, Objective("cross-entropy", labels))["w1[1]"]
    h = np.tanh(feed["input"] @ w["w1"])
    y = (h @ w["w2"]).mean(axis=1)
    p = np.exp(y) / np.exp(y).sum(axis=1, keepdims=True)
    by_hand = h.mean(axis=1) * ((p - np.eye(2)[labels]) @ w["w2"].T)
    np.testing.assert_allclose(found.mean_square, (by_hand**2).mean(axis=0), rtol=1e-4)


def test_drawn_labels_follow_the_seed() -> None:
    subject = traced(parse(NETWORK, weights(w1=(5, 3, 1), w2=(2, 5, 1))))
    read = read_samples(made_up(9, 3, 4), input_specs(subject.model))
    first, again, other = (
        mask_gradients(
            subject.model,
            subject.groups,
            read,
            Objective(),
            RunContext(runtime=ONE_THREAD, seed=seed),
        ).gradients
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first["w1[0]"].mean_square, again["w1[0]"].mean_square)
    assert (first["w1[0]"].mean_square != other["w1[0]"].mean_square).any()


BLOCKED = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3, 4] input) => (float[N, 2, 4] y)
    { a = Conv(input, w1) h = Relu(a) c = Conv(h, w2)
      i = LpPool<kernel_shape = [1], p = 3>(c)
      e = Conv(i, w3) t = Relu(e) y = Conv(t, w4) }"""


def test_groups_behind_a_node_without_a_rule_have_gradients_and_those_before_say_why() -> None:
    w = weights(w1=(5, 3, 1), w2=(4, 5, 1), w3=(6, 4, 1), w4=(2, 6, 1))
    subject = traced(parse(BLOCKED, w))
    read = read_samples(made_up(3, 3, 4), input_specs(subject.model))
    found = mask_gradients(subject.model, subject.groups, read, Objective(), CONTEXT)
    assert set(found.gradients) == {"w2[0]", "w3[0]"}
    assert set(found.blocked) == {"w1[0]"}
    assert all("LpPool node 'i' cannot be computed" in one for one in found.blocked.values())


def test_where_no_group_has_gradients_the_node_is_named() -> None:
    w = weights(w1=(5, 3, 1), w2=(4, 5, 1), w3=(6, 4, 1), w4=(2, 6, 1))
    subject = traced(parse(BLOCKED, w))
    first = [one for one in subject.groups if one.name == "w1[0]"]
    with pytest.raises(InputError, match="LpPool node 'i' cannot be computed: there is no rule"):
        gradients_of(subject, made_up(3, 3, 4), Objective(), first)


HEADS = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3, 4] input) => (float[N, 2] y)
    { q = MatMul(input, wq) k = MatMul(input, wk)
      qs = Reshape(q, split) qt = Transpose<perm = [0, 2, 1, 3]>(qs) qh = Reshape(qt, merged)
      ks = Reshape(k, split) kt = Transpose<perm = [0, 2, 3, 1]>(ks) kh = Reshape(kt, turned)
      a = MatMul(qh, kh) back = Reshape(a, apart) m = ReduceMean<axes = [2, 3], keepdims = 0>(back)
      y = MatMul(m, w2) }"""


def test_heads_that_lie_on_the_axis_of_samples() -> None:
    w: dict[str, NDArray[Any]] = weights(wq=(4, 6), wk=(4, 6), w2=(2, 2))
    w |= {"split": np.array([0, 0, 2, 3]), "merged": np.array([-1, 3, 3])}
    w |= {"turned": np.array([-1, 3, 3]), "apart": np.array([-1, 2, 3, 3])}
    subject, feed = traced(parse(HEADS, w)), made_up(5, 3, 4)
    labels = np.random.default_rng(2).standard_normal((5, 2))
    together = gradients_of(subject, feed, Objective("mse", labels))
    alone = [{"input": feed["input"][i : i + 1]} for i in range(5)]
    apart = gradients_of(subject, alone, Objective("mse", labels))
    assert any(0 in one.axes for group in subject.groups for one in group.readings)
    for name, found in together.items():
        assert found.count == 5
        assert found.mean_square.max() > 1e-4
        np.testing.assert_allclose(found.mean_square, apart[name].mean_square, rtol=1e-4)


def test_samples_that_memory_has_no_room_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = traced(parse(NETWORK, weights(w1=(5, 3, 1), w2=(2, 5, 1))))
    labels = np.random.default_rng(2).standard_normal((7, 2))
    wanted = gradients_of(subject, made_up(7, 3, 4), Objective("mse", labels))["w1[0]"]
    for limit in (1, 1000):
        monkeypatch.setattr("onnxprune.gradients.masks._ACTIVATION_BYTES", limit)
        found = gradients_of(subject, made_up(7, 3, 4), Objective("mse", labels))["w1[0]"]
        assert found.count == 7
        np.testing.assert_allclose(found.mean_square, wanted.mean_square, rtol=1e-5)


def test_a_batch_that_the_model_fixes() -> None:
    w = weights(w1=(5, 3, 1), w2=(2, 5, 1))
    labels = np.random.default_rng(2).standard_normal((4, 2))
    free = gradients_of(traced(parse(NETWORK, w)), made_up(4, 3, 4), Objective("mse", labels))
    fixed = traced(parse(NETWORK.replace("[N", "[2"), w))
    found = gradients_of(fixed, made_up(4, 3, 4), Objective("mse", labels))["w1[0]"]
    assert found.count == 4
    np.testing.assert_allclose(found.mean_square, free["w1[0]"].mean_square, rtol=1e-5)


def test_every_output_counts_and_integers_do_not() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3] input) => (float[N, 2] y, float[N, 2] z, int64[N, 1] best)
        { a = MatMul(input, w1) h = Tanh(a) y = MatMul(h, w2) z = MatMul(h, w3)
          best = ArgMax<axis = 1>(y) }"""
    w = weights(w1=(3, 5), w2=(5, 2), w3=(5, 2))
    subject, feed = traced(parse(text, w)), made_up(6, 3)

    def sums(outputs: Any, labels: Any) -> Any:
        return outputs["y"].sum(axis=1) + 2 * outputs["z"].sum(axis=1)

    found = gradients_of(subject, feed, Objective(sums))["w1[1]"]
    h = np.tanh(feed["input"] @ w["w1"])
    by_hand = h * (w["w2"].sum(axis=1) + 2 * w["w3"].sum(axis=1))
    np.testing.assert_allclose(found.mean_square, (by_hand**2).mean(axis=0), rtol=1e-3)


def test_what_passes_through_a_sequence_is_blocked_rather_than_flat() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3] input) => (float[N, 2] y)
        { a = MatMul(input, w1) h = Tanh(a) c = MatMul(h, w2) r = Relu(c)
          s = SequenceConstruct(r) t = SequenceAt(s, first) d = Add(t, b) y = MatMul(d, w3) }"""
    w: dict[str, NDArray[Any]] = weights(w1=(3, 5), w2=(5, 4), w3=(4, 2), b=(4,))
    subject = traced(parse(text, {**w, "first": np.array(0)}))
    (group,) = (one for one in subject.groups if one.name == "w1[1]")
    with pytest.raises(InputError, match=r"no group has gradients: .* SequenceAt node 't'"):
        gradients_of(subject, made_up(4, 3), Objective("mse"), [group])


def test_a_group_that_no_contraction_reads_is_not_taken_for_worthless() -> None:
    subject = traced(parse(NETWORK, weights(w1=(5, 3, 1), w2=(2, 5, 1))))
    (group,) = subject.groups
    unread = replace(group, name="unread", readings=())
    read = read_samples(made_up(3, 3, 4), input_specs(subject.model))
    found = mask_gradients(subject.model, [group, unread], read, Objective(), CONTEXT)
    assert set(found.gradients) == {group.name}
    assert set(found.blocked) == {"unread"}


QUANTISED = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3] input) => (float[N, 2] y)
    { p = QuantizeLinear(input, s, z) a = QLinearMatMul(p, s, z, w1, s1, u, s, z)
      b = QLinearMatMul(a, s, z, w2, s2, u, s, z) y = DequantizeLinear(b, s, z) }"""


def rounded(numbers: NDArray[Any]) -> NDArray[np.float64]:
    """To what 8 bits in steps of 0.02 around 128 can hold."""
    return np.clip(np.round(numbers / 0.02), -128, 127) * 0.02


def test_a_quantised_unit_goes_to_its_zero_point() -> None:
    rng = np.random.default_rng(0)
    w: dict[str, NDArray[Any]] = {
        "w1": rng.integers(-127, 127, (3, 5)).astype(np.int8),
        "w2": rng.integers(-127, 127, (5, 2)).astype(np.int8),
        "s": np.array(0.02, np.float32),
        "z": np.array(128, np.uint8),
        "s1": np.array(0.005, np.float32),
        "s2": np.array(0.003, np.float32),
        "u": np.array(0, np.int8),
    }
    subject = traced(parse(QUANTISED, w))
    feed = {"input": rng.uniform(-1, 1, (6, 3)).astype(np.float32)}
    labels = rng.standard_normal((6, 2))
    (found,) = gradients_of(subject, feed, Objective("mse", labels)).values()
    h = rounded(rounded(feed["input"]) @ (w["w1"] * 0.005))
    second = w["w2"] * 0.003
    by_hand = h * ((rounded(h @ second) - labels) @ second.T)
    np.testing.assert_allclose(found.mean_square, (by_hand**2).mean(axis=0), rtol=1e-3)
