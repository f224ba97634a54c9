"""Scores by hand: every criterion on networks small enough to write down its formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers.folding import Samples, moments_of
from helpers.oracle import Traced, outputs, parse, traced
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.coupling.analysis import analyse, tap_of
from onnxprune.coupling.group_view import GroupView
from onnxprune.importance.criterion import RankingInputs
from onnxprune.importance.registry import criterion_names, find_criterion
from onnxprune.model.observe import ConstantValues

Weights = dict[str, NDArray[Any]]


def weights(**shapes: tuple[int, ...]) -> Weights:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(one).astype(np.float32) for name, one in shapes.items()}


def view(subject: Traced, name: str, samples: Samples | None = None) -> GroupView:
    group = next(one for one in subject.groups if one.name == name)
    moments = moments_of(subject, samples) if samples is not None else {}
    seen = {
        reading: moments[tap_of(subject.coupling, reading)]
        for reading in group.readings
        if samples is not None
    }
    constants = ConstantValues(subject.model, subject.coupling.facts.constants)
    return GroupView(group, constants, seen)


def scores(
    criterion: str, subject: Traced, name: str, samples: Samples | None = None, seed: int = 0
) -> NDArray[np.float64]:
    seen = view(subject, name, samples)
    return find_criterion(criterion).score(seen, np.random.default_rng(seed))


def values_of(proto: onnx.ModelProto, tensor: str, samples: Samples) -> NDArray[np.float64]:
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    shown.graph.output.append(onnx.ValueInfoProto(name=tensor))
    return outputs(shown, samples)[tensor].astype(np.float64)


def test_a_tensor_that_several_groups_have_a_part_of_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = (
        "h = MatMul(x, a) i = MatMul(x, b) j = Concat<axis=1>(h, i) k = MatMul(j, c) "
        "y = MatMul(k, d)"
    )
    made = weights(a=(4, 6), b=(4, 5), c=(11, 7), d=(7, 3))
    header = '<ir_version: 8, opset_import: ["": 17]> net (float[N, 4] x) => (float[N, 3] y)'
    model = traced(parse(f"{header} {{ {body} }}", made)).model
    read: list[str] = []
    blocks = ConstantValues.blocks

    def counted(self: ConstantValues, name: str) -> Any:
        read.append(name)
        return blocks(self, name)

    analysis = analyse(model, RunContext())
    monkeypatch.setattr(ConstantValues, "blocks", counted)
    criterion = find_criterion("l2")
    ranked = criterion.rank(RankingInputs(analysis), analysis.groups)
    assert (len(ranked), read.count("c"), read.count("a")) == (3, 2, 1)  # c: rows, columns


def check_norms(subject: Traced, name: str, parts: list[NDArray[Any]]) -> None:
    """`parts`: of each coupled tensor the entries of each unit, [units, entries]."""
    every = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    every = every.astype(np.float64)
    np.testing.assert_allclose(scores("l1", subject, name), np.abs(every).sum(axis=1))
    np.testing.assert_allclose(scores("l2", subject, name), np.sqrt((every**2).sum(axis=1)))


def test_norms_run_over_filters_normalisation_bias_and_all_consumers() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3, 5, 5] input) => (float[N, 2, 5, 5] y, float[N, 2, 5, 5] z)
        { a = Conv(input, w1, b1)
          b = BatchNormalization(a, scale, shift, mean, var)
          c = Conv<group = 4, pads = [1, 1, 1, 1]>(b, deep, bd)
          y = Conv(c, w2)
          z = Conv(b, w3) }"""
    w = weights(w1=(4, 3, 1, 1), deep=(4, 1, 3, 3), w2=(2, 4, 1, 1), w3=(2, 4, 1, 1))
    w |= weights(b1=(4,), bd=(4,), scale=(4,), shift=(4,), mean=(4,), var=(4,))
    w["var"] = np.abs(w["var"]) + 1
    made = [w[n] for n in ("w1", "b1", "scale", "shift", "mean", "var", "deep", "bd")]
    read = [w[n].swapaxes(0, 1) for n in ("w2", "w3")]
    check_norms(traced(parse(text, w)), "w1[0]", made + read)


