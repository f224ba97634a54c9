"""Files that list their weights among the inputs, as IR version 3 requires, are pruned alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import parse
from helpers.paths import MODELS
from helpers.versions import constants, declared_shapes, listed, unlisted
from numpy.typing import NDArray

import onnxprune
from onnxprune import PruneResult


def calibration(name: str) -> dict[str, NDArray[Any]]:
    archive = np.load(MODELS / f"{name.removesuffix('_bn')}_calibration.npz")
    return {key: archive[key][:64] for key in archive.files}


def same(clean: PruneResult, old: PruneResult) -> None:
    """The same removal and the same bytes, in a file of the old kind that is valid."""
    assert old.report.widths == clean.report.widths
    assert old.report.trials == clean.report.trials
    assert [fit.solved for fit in old.report.repairs] == [f.solved for f in clean.report.repairs]
    assert old.model.ir_version == 3
    wanted, found = constants(clean.model), constants(old.model)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert declared_shapes(old.model) == {name: array.shape for name, array in found.items()}
    onnx.checker.check_model(old.model, full_check=True)


@pytest.mark.parametrize("name", ["digits_resnet_bn", "digits_transformer"])
@pytest.mark.parametrize(
    ("compensate", "criterion", "allocation"),
    [
        ("least-squares", "reconstruction", "auto"),
        ("least-squares", "fisher", "global"),
        ("mean", "l2", "auto"),
        ("none", "variance", "auto"),
    ],
)
def test_pruned_as_the_file_without(
    name: str, compensate: str, criterion: str, allocation: str
) -> None:
    proto = onnx.load(MODELS / f"{name}.onnx")
    clean, old = (
        onnxprune.prune(
            model,
            calibration=calibration(name),
            target={"macs": 0.6},
            compensate=compensate,
            criterion=criterion,
            allocation=allocation,
            measure_latency=False,
            threads=1,
            force=True,
        )
        for model in (proto, listed(proto))
    )
    same(clean, old)
    assert not clean.report.cut_inputs
    assert old.report.cut_inputs
    after = constants(old.model)
    for key, (before, shape) in old.report.cut_inputs.items():
        assert constants(proto)[key].shape == before
        assert shape == (after[key].shape if key in after else None)
    if compensate == "least-squares":
        assert any(fit.solved for fit in old.report.repairs)


@pytest.mark.parametrize("options", [{"steps": 2}, {"blocks": True}, {"round_to": 8}])
def test_pruned_alike_with_other_options(options: dict[str, Any]) -> None:
    proto = onnx.load(MODELS / "digits_resnet_bn.onnx")
    clean, old = (
        onnxprune.prune(
            model,
            calibration=calibration("digits_resnet"),
            target={"macs": 0.5},
            criterion="l2",
            measure_latency=False,
            threads=1,
            **options,
        )
        for model in (proto, listed(proto))
    )
    same(clean, old)


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("digits_resnet_bn", ["remove-lossless", "merge-duplicates"]),
        ("digits_resnet_bn", [{"remove-blocks": {"count": 1}}]),
        ("digits_resnet", [{"sparsify-weights": {"pattern": "2:4"}}]),
        ("digits_mlp", [{"keep-classes": {"keep": [0, 1, 2]}}]),
        (
            "digits_transformer",
            [{"prune": {"target": {"macs": 0.6}, "criterion": "l2"}}, "quantize"],
        ),
    ],
)
def test_passes_do_the_same(name: str, passes: list[Any]) -> None:
    proto = onnx.load(MODELS / f"{name}.onnx")
    clean, old = (
        onnxprune.run_pipeline(
            model, passes, calibration=calibration(name), measure_latency=False, threads=1
        )
        for model in (proto, listed(proto))
    )
    wanted, found = constants(clean.model), constants(old.model)
    assert found.keys() == wanted.keys()
    for key, array in wanted.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)
    assert declared_shapes(old.model) == {key: array.shape for key, array in found.items()}
    onnx.checker.check_model(old.model, full_check=True)


def test_weights_that_are_inputs_cannot_be_stored_without_their_zeros() -> None:
    step = {"sparsify-weights": {"amount": 0.9, "store": "sparse"}}
    proto = listed(onnx.load(MODELS / "digits_mlp.onnx"))
    (done,) = onnxprune.run_pipeline(proto, [step], measure_latency=False, threads=1).steps
    assert not done.details["stored_sparse"]
    assert done.notes == ("3 weights are inputs too, which keeps zeros in the file",)


def lossless_network() -> onnx.ModelProto:
    """Unit 1 is dead, unit 3 a copy of unit 2, and a branch that holds constants of its own."""
    rng = np.random.default_rng(0)
    w1, w2 = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 8), (8, 4)))
    w1[:, 1], w1[:, 3] = 0, w1[:, 2]
    return parse(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 6] x) => (float[N, 4] y)
        { h = MatMul(x, w1)  r = Relu(h)  t = Shape(x)  zero = Constant<value_int = 0>()
          n = Gather(t, zero)  two = Constant<value_int = 3>()  many = Less(two, n)
          p = If(many)<then_branch = then () => (float[N, 8] q) { q = Mul(r, scale) },
                       else_branch = other () => (float[N, 8] s) { s = Identity(r) }>
          y = MatMul(p, w2) }""",
        {"w1": w1, "w2": w2, "scale": np.linspace(1, 2, 8, dtype=np.float32)},
    )


@pytest.mark.parametrize("compensate", ["none", "mean", "least-squares"])
def test_a_tiny_graph_with_units_that_are_not_needed(compensate: str) -> None:
    proto = lossless_network()
    samples = {"x": np.random.default_rng(1).standard_normal((64, 6)).astype(np.float32)}
    clean, old = (
        onnxprune.prune(
            model,
            calibration=samples,
            target={"macs": 0.7},
            compensate=compensate,
            measure_latency=False,
            threads=1,
        )
        for model in (proto, listed(proto))
    )
    same(clean, old)


def test_a_file_that_lists_its_weights_by_choice_keeps_them_listed() -> None:
    """From IR version 4 on what is added need not be an input, and is none."""
    proto = onnx.load(MODELS / "digits_resnet_bn.onnx")
    result = onnxprune.prune(
        listed(proto, ir_version=8),
        calibration=calibration("digits_resnet"),
        target={"macs": 0.6},
        measure_latency=False,
        threads=1,
    )
    assert any(fit.solved for fit in result.report.repairs)
    found, shapes = constants(result.model), declared_shapes(result.model)
    assert shapes == {name: found[name].shape for name in constants(proto) if name in found}
    assert found.keys() - shapes.keys()
    onnx.checker.check_model(result.model, full_check=True)
    assert onnx.checker.check_model(unlisted(result.model, 8), full_check=True) is None
