"""Whole residual blocks as one more level of the allocation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import outputs
from helpers.paths import MODELS
from helpers.reducing import Weights, declared, graph, shapes, weights
from helpers.samples import few_samples

import onnxprune
from onnxprune.errors import InputError, TargetUnreachable

# Two branches of the same cost on a stream of eight channels.
BODY = """x0 = Gemm (x, a, c)
          u1 = MatMul (x0, b1) r1 = Relu (u1) f1 = MatMul (r1, b2) y1 = Add (x0, f1)
          u2 = MatMul (y1, b3) r2 = Relu (u2) f2 = MatMul (r2, b4) y2 = Add (y1, f2)
          n = Relu (y2) y = MatMul (n, d)"""
GIVEN: dict[str, Any] = {"threads": 1, "measure_latency": False}


def network(second: float) -> onnx.ModelProto:
    """A network whose second branch gives `second` times what the first gives, or so."""
    values = weights(a=(6, 8), c=(8,), b1=(8, 24), b2=(24, 8), b3=(8, 24), b4=(24, 8), d=(8, 3))
    values["b4"] = np.asarray(values["b4"] * second, np.float32)
    return graph("(float[N, 6] x) => (float[N, 3] y)", BODY, values)


@pytest.fixture(scope="module")
def samples() -> Weights:
    x = np.random.default_rng(1).standard_normal((512, 6))
    return {"x": x.astype(np.float32)}


def pruned(proto: onnx.ModelProto, samples: Weights, **options: Any) -> onnxprune.PruneResult:
    return onnxprune.prune(proto, calibration=samples, **{"blocks": True, **options}, **GIVEN)


def test_a_branch_that_gives_little_goes_before_units_that_matter(samples: Weights) -> None:
    proto = network(second=0.01)
    result = pruned(proto, samples, target={"macs": 0.55})
    report = result.report
    assert result.plan.blocks == report.blocks == ("y2",)
    assert {"b3", "b4"}.isdisjoint(shapes(result.model))
    assert report.certificate.holds
    assert report.depths[1] < report.depths[0]
    assert declared(result.model) == declared(proto)


def test_targets_are_fractions_of_the_original(samples: Weights) -> None:
    proto = network(second=0.01)
    report = pruned(proto, samples, target={"macs": 0.4}).report
    assert report.original.macs == pruned(proto, samples, target={"macs": 0.9}).report.original.macs
    assert report.blocks == ("y2",)
    assert 0.35 * report.original.macs < report.result.macs <= 0.4 * report.original.macs


def test_branches_that_matter_stay_and_nothing_else_changes(samples: Weights) -> None:
    proto = network(second=1.0)
    result = pruned(proto, samples, target={"macs": 0.9})
    without = pruned(proto, samples, target={"macs": 0.9}, blocks=False)
    assert result.report.blocks == ()
    assert min(result.report.depths.values()) == result.report.depths[0]
    assert result.model == without.model
    assert "blocks" not in result.plan.to_dict()
    assert without.report.depths == {}


def test_a_plan_takes_the_same_blocks_out_again(samples: Weights) -> None:
    proto = network(second=0.01)
    result = pruned(proto, samples, target={"macs": 0.5})
    plan = onnxprune.Plan.from_json(result.plan.to_json())
    assert plan == result.plan
    again = onnxprune.apply(proto, plan, calibration=samples, **GIVEN)
    assert again.model == result.model
    assert again.plan == plan
    assert again.report.result == result.report.result
    bare = onnxprune.apply(proto, plan, **GIVEN)
    assert shapes(bare.model)["b1"] == shapes(result.model)["b1"]
    with pytest.raises(InputError, match="no residual block 'y7'"):
        onnxprune.apply(proto, replace(plan, blocks=("y7",)), calibration=samples, **GIVEN)


def test_blocks_reach_what_widths_alone_cannot(samples: Weights) -> None:
    """One of 24 units has to stay, with 16 weights; of a block 8 means stay."""
    proto = network(second=0.01)
    options: dict[str, Any] = {"exclude": ["a", "b1"], "target": {"params": 0.56}}
    with pytest.raises(TargetUnreachable):
        pruned(proto, samples, blocks=False, **options)
    found = pruned(proto, samples, **options)
    assert found.report.blocks == ("y2",)
    assert found.report.depths[0] == np.inf


def test_exclude_and_include_hold_for_blocks(samples: Weights) -> None:
    proto = network(second=0.01)
    kept = pruned(proto, samples, target={"macs": 0.8}, exclude=["b4"])
    assert "y2" not in kept.report.blocks
    others = pruned(proto, samples, target={"macs": 0.8}, include=["b1"])
    assert "y2" not in others.report.blocks


def test_outputs_stay_as_close_as_the_report_says(samples: Weights) -> None:
    proto = network(second=0.01)
    result = pruned(proto, samples, target={"macs": 0.55})
    fresh = {"x": np.random.default_rng(2).standard_normal((400, 6)).astype(np.float32)}
    wanted, got = (outputs(one, fresh)["y"].astype(np.float64) for one in (proto, result.model))
    narrower = pruned(proto, samples, target={"macs": 0.55}, blocks=False)
    other = outputs(narrower.model, fresh)["y"]
    assert ((wanted - got) ** 2).mean() < ((wanted - other) ** 2).mean()


def test_blocks_of_a_transformer_and_the_file_that_is_left(tmp_path: Path) -> None:
    source = MODELS / "digits_transformer.onnx"
    samples = few_samples("digits_transformer")
    result = onnxprune.prune(
        source, calibration=samples, target={"size": 0.6}, blocks=True, **GIVEN
    )
    result.save(tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx").stat().st_size <= 0.6 * source.stat().st_size
    assert result.report.certificate.holds
    assert len(result.report.depths) > 1


def test_blocks_of_a_network_that_onnxruntime_has_fused(samples: Weights) -> None:
    """The second sum and its normalisation are one node; a plan finds the branch there again."""
    body = """x0 = Gemm (x, a, c) q = Unsqueeze (x0, axes)
        u1 = MatMul (q, b1) r1 = Relu (u1) f1 = MatMul (r1, b2)
        y1 = com.microsoft.SkipLayerNormalization (f1, q, g, h)
        u2 = MatMul (y1, b3) r2 = Relu (u2) f2 = MatMul (r2, b4)
        y2 = com.microsoft.SkipLayerNormalization (y1, f2, g, h)
        n = Squeeze (y2, axes) y = MatMul (n, d)"""
    values = weights(a=(6, 8), c=(8,), b1=(8, 24), b2=(24, 8), b3=(8, 24), b4=(24, 8), d=(8, 3))
    values |= {"g": np.ones(8, np.float32), "h": np.zeros(8, np.float32), "axes": np.array([1])}
    values["b4"] = np.asarray(values["b4"] * 0.01, np.float32)
    proto = graph("(float[N, 6] x) => (float[N, 3] y)", body, values)
    result = pruned(proto, samples, target={"macs": 0.55})
    assert result.plan.blocks == ("y2/sum",)
    assert {"b3", "b4"}.isdisjoint(shapes(result.model))
    assert result.report.certificate.holds
    assert declared(result.model) == declared(proto)
    again = onnxprune.apply(proto, result.plan, calibration=samples, **GIVEN)
    assert again.model == result.model
    whole = pruned(proto, samples, target={"macs": 0.55}, exclude=["b4"])
    assert "y2/sum" not in whole.plan.blocks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": None, "target": {"macs": 0.5}}, "requires calibration samples"),
        ({"compensate": "mean", "target": {"macs": 0.5}}, "compensate=least-squares"),
        ({"target": {"channels": 0.5}}, "use macs, params"),
    ],
)
def test_what_blocks_cannot_be_weighed_with(
    options: dict[str, Any], message: str, samples: Weights
) -> None:
    with pytest.raises(InputError, match=message):
        onnxprune.prune(network(1.0), **{"calibration": samples, **options}, blocks=True, **GIVEN)