def test_norms_of_a_flattened_map_take_all_its_columns() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3, 2, 2] input) => (float[N, 5] y)
        { a = Conv(input, w1)
          b = Flatten(a)
          y = Gemm<transB = 1>(b, w2) }"""
    w = weights(w1=(4, 3, 1, 1), w2=(5, 16))
    columns = w["w2"].reshape(5, 4, 4).swapaxes(0, 1)
    check_norms(traced(parse(text, w)), "w1[0]", [w["w1"], columns])


def test_norms_of_a_transposed_convolution_take_its_rows() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3, 4] input) => (float[N, 2, 5] y)
        { a = Conv(input, w1) y = ConvTranspose(a, w2) }"""
    w = weights(w1=(4, 3, 1), w2=(4, 2, 2))
    check_norms(traced(parse(text, w)), "w1[0]", [w["w1"], w["w2"]])


GROUPED = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3, 4] input) => (float[N, 2, 4] y)
    { a = Conv(input, w1)
      h = Relu(a)
      c = Conv<group = 2>(h, w2)
      y = Conv(c, w3) }"""


def test_a_channel_of_a_grouped_reader_owns_its_column_in_its_own_group() -> None:
    w = weights(w1=(4, 3, 1), w2=(6, 2, 1), w3=(2, 6, 1))
    subject = traced(parse(GROUPED, w))
    group = next(one for one in subject.groups if one.name == "w1[0]")
    classes = subject.units("w1", 0)
    order = [group.units.tolist().index(one) for one in classes.tolist()]
    found = scores("l1", subject, "w1[0]")[order]
    own = np.stack([w["w2"][3 * (j // 2) : 3 * (j // 2) + 3, j % 2, 0] for j in range(4)])
    made = np.abs(w["w1"].reshape(4, -1)).sum(axis=1)
    np.testing.assert_allclose(found, made + np.abs(own).sum(axis=1), rtol=1e-6)


def samples_for(*shape: int) -> dict[str, NDArray[Any]]:
    return {"input": np.random.default_rng(1).standard_normal((40, *shape)).astype(np.float32)}


def as_share(lost: NDArray[np.float64]) -> NDArray[np.float64]:
    return lost / lost.sum()


def test_activations_are_looked_at_behind_the_non_linearity_of_each_consumer() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3, 4, 4] input) => (float[N, 2, 4, 4] y, float[N, 2, 4, 4] z)
        { a = Conv(input, w1, b1)
          h = Relu(a)
          t = Tanh(a)
          y = Conv(h, w2)
          z = Conv(t, w3) }"""
    w = weights(w1=(5, 3, 1, 1), b1=(5,), w2=(2, 5, 1, 1), w3=(2, 5, 1, 1))
    w["w1"][3], w["b1"][3] = 0, 1
    w["w1"][4], w["b1"][4] = 0, -1
    proto, samples = parse(text, w), samples_for(3, 4, 4)
    subject = traced(proto)
    h, t = (values_of(proto, name, samples) for name in ("h", "t"))
    var_h, var_t = (x.var(axis=(0, 2, 3)) for x in (h, t))
    close = {"rtol": 1e-4, "atol": 1e-6}

    std = scores("std", subject, "w1[0]", samples)
    np.testing.assert_allclose(std, np.sqrt(var_h + var_t), rtol=1e-4, atol=2e-3)
    activity = scores("activity", subject, "w1[0]", samples)
    np.testing.assert_allclose(
        activity, sum(np.abs(x).mean(axis=(0, 2, 3)) for x in (h, t)), **close
    )
    lost = [
        var * (w[name].astype(np.float64) ** 2).sum(axis=(0, 2, 3))
        for var, name in ((var_h, "w2"), (var_t, "w3"))
    ]
    variance = scores("variance", subject, "w1[0]", samples)
    np.testing.assert_allclose(variance, sum(as_share(one) for one in lost), **close)
    assert set(np.argsort(variance)[:2]) == {3, 4}, "what never varies goes first"


