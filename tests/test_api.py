"""The Python API: every kind of model in, the same kind out, the caller's object untouched."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import pytest
from helpers.paths import MODELS

import onnxprune

RESNET = MODELS / "digits_resnet_bn.onnx"
MLP = MODELS / "digits_mlp.onnx"
TARGET = {"macs": 0.6}


@pytest.fixture(scope="module")
def samples():
    with np.load(MODELS / "digits_resnet_calibration.npz") as file:
        return {name: file[name][:64] for name in file.files}


@pytest.fixture(scope="module")
def pixels():
    """Samples of the perceptron, for what does not depend on the model."""
    with np.load(MODELS / "digits_mlp_calibration.npz") as file:
        return {name: file[name][:64] for name in file.files}


@pytest.fixture(scope="module")
def reference(samples):
    """The network of the file, pruned from its path."""
    return prune(str(RESNET), calibration=samples)


@pytest.fixture(scope="module")
def small(pixels):
    """The perceptron of the file, pruned."""
    return prune(MLP, calibration=pixels)


def prune(model, **options):
    return onnxprune.prune(model, target=TARGET, measure_latency=False, **options)


def weights(model):
    """Initializers by name, of any kind of model."""
    if isinstance(model, gs.Graph):
        model = gs.export_onnx(model)
    if isinstance(model, ir.Model):
        model = ir.to_proto(model)
    return {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}


def same(first, second):
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name]) for name in first
    )


def test_defaults_are_with_samples_what_keeps_most_and_without_what_needs_none(reference):
    chosen = ("criterion", "compensate", "allocation", "lossless")
    options = reference.plan.options
    assert [options[one] for one in chosen] == ["reconstruction", "least-squares", "auto", True]
    report = reference.report
    assert report.note == ""
    assert min(report.trials, key=report.trials.__getitem__) == report.allocation
    assert {one.node for one in report.repairs if one.solved}
    assert {"repairs", "allocation", "trials", "note"} <= report.to_dict().keys()
    without = prune(RESNET)
    assert [without.plan.options[one] for one in chosen[:2]] == ["l2", "none"]
    assert (without.report.repairs, without.report.trials) == ((), {})


KINDS = {
    "proto": onnx.load,
    "ir": ir.load,
    "graphsurgeon": lambda path: gs.import_onnx(onnx.load(path)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_same_kind_out(samples, reference, kind, tmp_path):
    model = KINDS[kind](RESNET)
    before = weights(model)
    data = model.SerializeToString(deterministic=True) if kind == "proto" else None
    result = prune(model, calibration=samples)
    assert type(result.model) is type(model)
    assert same(weights(model), before)
    assert data is None or model.SerializeToString(deterministic=True) == data
    assert same(weights(result.model), weights(reference.model))
    assert result.plan.groups == reference.plan.groups
    result.save(tmp_path / "o.onnx")
    onnx.checker.check_model(tmp_path / "o.onnx", full_check=True)


def test_path_gives_an_ir_model_and_leaves_the_file_alone(pixels):
    before = MLP.read_bytes()
    result = prune(str(MLP), calibration=pixels)
    assert isinstance(result.model, ir.Model)
    assert MLP.read_bytes() == before


def test_proto_is_unchanged_to_the_byte(pixels):
    proto = onnx.load(MLP)
    before = proto.SerializeToString(deterministic=True)
    prune(proto, calibration=pixels)
    assert proto.SerializeToString(deterministic=True) == before


class Reader:
    """Like onnxruntime's CalibrationDataReader."""

    def __init__(self, samples):
        self.feeds = iter(
            [{name: one[i : i + 16] for name, one in samples.items()} for i in range(0, 64, 16)]
        )

    def get_next(self):
        return next(self.feeds, None)


@pytest.mark.parametrize(
    "form",
    [
        lambda samples: [
            {name: one[i : i + 16] for name, one in samples.items()} for i in range(0, 64, 16)
        ],
        lambda samples: (
            {name: one[i : i + 16] for name, one in samples.items()} for i in range(0, 64, 16)
        ),
        lambda samples: samples["pixels"],
        Reader,
    ],
    ids=["list", "generator", "array", "reader"],
)
def test_calibration_from_python(pixels, small, form):
    assert prune(MLP, calibration=form(pixels)).plan.groups == small.plan.groups


def test_apply_takes_plans_and_files(samples, reference, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(reference.plan.to_json())
    for plan in (reference.plan, path, str(path)):
        again = onnxprune.apply(RESNET, plan, calibration=samples, measure_latency=False)
        assert same(weights(again.model), weights(reference.model))
    assert onnxprune.Plan.from_json(reference.plan.to_json()) == reference.plan


def test_result_is_not_saved_over_the_input(pixels, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(MLP.read_bytes())
    result = prune(path, calibration=pixels)
    with pytest.raises(onnxprune.InputError, match="overwrite"):
        result.save(path)


def test_verify_and_inspect_stay_functions(samples):
    for _ in range(2):
        compared = onnxprune.verify(RESNET, RESNET, calibration=samples)
        assert compared.outputs[0].agreement == 1.0
        assert onnxprune.inspect(RESNET).groups


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"target": {"speed": 0.5}}, onnxprune.InputError),
        ({"target": {}}, onnxprune.InputError),
        ({"target": {"params": 1e-6}}, onnxprune.TargetUnreachable),
        ({"criterion": "none"}, onnxprune.InputError),
        ({"seed": -1}, onnxprune.InputError),
        ({"calibration": {"wrong": np.zeros((2, 2))}}, onnxprune.CalibrationError),
        ({"calibration": 3}, onnxprune.CalibrationError),
        ({"exclude": ["*"]}, onnxprune.NothingPrunable),
    ],
)
def test_errors(options, error):
    with pytest.raises(error):
        onnxprune.prune(RESNET, measure_latency=False, **options)
    with pytest.raises(onnxprune.InputError):
        onnxprune.prune(3)


def test_importing_costs_next_to_nothing():
    code = (
        "import sys, onnxprune; print([m for m in ('numpy', 'onnx', 'onnx_ir', 'onnxruntime', "
        "'onnx_graphsurgeon', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_public_names():
    assert set(dir(onnxprune)) == set(onnxprune.__all__)
    assert all(getattr(onnxprune, name) is not None for name in onnxprune.__all__)
    with pytest.raises(AttributeError):
        _ = onnxprune.nonsense
