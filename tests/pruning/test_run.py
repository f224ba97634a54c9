"""What a run does as a whole: selection, rollback of what goes wrong, the same bytes every time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.oracle import difference, feed, outputs, parse
from helpers.paths import MODELS
from helpers.samples import few_samples
from numpy.typing import NDArray

import onnxprune
from onnxprune import InputError, NothingPrunable, TargetUnreachable, VerificationError
from onnxprune.compensation import compensate
from onnxprune.compensation.compensate import COMPENSATIONS, Compensated, Compensation, Task
from onnxprune.coupling.cut import Cut
from onnxprune.errors import RuntimeFailure
from onnxprune.surgery.operators import SIZE_RULES
from onnxprune.surgery.slicing import slice_removed

BRANCHES = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3, 4, 4] input) => (float[N, 5] y, float[N, 5] z)
    { a = Conv(input, w1)
      h = Relu(a)
      MIDDLE
      c = Conv(r, w2)
      gc = GlobalAveragePool(c)
      y = Flatten(gc)
      b = Conv(input, v1)
      gb = GlobalAveragePool(b)
      f = Flatten(gb)
      z = Gemm<transB = 1>(f, v2) }"""
"""Two branches that have nothing in common but the input: groups w1[0] of 6 and v1[0] of 8."""

ORDINARY = "r = Tanh(h)"
ROWS_TIMES_CHANNELS = """
    s = Shape(h)
    n = Gather<axis = 0>(s, zero)
    rows = Mul(n, six)
    target = Concat<axis = 0>(rows, rest)
    flat = Reshape(h, target)
    e = Tanh(flat)
    r = Reshape(e, s)"""
"""A size that is the batch times a written-out number of channels: no constant can correct it."""


def branches(middle: str = ORDINARY) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    shapes = {"w1": (6, 3, 1, 1), "w2": (5, 6, 1, 1), "v1": (8, 3, 1, 1), "v2": (5, 8)}
    weights: dict[str, NDArray[Any]] = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    if middle != ORDINARY:
        weights |= {"zero": np.array([0]), "six": np.array([6]), "rest": np.array([4, 4])}
    return parse(BRANCHES.replace("MIDDLE", middle), weights)


def prune(proto: onnx.ModelProto, **options: Any) -> onnxprune.PruneResult:
    options = {"target": {"channels": 0.5}, "measure_latency": False} | options
    return onnxprune.prune(proto, **options)


def proto_of(result: onnxprune.PruneResult) -> onnx.ModelProto:
    assert isinstance(result.model, onnx.ModelProto)
    return result.model


def corrupt(*names: str, when: Callable[[Cut], bool] = lambda cut: True) -> Any:
    """A surgeon who gets the kept channels of some weights in the wrong order."""

    def broken(model: ir.Model, cut: Cut) -> None:
        slice_removed(model, cut)
        for name in names:
            if cut.touches(name) and when(cut):
                value = model.graph.initializers[name]
                assert value.const_value is not None
                value.const_value = ir.tensor(value.const_value.numpy()[::-1].copy(), name=name)

    return broken


def test_all_groups_are_cut_and_certified() -> None:
    proto = branches()
    result = prune(proto)
    assert result.report.widths == {"w1[0]": (6, 3), "v1[0]": (8, 4)}
    assert result.report.dropped == {}
    assert result.report.certificate.holds
    assert result.report.certificate.runs == 2
    assert result.report.certificate.effect > 1e-3
    onnx.checker.check_model(proto_of(result), full_check=True)


def test_a_group_whose_cut_the_graph_cannot_express_stays_whole_alone() -> None:
    proto = branches(ROWS_TIMES_CHANNELS)
    result = prune(proto)
    assert result.report.widths == {"v1[0]": (8, 4)}
    assert result.report.dropped.keys() == {"w1[0]"}
    assert "depends on the batch" in result.report.dropped["w1[0]"]
    fed = feed(proto, 3)
    before, after = outputs(proto, fed), outputs(proto_of(result), fed)
    np.testing.assert_array_equal(before["y"], after["y"])
    assert difference({"z": before["z"]}, {"z": after["z"]}) > 1e-3


