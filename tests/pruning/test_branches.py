"""Models with If, Loop and Scan: compensated like any other, and what never ran stays whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.branching import RATES, agreement, alone, branched, feeds, of_rate
from helpers.oracle import parse

import onnxprune
from onnxprune.calibration.context import RunContext
from onnxprune.coupling.analysis import analyse
from onnxprune.coupling.cut import Cut, Removal
from onnxprune.errors import VerificationError
from onnxprune.model.bodies import places
from onnxprune.model.load import load
from onnxprune.pruning.build import _compare_unseen, build_plain
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.surgery.slicing import slice_removed

TEST = feeds(64, seed=7)
GRU = "*g_node"  # its weights cannot be re-fitted
FIRST, SECOND = RATES


def kept(result: onnxprune.PruneResult) -> dict[str, int]:
    """Units that are left of each group."""
    return {group["name"]: group["kept"] for group in result.report.to_dict()["groups"]}


@pytest.fixture(scope="module")
def by_themselves() -> dict[int, float]:
    """For each rate how well its branch is pruned as a model of its own."""
    found = {}
    for rate, one in zip(RATES, (alone(2), alone(3)), strict=True):
        sounds = [{"x": feed["x"]} for feed in feeds(32, (rate,))]
        pruned = onnxprune.prune(one, target={"macs": 0.7}, calibration=sounds, exclude=[GRU])
        found[rate] = agreement(one, pruned.model, of_rate(TEST, rate))
    return found


@pytest.mark.parametrize("where", ["inside", "outer", "trunk"])
def test_both_branches_are_compensated(where: str, by_themselves: dict[int, float]) -> None:
    """As well as if each were a model of its own."""
    model = branched(2, outer=where == "outer", trunk=where == "trunk")
    result = onnxprune.prune(model, target={"macs": 0.7}, calibration=feeds(32), exclude=[GRU])
    for rate, wanted in by_themselves.items():
        assert wanted > 95
        assert agreement(model, result.model, of_rate(TEST, rate)) > wanted - 3


@pytest.mark.parametrize("where", ["inside", "outer", "trunk"])
def test_a_branch_that_no_sample_runs_stays_whole(where: str) -> None:
    model = branched(2, outer=where == "outer", trunk=where == "trunk")
    samples = feeds(24, (FIRST,))
    result = onnxprune.prune(model, target={"macs": 0.8}, calibration=samples, exclude=[GRU])
    assert agreement(model, result.model, of_rate(TEST, FIRST)) > 90
    report = result.report.to_dict()
    reason = "no sample runs the else_branch of If by_rate, so it stays whole; give more that do"
    axes = {refused["axis"] for refused in report["refused"] if refused["reason"] == reason}
    assert {"b_w3[0]", "b_w3[1]", "b_o1[0]"} <= axes
    assert not any(name.startswith("b_") for name in kept(result))
    assert reason in report["warnings"]
    shared = {"a_w1"} if where == "trunk" else set()
    for tensor in sizes(model).keys() - shared:
        if tensor.startswith("b_"):
            assert sizes(result.model)[tensor] == sizes(model)[tensor]


def test_what_does_not_run_does_not_count() -> None:
    one = onnxprune.inspect(alone(2), calibration=[{"x": f["x"]} for f in feeds(2, (FIRST,))])
    first, both = (
        onnxprune.inspect(branched(2), calibration=feeds(4, rates)) for rates in ((FIRST,), RATES)
    )
    assert first.sizes.macs == both.sizes.macs == one.sizes.macs
    assert {r.reason for r in first.refused} - {r.reason for r in both.refused} == {
        "no sample runs the else_branch of If by_rate, so it stays whole; give more that do"
    }


def test_one_sample_is_none() -> None:
    """It shows no variation, so all it runs would look constant."""
    model = branched(2)
    single = {key: value[:1] if key == "x" else value for key, value in feeds(2)[1].items()}
    samples = [*feeds(16, (FIRST,)), single]
    result = onnxprune.prune(model, target={"macs": 0.8}, calibration=samples)
    assert agreement(model, result.model, of_rate(TEST, SECOND)) == 100
    assert any("only one sample runs the else_branch" in w for w in result.report.warnings)


def test_few_samples_of_a_branch_are_a_warning() -> None:
    samples = [*feeds(8, (FIRST,)), *feeds(1, (SECOND,))]
    result = onnxprune.prune(branched(2), target={"macs": 0.9}, calibration=samples)
    assert [w for w in result.report.warnings if "only 8 samples run the else_branch of If" in w]


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("by_rate", {"a_w1[0]"}),  # a node protects what is in its bodies
        ("If by_rate", {"a_w1[0]"}),
        ("y", {"a_w1[0]"}),
        ("b_*", {"a_w1[0]", "a_w3[0]", "a_gr[2]", "a_o1[0]"}),
        ("Conv b_h3_node", {"a_w1[0]", "a_w3[0]", "a_gr[2]", "a_o1[0]", "b_o1[0]", "b_gr[2]"}),
        ("[ab]_o1", {"a_w1[0]", "a_w2[0]", "a_w3[0]", "b_w3[0]"}),
    ],
)
def test_names_in_bodies_protect(pattern: str, left: set[str]) -> None:
    analysis = analyse(load(branched(2, trunk=True)).model, RunContext())
    assert {group.name for group in analysis.selected([], [pattern])} == left


def test_every_name_that_inspect_prints_is_known() -> None:
    model = branched(2, trunk=True)
    analysis = analyse(load(model).model, RunContext())
    printed = onnxprune.inspect(model).to_dict()
    names = {node["node"] for node in printed["nodes"]}
    names |= {refused[key] for refused in printed["refused"] for key in ("axis", "node")}
    for group in printed["groups"]:
        mine = {group["id"], *group["tensors"], *group["consumers"]}
        for name in mine:
            left = {other.name for other in analysis.selected([], [name])}
            assert group["id"] not in left
        names |= mine
    for name in names - {"graph output"}:
        analysis.selected([], [name])


def sizes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of all initializers, those in bodies included."""
    graphs, found = [model.graph], {}
    while graphs:
        graph = graphs.pop()
        found |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return found


