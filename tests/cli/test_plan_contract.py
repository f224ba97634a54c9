"""The plan file alone lets an outside script check the result."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime
import pytest

CASES = [
    ("spirals_mlp", "spirals", "channels=0.5"),
    ("digits_mlp", "digits_mlp", "params=0.6"),
    ("digits_resnet", "digits_resnet", "macs=0.6"),
    ("digits_resnet_bn", "digits_resnet", "channels=0.5"),
    ("digits_transformer", "digits_transformer", "params=0.6"),
]


def outputs(model, feed):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return [np.asarray(one, np.float64) for one in session.run(None, feed)]


def zeroed(model, cut):
    """The original with everything that the plan does not keep at zero."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    tensors = {one.name: one for one in result.graph.initializer}
    for node in result.graph.node:
        if node.op_type == "Constant":
            tensors[node.output[0]] = node.attribute[0].t
    for name, axes in cut.items():
        array = onnx.numpy_helper.to_array(tensors[name]).copy()
        for axis, kept in axes.items():
            gone = np.setdiff1d(np.arange(array.shape[int(axis)]), kept)
            np.moveaxis(array, int(axis), 0)[gone] = 0
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(array, tensors[name].name))
    return result


@pytest.mark.parametrize("criterion", ["l2", "random"])
@pytest.mark.parametrize(("model", "data", "target"), CASES)
def test_pruned_is_the_original_with_zeros(run, models, tmp_path, model, data, target, criterion):
    source, out, plan = models / f"{model}.onnx", tmp_path / "o.onnx", tmp_path / "p.json"
    outcome = run(
        *("prune", source, out, "--plan", plan, "--target", target),
        *("--criterion", criterion, "--compensate", "none"),
    )
    assert outcome.code == 0, outcome.err
    cut = json.loads(plan.read_text())["initializers"]
    original, small = onnx.load(source), onnx.load(out)
    masked = zeroed(original, cut)
    with np.load(models / f"{data}_calibration.npz") as file:
        feed = {name: file[name][:32] for name in file.files}
    before, wanted, got = (outputs(one, feed) for one in (original, masked, small))
    for first, second, third in zip(before, wanted, got, strict=True):
        assert np.abs(second - third).max() <= 1e-4 * np.abs(second).max()
        assert np.abs(first - second).max() > 1e-2 * np.abs(first).max()
    sizes = {one.name: tuple(one.dims) for one in small.graph.initializer}
    for name, axes in cut.items():
        if name in sizes:
            kept = {int(axis): len(indices) for axis, indices in axes.items()}
            assert all(sizes[name][axis] == number for axis, number in kept.items())
