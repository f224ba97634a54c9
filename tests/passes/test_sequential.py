"""Every pass of ours also runs in an onnx-ir Sequential."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.oracle import ONE_THREAD
from helpers.reducing import graph, weights

from onnxprune.calibration.samples import read_samples
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import load
from onnxprune.passes.pipeline.registry import find_pass

BODY = """x0 = Gemm (x, a, c) u = MatMul (x0, b1) r = Relu (u) f = MatMul (r, b2)
            s = Add (x0, f) n = Relu (s) y = Gemm (n, d, e)"""
SIGNATURE = "(float[N, 6] x) => (float[N, 3] y)"
SIZES = {"a": (6, 8), "c": (8,), "b1": (8, 4), "b2": (4, 8), "d": (8, 3), "e": (3,)}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("remove-lossless", {}),
        ("merge-duplicates", {}),
        ("prune", {"target": {"macs": 0.8}, "force": True}),
        ("keep-classes", {"keep": [0, 2]}),
        ("remove-blocks", {"count": 1}),
        ("sparsify-weights", {}),
        ("finetune", {"teacher": graph(SIGNATURE, BODY, weights(1, **SIZES)), "effort": 1}),
        ("quantize", {}),
    ],
)
def test_passes_run_in_a_sequential(name: str, options: dict[str, Any]) -> None:
    model = load(graph(SIGNATURE, BODY, weights(**SIZES))).model
    x = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    samples = read_samples({"x": x}, input_specs(model))
    pass_ = find_pass(name).made_by(**options, samples=samples, runtime=ONE_THREAD)
    cleanup = ir.passes.common.RemoveUnusedNodesPass()
    result = ir.passes.Sequential(cleanup, pass_, cleanup)(model)
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)


def test_keep_tokens_runs_in_a_sequential() -> None:
    body = "e = Gather (table, t) y = MatMul (e, u)"
    values = weights(table=(10, 4), u=(4, 10))
    model = load(graph("(int64[N, T] t) => (float[N, T, 10] y)", body, values)).model
    result = ir.passes.Sequential(find_pass("keep-tokens").made_by(keep=[1, 2]))(model)
    assert result.modified
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