LENGTHS = """<ir_version: 8, opset_import: ["": 17]>
    net (float[N, L] x, bool wide) => (float[N, 6] y) {
      y = If(wide) <then_branch = long () => (float[N, 6] y1) {
        h1 = MatMul(x, a) r1 = Relu(h1) y1 = MatMul(r1, b)
      }, else_branch = short () => (float[N, 6] y2) {
        h2 = MatMul(x, c) r2 = Relu(h2) y2 = MatMul(r2, d)
      }>
    }"""


def test_branches_that_only_run_on_inputs_of_their_own_length() -> None:
    """They do not run on what the model was observed with, but on what the samples give them."""
    rng = np.random.default_rng(0)
    shapes = {"a": (64, 16), "b": (16, 6), "c": (32, 12), "d": (12, 6)}
    weights = {name: rng.standard_normal(shape) / 4 for name, shape in shapes.items()}
    model = parse(LENGTHS, {name: array.astype(np.float32) for name, array in weights.items()})

    def batch(number: int) -> dict[str, Any]:
        long = number % 3 != 2
        x = rng.standard_normal((8, 64 if long else 32)).astype(np.float32)
        return {"x": x, "wide": np.array(long)}

    samples = [batch(number) for number in range(24)]
    result = onnxprune.prune(model, target={"channels": 0.75}, calibration=samples)
    assert kept(result) == {"a[1]": 12, "c[1]": 9}
    assert {fit.node for fit in result.report.repairs if fit.solved} == {"y1", "y2"}
    assert result.report.certificate.runs == 3


def test_a_branch_that_no_input_runs_is_certified_all_the_same() -> None:
    """Without samples the rate is a number at hand, which only the second branch is for."""
    model = branched(2)
    analysis = analyse(load(model).model, RunContext())
    assert analysis.unseen == {"y/then_branch"}
    group = next(group for group in analysis.groups if group.name == "a_w2[0]")
    removal = Removal({group.name: (int(group.units[3]),)})
    assert build_plain(analysis, removal, RunContext()).certificate.holds
    full = EditableModel(analysis.model.clone(), analysis.coupling)
    cut = Cut(full.coupling, removal.removed_units())
    slice_removed(full.model, cut)
    broken = full.model.clone()
    tensor = next(
        t
        for t in places(broken.graph)["y/then_branch"].graph.initializers.values()
        if t.name == "a_b3"
    )
    tensor.const_value = ir.tensor(tensor.const_value.numpy() + 1)
    with pytest.raises(VerificationError, match="then_branch of If by_rate of the sliced model"):
        _compare_unseen(analysis, cut, (full.model, broken), RunContext())
