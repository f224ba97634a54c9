"""The table of benchmarks/speed.py: what it measures, with which checkout, and its limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.oracle import parse
from helpers.paths import MODELS, ROOT


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_a_checkout_is_imported_with_the_passes_of_its_own(tmp_path: Path) -> None:
    from speed_runs import package_of

    other = tmp_path / "other"
    for folder, text in (("onnxprune", "name = 'other'"), ("passes", "name = 'its passes'")):
        (other / folder).mkdir(parents=True)
        (other / folder / "__init__.py").write_text(text)
    package = package_of(other, tmp_path / "package")
    code = "import onnxprune.passes; print(onnxprune.name, onnxprune.passes.name)"
    environment = os.environ | {"PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == "other its passes"


def test_the_multiplications_of_normal_equations() -> None:
    from speed_limits import Layer, layers

    model = parse(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        "m (float[n,4,6,6] x) => (float[n,o] y) {\n"
        "h = Conv <kernel_shape=[3,3], group=2> (x, a) f = Flatten(h)\n"
        "g = MatMul(f, b) y = Gemm <transB=1> (g, c) }",
        {"a": np.ones((8, 2, 3, 3), "f"), "b": np.ones((128, 5), "f"), "c": np.ones((7, 5), "f")},
    )
    found = list(layers(model, {"x": np.ones((3, 4, 6, 6), np.float32)}))
    assert found == [Layer(16, 18, 4, 2), Layer(1, 128, 5), Layer(1, 5, 7)]
    # all rows there are, then eight for each unknown
    few, many = Layer(1, 10, 3).multiplications(20), Layer(1, 10, 3).multiplications(500)
    assert few == pytest.approx(20 * 50 + 1000 / 6 + 300)
    assert many == pytest.approx(80 * 50 + 1000 / 6 + 300)


@pytest.mark.parametrize(
    ("widths", "blocks", "fields", "convolutions"),
    [
        ((64, 128, 256), (4, 4, 3), {}, 25),
        ((16, 32, 64), (3, 3, 3), {}, 21),
        ((4, 8, 16, 32), (3, 4, 6, 3), {"stem": 7, "expansion": 4}, 53),
    ],
)
def test_residual_networks(
    widths: tuple[int, ...], blocks: tuple[int, ...], fields: dict[str, int], convolutions: int
) -> None:
    from speed_limits import session_of
    from speed_models import residual_network, smooth_images

    model = residual_network(widths, blocks, 32, **fields)
    assert sum(node.op_type == "Conv" for node in model.graph.node) == convolutions
    onnx.checker.check_model(model, full_check=True)
    images = smooth_images(2, 32, np.random.default_rng(0))
    (scores,) = session_of(model.SerializeToString(), 1).run(None, {"x": images})
    assert scores.shape == (2, 10)
    assert 0 < scores.std() < 100


def test_a_row_is_measured_next_to_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import speed
    from speed_models import Missing, Row, Sources

    def small(sources: Sources) -> tuple[Path, Path]:
        return MODELS / "spirals_mlp.onnx", MODELS / "spirals_calibration.npz"

    def missing(sources: Sources) -> tuple[Path, Path]:
        raise Missing("no such file: make it")

    rows = {
        "small": Row("small", small, goal={1: 9}),
        "sweep": Row("sweep", small, ({"macs": 0.8}, {"macs": 0.6}), base="small", ratio=2),
        "missing": Row("missing", missing),
    }
    monkeypatch.setattr(speed, "ROWS", rows)
    out = tmp_path / "speed.json"
    assert speed.main(["--threads", "1", "--json", str(out)]) == 0
    found = {row["row"]: row for row in json.loads(out.read_text())["rows"]}
    assert found.keys() == {"small", "sweep"}
    assert "missing                        left out: no such file" in capsys.readouterr().out
    for name in ("small", "sweep"):
        limit = found[name]["limit"]
        assert limit["seconds"] == pytest.approx(limit["forward"][0] + limit["products"][0])
        assert found[name]["factor"][0] == found[name]["seconds"] / limit["seconds"]
        assert found[name]["seconds"] > 0 < found[name]["cpu"]
    assert found["small"]["macs"] <= 0.5
    assert found["sweep"]["times_base"][1] == found["sweep"]["cpu"] / found["small"]["cpu"]


def test_a_command_that_fails_is_no_figure(tmp_path: Path) -> None:
    from speed_runs import run_command

    assert run_command(("-c", "pass"), tmp_path, repeats=1).keys() == {"seconds", "cpu"}
    assert run_command(("-c", "raise SystemExit(3)"), tmp_path, repeats=1) == {
        "failed": "ended with code 3"
    }


def test_unknown_rows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    import speed

    with pytest.raises(SystemExit):
        speed.main(["--rows", "resnet19"])
    assert "no row resnet19; there are resnet20, sweep" in capsys.readouterr().err
