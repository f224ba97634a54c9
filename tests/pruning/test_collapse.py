"""Answers that no longer follow the original's are not handed out without force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import parse

import onnxprune
from onnxprune.cli import main

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((160, 3, 16, 16)).astype(np.float32)


def detector() -> onnx.ModelProto:
    """Scores at every place of an image: a bright spot in the right colour, which is rare."""
    text = """<ir_version: 8, opset_import: ["": 17]>
        spots (float[N, 3, 16, 16] x) => (float[N, 2, 16, 16] scores) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w, b) h = Relu(a)
            c = Conv<pads = [1, 1, 1, 1]>(h, v, d) i = Relu(c)
            s = Conv(i, u, e) scores = Softmax<axis = 1>(s) }"""
    rng = np.random.default_rng(1)

    def drawn(*shape: int) -> Any:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    weights = {
        "w": 2 * drawn(16, 3, 3, 3),
        "b": drawn(16),
        "v": 2 * drawn(16, 16, 3, 3),
        "d": drawn(16),
        "u": 6 * drawn(2, 16, 1, 1),
        "e": np.array([9.0, -9.0], np.float32),
    }
    return parse(text, weights)


def run(**options: Any) -> onnxprune.PruneResult:
    return onnxprune.prune(
        detector(), calibration={"x": IMAGES}, threads=1, measure_latency=False, **options
    )


@pytest.fixture(scope="module")
def forced() -> onnxprune.PruneResult:
    """A tenth of the detector, which finds nothing any more."""
    return run(target={"macs": 0.1}, force=True)


def test_a_dead_detector_is_refused_with_a_target_that_holds() -> None:
    with pytest.raises(onnxprune.CollapseError, match=r"'scores' \(kappa .*--force") as caught:
        run(target={"macs": 0.1})
    assert caught.value.exit_code == 4
    assert "found to hold" in str(caught.value)
    best = caught.value.best["macs"]
    assert 0.1 < best < 1
    held = run(target={"macs": best}).report.outputs[0]
    assert held.kappa is not None
    assert held.kappa > 0.6


def test_force_hands_it_out_with_a_warning(forced: onnxprune.PruneResult) -> None:
    assert any("no longer follow" in text for text in forced.warnings)
    output = forced.report.outputs[0]
    assert output.kappa is not None
    assert output.kappa < 0.6
    # what made such a result look fine
    assert output.agreement is not None
    assert output.agreement > 0.8
    assert output.constant is not None
    assert output.constant > 0.95


def test_a_plan_that_was_forced_can_be_applied(forced: onnxprune.PruneResult) -> None:
    again = onnxprune.apply(
        detector(), forced.plan, calibration={"x": IMAGES}, threads=1, measure_latency=False
    )
    assert again.model == forced.model
    assert any("no longer follow" in text for text in again.warnings)


def test_the_limit_of_a_drop_is_not_met_by_saying_background() -> None:
    result = run(max_drop=5)
    assert result.report.quality is not None
    assert result.report.quality.measure == "kappa"
    assert result.report.quality.result >= 95
    assert result.report.result.macs > 0.3 * result.report.original.macs


def test_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, samples, out = (tmp_path / name for name in ("m.onnx", "s.npz", "o.onnx"))
    onnx.save(detector(), model)
    np.savez(samples, x=IMAGES)
    command = ["prune", str(model), str(out), "--calibration", str(samples), "-q"]
    command += ["--target", "macs=0.1", "--compensate", "none", "--allocation", "uniform"]
    assert main(command) == 4
    assert not out.exists()
    assert "--force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert out.exists()
