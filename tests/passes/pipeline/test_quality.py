"""Quality of a whole pipeline: measured after every pass, held to a limit, or the best there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from helpers.oracle import parse

import onnxprune
from onnxprune import InputError, NothingPrunable, TargetUnreachable

NETWORK = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 6] x) => (float[N, 4] y)
    { a = MatMul(x, w1)
      b = Relu(a)
      y = MatMul(b, w2) }"""
RNG = np.random.default_rng(0)
SAMPLES = {"x": RNG.standard_normal((1024, 6)).astype(np.float32)}


def network():
    shapes = {"w1": (6, 24), "w2": (24, 4)}
    rng = np.random.default_rng(4)
    return parse(NETWORK, {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})


def run(passes, **options: Any):
    given = {
        "calibration": SAMPLES,
        "threads": 1,
        "measure_latency": False,
        "force": True,
    } | options
    return onnxprune.run_pipeline(network(), passes, **given)


def noise(scale):
    """A pass that adds noise to the last weights."""

    def disturb(model: ir.Model) -> ir.Model:
        value = model.graph[-1].inputs[1]
        weights = value.const_value.numpy().copy()
        weights += scale * np.random.default_rng(2).standard_normal(weights.shape)
        value.const_value = ir.tensor(weights)
        return model

    return disturb


def test_quality_is_measured_after_every_pass():
    result = run(["remove-lossless", {"prune": {"target": {"macs": 0.4}}}], metric="kappa")
    first, second = (step.quality for step in result.steps)
    assert (first.measure, first.drop, first.held_out) == ("kappa", 0, False)
    assert second.drop > 0
    assert result.report.quality == second
    assert [step["quality"]["measure"] for step in result.to_dict()["steps"]] == ["kappa", "kappa"]


def test_labels_are_for_accuracy_and_for_losses():
    labels = np.tile([0, 1, 2, 3], 256)
    pruning = {"prune": {"target": {"macs": 0.6}, "criterion": "taylor"}}
    result = run([pruning, "remove-lossless"], labels=labels)
    assert [step.quality.measure for step in result.steps] == ["accuracy", "accuracy"]
    others = run([pruning, "remove-lossless"], labels=np.minimum(labels, 1))
    assert others.plan.steps[0].plan["groups"] != result.plan.steps[0].plan["groups"]
    targets = RNG.random((1024, 4))
    result = run([{"prune": {"criterion": "taylor", "loss": "mse"}}], labels=targets)
    assert result.steps[0].quality is None


def test_without_anything_asked_nothing_is_measured():
    assert run(["remove-lossless"]).steps[0].quality is None


def test_pruning_goes_as_far_as_the_limit_allows():
    narrow, wide = (run(["prune", "remove-lossless"], max_drop=limit) for limit in (3, 20))
    for result, limit in ((narrow, 3), (wide, 20)):
        assert all(step.quality.drop <= limit for step in result.steps)
        assert all(step.quality.held_out for step in result.steps)
        assert result.steps[0].quality.samples == 256
        assert result.missed == ""
    assert wide.steps[-1].sizes.macs < narrow.steps[-1].sizes.macs


def test_a_later_pass_gets_a_part_of_the_limit():
    """Alone each stays within it; together they do not, so pruning goes less far."""
    limit = 10
    alone = run([noise(0.1)], metric="agreement").steps[0].quality.drop
    assert 0 < alone < limit
    far = run(["prune"], max_drop=limit, metric="agreement").steps[0]
    both = run(["prune", noise(0.1)], max_drop=limit, metric="agreement")
    assert both.steps[-1].quality.drop <= limit
    assert both.steps[0].sizes.macs > far.sizes.macs


def test_a_pass_beyond_the_limit_is_refused():
    with pytest.raises(TargetUnreachable, match=r"pass 2 \(disturb\) the drop .* more than the 8"):
        run([{"prune": {"target": {"macs": 0.96}}}, noise(3.0)], max_drop=8, metric="kappa")


def test_a_pass_that_prunes_to_a_target_is_held_to_the_limit_too():
    with pytest.raises(TargetUnreachable, match=r"macs=0.1 costs .* more than the 1 allowed"):
        run([{"prune": {"target": {"macs": 0.1}}}], max_drop=1)


def test_best_effort_gives_what_there_was_before_the_pass_beyond_the_limit():
    passes = [{"prune": {"target": {"macs": 0.96}}}, noise(3.0), "remove-lossless"]
    result = run(passes, max_drop=5, best_effort=True)
    assert [step.name for step in result.steps] == ["prune"]
    assert "disturb" in result.missed
    assert result.steps[-1].quality.drop <= 5
    assert len(result.plan.steps or result.plan.groups) > 0


def test_best_effort_where_the_first_pass_is_beyond_the_limit():
    result = run([noise(3.0), "remove-lossless"], max_drop=1, best_effort=True, force=True)
    assert [step.name for step in result.steps] == ["disturb"]
    assert "pass 1 (disturb)" in result.missed
    assert result.to_dict()["steps"][0]["missed"] == result.missed


def test_a_pass_with_a_limit_of_its_own_keeps_to_that():
    own = run([{"prune": {"max_drop": 3.0}}, "remove-lossless"], max_drop=30)
    shared = run(["prune", "remove-lossless"], max_drop=30)
    assert own.steps[0].sizes.macs > shared.steps[0].sizes.macs


def test_after_another_interface_the_limit_is_about_the_new_outputs():
    passes = [{"keep-classes": {"keep": [0, 2, 3]}}, "prune"]
    result = run(passes, max_drop=10)
    assert result.steps[0].quality is None
    assert 0 <= result.steps[1].quality.drop <= 10
    with pytest.raises(InputError, match="keep-classes, which changes the interface"):
        run(passes, labels=np.zeros(1024, int))


def unfinished(outputs, reference, labels):
    raise ValueError("not yet")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "kapa"}, "did you mean 'kappa'"),
        ({"metric": unfinished}, "unfinished raised ValueError: not yet"),
        ({"max_drop": -1}, "max_drop"),
        ({"best_effort": True}, "best_effort is for max_drop"),
        ({"labels": ["a"] * 1024}, "give --metric|need --metric"),
        ({"labels": [1]}, "1 labels for 1024 samples"),
        ({"max_drop": 1, "calibration": None}, "--calibration"),
        ({"metric": "kappa", "calibration": None}, "--calibration"),
    ],
)
def test_what_cannot_be_asked(options, words):
    with pytest.raises(InputError, match=words):
        run(["remove-lossless"], **options)


def test_nothing_prunable_stays_what_it_is():
    with pytest.raises(NothingPrunable):
        run([{"prune": {"exclude": ["w1"]}}], max_drop=1)