@pytest.mark.parametrize(("broken", "left"), [("v1", "w1[0]"), ("w1", "v1[0]")])
def test_a_wrong_surgery_is_caught_and_only_its_group_rolled_back(
    broken: str, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxprune.pruning.build.slice_removed", corrupt(broken))
    result = prune(branches())
    assert result.report.widths.keys() == {left}
    assert result.report.dropped.keys() == {f"{broken}[0]"}
    assert "differs from the masked one" in result.report.dropped[f"{broken}[0]"]
    assert result.report.certificate.holds


def test_a_result_that_does_not_run_costs_only_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody adapts the number of groups: onnxruntime refuses the cut grouped convolution."""
    monkeypatch.delitem(SIZE_RULES, ("", "Conv"))
    proto = branches("r = Conv<group = 6>(h, deep)")
    deep = np.ones((6, 1, 1, 1), np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(deep, "deep"))
    result = prune(proto)
    assert result.report.widths.keys() == {"v1[0]"}
    assert result.report.dropped.keys() == {"w1[0]"}


def test_groups_that_only_fail_together_do_not_both_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    both = corrupt("w1", when=lambda cut: cut.touches("v1"))
    monkeypatch.setattr("onnxprune.pruning.build.slice_removed", both)
    result = prune(branches())
    assert len(result.report.widths) == len(result.report.dropped) == 1
    assert result.report.certificate.holds


def test_when_every_surgery_fails_nothing_is_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.pruning.build.slice_removed", corrupt("w1", "v1"))
    with pytest.raises((NothingPrunable, VerificationError), match="differs from the masked one"):
        prune(branches())


def test_a_target_is_made_up_for_by_the_groups_that_are_left() -> None:
    result = prune(branches(ROWS_TIMES_CHANNELS), target={"params": 0.8})
    assert result.report.widths.keys() == {"v1[0]"}
    assert result.report.result.params <= 0.8 * result.report.original.params
    with pytest.raises(TargetUnreachable, match=r"params=0\.2 cannot be reached; the best is"):
        prune(branches(ROWS_TIMES_CHANNELS), target={"params": 0.2})


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"include": ["w1"]}, ["w1[0]"]),
        ({"include": ["w?"]}, ["w1[0]"]),
        ({"include": ["z"]}, ["v1[0]"]),
        ({"include": ["w1", "v2"]}, ["v1[0]", "w1[0]"]),
        ({"exclude": ["w2"]}, ["v1[0]"]),
        ({"exclude": ["z"]}, ["w1[0]"]),
        ({"include": ["*"], "exclude": ["v*"]}, ["w1[0]"]),
    ],
    ids=str,
)
def test_patterns_name_tensors_or_the_nodes_that_read_them(
    options: dict[str, Any], left: list[str]
) -> None:
    assert sorted(prune(branches(), **options).report.widths) == left


def test_a_node_may_be_named_by_its_own_name() -> None:
    proto = branches()
    proto.graph.node[0].name = "stem"
    assert prune(proto, include=["st*m"]).report.widths.keys() == {"w1[0]"}


def test_patterns_that_match_nothing_are_an_error() -> None:
    for kind in ("include", "exclude"):
        with pytest.raises(InputError, match="'w9' matches no node or tensor"):
            prune(branches(), **{kind: ["w1", "w9"]})


def test_patterns_that_leave_nothing_say_so() -> None:
    with pytest.raises(NothingPrunable, match="include and exclude leave no group"):
        prune(branches(), include=["w1"], exclude=["w2"])


def test_a_model_without_anything_to_cut_says_why() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3] input) => (float[N, 4] y) { y = Gemm<transB = 1>(input, w1) }"""
    with pytest.raises(NothingPrunable, match=r"w1\[0\]: the model's interface stays"):
        prune(parse(text, {"w1": np.ones((4, 3), np.float32)}))
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3] input) => (float[N, 3] y) { y = Relu(input) }"""
    with pytest.raises(NothingPrunable, match="no weights"):
        prune(parse(text))


def test_a_target_that_leaves_every_unit_is_no_pruning() -> None:
    with pytest.raises(NothingPrunable, match="leaves every unit where it is"):
        prune(branches(), target={"channels": 0.99})


def test_what_looks_at_activations_needs_samples() -> None:
    for options in ({"criterion": "std"}, {"compensate": "mean"}):
        with pytest.raises(InputError, match="looks at activations; give --calibration"):
            prune(branches(), **options)


@pytest.mark.parametrize("name", ["digits_mlp", "digits_resnet_bn", "digits_transformer"])
def test_the_same_run_gives_the_same_bytes(name: str) -> None:

    def once(seed: int) -> bytes:
        result = onnxprune.prune(
            onnx.load(MODELS / f"{name}.onnx"),
            calibration=few_samples(name),
            criterion="random",
            target={"macs": 0.6},
            seed=seed,
            threads=1,
            measure_latency=False,
        )
        return proto_of(result).SerializeToString(deterministic=True)

    assert once(1) == once(1) != once(2)


@pytest.mark.parametrize("failing", [{"least-squares"}, {"least-squares", "mean"}, set()])
@pytest.mark.parametrize("open_too", [False, True])
def test_the_plan_says_which_compensation_is_in_the_model(
    monkeypatch: pytest.MonkeyPatch, failing: set[str], open_too: bool
) -> None:
    """Where one fails, a lesser one is in, and the plan gives the same bytes again."""

    def failing_on(real: Compensation) -> Compensation:
        def apply(task: Task) -> Compensated:
            opened = open_too and task.calibration is not None and task.effort.open_groups
            if real.name in failing or opened:
                raise RuntimeFailure("it cannot be")
            return real.apply(task)

        return replace(real, apply=apply)

    monkeypatch.setattr(compensate, "COMPENSATIONS", tuple(map(failing_on, COMPENSATIONS)))
    source, data = MODELS / "digits_mlp.onnx", MODELS / "digits_mlp_calibration.npz"
    given: dict[str, Any] = {"calibration": data, "threads": 1, "measure_latency": False}
    result = onnxprune.prune(onnx.load(source), target={"macs": 0.5}, **given)
    left = [one for one in ("least-squares", "mean", "none") if one not in failing]
    assert result.plan.options["compensate"] == left[0]
    assert ("not possible: it cannot be" in result.report.note) == bool(failing)
    again = onnxprune.apply(onnx.load(source), result.plan, **given)
    assert proto_of(again).SerializeToString() == proto_of(result).SerializeToString()
    assert again.plan.options == result.plan.options


@pytest.mark.parametrize("compensate", ["none", "mean", "least-squares"])
def test_several_steps_go_on_from_each_other_and_can_be_carried_out_again(compensate: str) -> None:
    source, data = MODELS / "digits_mlp.onnx", MODELS / "digits_mlp_calibration.npz"
    given: dict[str, Any] = {"calibration": data, "threads": 1, "measure_latency": False}
    options = {"target": {"macs": 0.4}, "compensate": compensate, "steps": 3}
    result = onnxprune.prune(onnx.load(source), **options, **given)
    removed = [*result.plan.stages, {one.id: one.removed for one in result.plan.groups}]
    assert len(removed) == 3
    for earlier, later in itertools.pairwise(removed):
        assert all(set(units) <= set(later[name]) for name, units in earlier.items())
        assert sum(map(len, earlier.values())) < sum(map(len, later.values()))
    report = result.report
    assert report.certificate.holds
    assert report.result.macs <= 0.4 * report.original.macs
    assert onnxprune.Plan.from_json(result.plan.to_json()) == result.plan
    again = onnxprune.apply(onnx.load(source), result.plan, **given)
    assert proto_of(again) == proto_of(result)


def test_one_step_is_what_there_is_without_steps() -> None:
    source, data = MODELS / "digits_mlp.onnx", MODELS / "digits_mlp_calibration.npz"
    given: dict[str, Any] = {"calibration": data, "threads": 1, "measure_latency": False}
    result = onnxprune.prune(onnx.load(source), target={"macs": 0.4}, **given)
    assert result.plan.stages == ()
    assert "stages" not in result.plan.to_dict()
    with pytest.raises(InputError, match="steps must be a whole number of at least 1"):
        onnxprune.prune(source, steps=0)


def test_a_target_of_size_is_that_of_the_file(tmp_path: Path) -> None:
    source = MODELS / "digits_transformer.onnx"
    given: dict[str, Any] = {"measure_latency": False, "threads": 1}
    result = onnxprune.prune(source, target={"size": 0.8}, **given)
    result.save(tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx").stat().st_size <= 0.8 * source.stat().st_size
    with pytest.raises(TargetUnreachable, match=r"size=0\.01\S* cannot be reached"):
        onnxprune.prune(source, target={"size": 0.01}, **given)


@pytest.mark.parametrize("name", ["digits_mlp", "digits_transformer", "digits_resnet_bn"])
def test_parameters_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    """Biases that compensation adds count as well, and the target is met with them."""
    source, data = MODELS / f"{name}.onnx", few_samples(name)
    given: dict[str, Any] = {"calibration": data, "threads": 1, "measure_latency": False}
    result = onnxprune.prune(source, target={"params": 0.5}, **given)
    result.save(tmp_path / "small.onnx")
    counts = [
        sum(math.prod(one.dims) for one in onnx.load(path).graph.initializer if one.data_type == 1)
        for path in (source, tmp_path / "small.onnx")
    ]
    report = result.report
    assert [report.original.params, report.result.params] == counts
    assert counts[1] <= 0.501 * counts[0]


def test_biases_that_compensation_adds_never_exceed_a_target_unsaid() -> None:
    """Layers without biases, so small that the biases they get count."""
    rng = np.random.default_rng(0)
    values = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in {"a": (4, 9), "b": (9, 7), "c": (7, 5)}.items()
    }
    proto = parse(
        '<ir_version: 8, opset_import: ["": 17]> net (float[N, 4] x) => (float[N, 5] y) '
        "{ h = MatMul(x, a) r = Relu(h) k = MatMul(r, b) s = Relu(k) y = MatMul(s, c) }",
        values,
    )
    samples = {"x": rng.standard_normal((200, 4)).astype(np.float32)}
    whole = sum(one.size for one in values.values())
    met = 0
    for percent in range(35, 100, 5):
        share = percent / 100
        given: dict[str, Any] = {"target": {"params": share}, "calibration": samples}
        try:
            result = onnxprune.prune(proto, **given, threads=1, measure_latency=False, force=True)
        except TargetUnreachable:
            continue
        stored = [math.prod(one.dims) for one in result.model.graph.initializer]
        assert sum(stored) <= (share + 0.001) * whole
        met += 1
    assert met > 3
