"""What passes have in common."""

from __future__ import annotations

import onnx_ir as ir
from helpers.solving import images, mlp

from onnxprune.calibration.samples import read_samples
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import load
from onnxprune.passes.pipeline.protocol import Pass
from onnxprune.passes.pipeline.registry import installed_passes
from onnxprune.passes.prune import Prune


def test_passes_of_ours_derive_from_the_protocol() -> None:
    ours = [each.made_by for each in installed_passes() if each.ours]
    assert ours
    assert all(issubclass(made_by, Pass) for made_by in ours)


def test_prune_accounts_for_itself_outside_a_pipeline() -> None:
    samples = read_samples({"x": images(48, 8)}, input_specs(load(mlp()).model))
    prune = Prune(samples, target={"macs": 0.6})
    result = ir.passes.Sequential(prune)(ir.from_proto(mlp()))
    assert prune.details["options"]["compensate"] == "least-squares"
    again = Prune(samples, plan=prune.plan)(ir.from_proto(mlp()))
    assert ir.to_proto(again.model) == ir.to_proto(result.model)