def test_variance_weighs_each_position_of_a_flattened_unit_with_its_own_column() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3, 2, 2] input) => (float[N, 5] y)
        { a = Conv<pads = [1, 1, 1, 1]>(input, w1)
          h = Relu(a)
          f = Flatten(h)
          y = Gemm<transB = 1>(f, w2) }"""
    w = weights(w1=(4, 3, 3, 3), w2=(5, 16))
    proto, samples = parse(text, w), samples_for(3, 2, 2)
    flat = values_of(proto, "f", samples)
    lost = (flat.var(axis=0) * (w["w2"].astype(np.float64) ** 2).sum(axis=0)).reshape(4, 4)
    found = scores("variance", traced(proto), "w1[0]", samples)
    np.testing.assert_allclose(found, as_share(lost.sum(axis=1)), rtol=1e-4)
    std = scores("std", traced(proto), "w1[0]", samples)
    np.testing.assert_allclose(std, np.sqrt(flat.var(axis=0).reshape(4, 4).sum(axis=1)), rtol=1e-4)


@pytest.mark.parametrize("transposed", [False, True], ids=["Conv", "ConvTranspose"])
def test_variance_weighs_a_grouped_reader_by_the_channels_own_group(transposed: bool) -> None:
    text = GROUPED.replace("c = Conv<", "c = ConvTranspose<") if transposed else GROUPED
    w = weights(w1=(4, 3, 1), w2=(4, 3, 1) if transposed else (6, 2, 1), w3=(2, 6, 1))
    proto, samples = parse(text, w), samples_for(3, 4)
    subject = traced(proto)
    squares = w["w2"].astype(np.float64) ** 2
    if transposed:
        power = squares.sum(axis=(1, 2))
    else:
        power = np.array([squares[3 * (j // 2) : 3 * (j // 2) + 3, j % 2].sum() for j in range(4)])
    wanted = as_share(values_of(proto, "h", samples).var(axis=(0, 2)) * power)
    group = next(one for one in subject.groups if one.name == "w1[0]")
    classes = subject.units("w1", 0).tolist()
    order = [group.units.tolist().index(one) for one in classes]
    found = scores("variance", subject, "w1[0]", samples)[order]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize("criterion", ["std", "variance", "activity"])
def test_units_that_no_sample_sees_are_ranked_by_their_weights(criterion: str) -> None:
    w = weights(w1=(4, 3, 1), w2=(6, 2, 1), w3=(2, 6, 1))
    w["w1"][2] = 0
    subject = traced(parse(GROUPED, w))
    unseen = scores(criterion, subject, "w1[0]")
    power = scores("l2", subject, "w1[0]") ** 2
    np.testing.assert_allclose(unseen, as_share(power))
    np.testing.assert_allclose(unseen.sum(), 1)


def test_a_weight_picked_by_the_input_counts_as_none() -> None:
    """As in a mixture of experts."""
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3] input, int64 k) => (float[N, 5] y)
        { a = MatMul(input, w1) h = Relu(a) w = Gather<axis = 0>(w2, k) y = MatMul(h, w) }"""
    w = weights(w1=(3, 4), w2=(2, 4, 5))
    subject = traced(parse(text, w))
    seen = view(subject, "w1[1]")
    (reading,) = seen.group.readings
    assert reading.consumer.weight == "w"
    np.testing.assert_array_equal(seen.reader_power(reading), np.ones(4))


def test_random_scores_follow_the_seed_alone() -> None:
    w = weights(w1=(9, 3, 1), w2=(2, 9, 1))
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3, 4] input) => (float[N, 2, 4] y) { a = Conv(input, w1) y = Conv(a, w2) }"""
    subject = traced(parse(text, w))
    first, again, other = (scores("random", subject, "w1[0]", seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    assert len(np.unique(first)) == 9


def test_the_names_are_those_of_the_command_line() -> None:
    looking = ["std", "variance", "activity", "taylor", "fisher"]
    built_in = ["l1", "l2", *looking, "random", "redundancy", "reconstruction"]
    assert criterion_names()[: len(built_in)] == built_in
    needing = {name for name in built_in if find_criterion(name).needs_calibration}
    assert needing == {*looking, "reconstruction"}


def test_flags_that_are_not_set_are_off() -> None:
    assert not find_criterion("l1").needs_gradients
    assert not find_criterion("l1").measures_curves
    assert find_criterion("taylor").needs_gradients
    assert find_criterion("reconstruction").measures_curves
