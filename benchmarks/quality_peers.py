"""Prune with onnxsim for `quality.py`; runs in an environment of its own, which has onnxsim.

Reads one job (JSON) from stdin. onnxsim takes a ratio for all layers and no budget: `quality.py`
looks for the ratio that comes closest to the MACs wanted. Methods are its two norms and its Wanda
ranking, each for channels and, where there is attention, for heads; GELUs spelled out by an
exporter are fused for it by onnxruntime's own optimizer. Recoveries are its two that fit
a pruned model to the original from unlabelled samples: `ridge` re-solves MatMul and Gemm,
`bn` puts a BatchNormalization behind every Conv whose channels are all left and gives it, front to
back, the statistics of the original.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import onnx
import onnxsim
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.fusion_options import FusionOptions
from quality_feeds import batches, load_arrays
from quality_runs import answer


def prepared(path: str) -> Any:
    """The model as onnxsim can prune it: it cuts no width in front of a GELU of several nodes."""
    model = onnx.load(path)
    if all(node.op_type != "Erf" for node in model.graph.node):
        return model
    options = FusionOptions("bert")
    for name in vars(options):
        if name.startswith("enable_") and name != "enable_gelu":
            setattr(options, name, False)
    fused = optimizer.optimize_model(path, "bert", optimization_options=options, opt_level=0)
    return fused.model


def pruned(model: Any, method: str, ratio: float, feeds: list[Any]) -> Any:
    """The model with a fraction of every layer's channels and heads removed."""
    if method == "wanda":
        model = onnxsim.apply_structured_wanda_pruning(model, feeds, sparsity=ratio)
        return onnxsim.apply_attention_head_wanda_pruning(model, feeds, sparsity=ratio)
    model = onnxsim.apply_structured_pruning(model, ratio, importance_norm=method)
    return onnxsim.apply_attention_head_pruning(model, ratio, importance_norm=method)


def recovered(original: Any, model: Any, recovery: str, feeds: list[Any]) -> Any:
    """The pruned model after one of onnxsim's own recoveries."""
    if recovery == "ridge":
        return onnxsim.apply_pruning_finetune(original, model, feeds)
    if recovery == "bn":
        before, after = outputs(original), outputs(model)
        whole = [name for name, width in after.items() if before.get(name) == width]
        model, nodes = onnxsim.insert_identity_bn(model, conv_output_names=whole)
        # one call for all of them measures every layer before those in front of it are repaired
        for node in nodes:
            model = onnxsim.calibrate_recovered_bn(
                model, feeds, target_model=original, node_names=[node.node_name]
            )
    return model


def outputs(model: Any) -> dict[str, int]:
    """Output name of every convolution -> its channels."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    nodes = (node for node in model.graph.node if node.op_type == "Conv")
    return {node.output[0]: shapes[node.input[1]][0] for node in nodes if node.input[1] in shapes}


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Prune and recover as a job says; returns the seconds it took."""
    feeds = [feed for _, feed in batches(load_arrays(job["calibration"]), 256)]
    original = prepared(job["model"])
    started = time.perf_counter()
    model = pruned(original, job["method"], job["ratio"], feeds)
    model = recovered(original, model, job["recovery"], feeds)
    seconds = time.perf_counter() - started
    onnx.save(model, job["output"])
    return {"seconds": seconds}


if __name__ == "__main__":
    answer(json.load(sys.stdin), work)
