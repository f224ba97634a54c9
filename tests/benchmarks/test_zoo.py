"""The judge of benchmarks/zoo.py: what it zeroes, what it holds, and that NaN never agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import parse
from helpers.paths import ROOT
from numpy.typing import NDArray

import onnxprune

NAN, INF = np.nan, np.inf


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.mark.parametrize(
    ("wanted", "got", "apart"),
    [
        ([1, 2], [1, 2], 0.0),
        ([1, 2], [1, 1], 0.5),
        ([1, 2], [1, NAN], INF),
        ([1, NAN], [1, 2], INF),
        ([1, NAN], [1, NAN], 0.0),
        ([NAN, NAN], [NAN, NAN], INF),
        ([1, INF], [1, INF], 0.0),
        ([1, INF], [1, -INF], INF),
        ([1, 2], [[1, 2]], INF),
    ],
)
def test_difference(wanted: Any, got: Any, apart: float) -> None:
    from zoo import difference

    agreeing = np.ones(3)
    assert difference([agreeing, np.array(wanted)], [agreeing, np.array(got)]) == apart


def plan(**kept: dict[int, tuple[int, ...]]) -> onnxprune.Plan:
    return onnxprune.Plan({}, {}, (), dict(kept))


def saved(folder: Path, text: str, **weights: NDArray[Any]) -> Path:
    proto = parse('<ir_version: 8, opset_import: ["": 17]>\n' + text, weights)
    onnx.save(proto, folder / "m.onnx")
    return folder / "m.onnx"


def test_constants_in_bodies_are_zeroed_too(tmp_path: Path) -> None:
    from zoo import constants, run, zeroed

    path = saved(
        tmp_path,
        """g (float[2] x, bool c) => (float[2] y)
        { y = If (c) <
            then_branch = one () => (float[2] o)
            { w = Constant<value = float[2] {3, 4}>() o = Mul(x, w) },
            else_branch = two () => (float[2] p)
            { p = If (c) <
                then_branch = three () => (float[2] q) { q = Identity(x) },
                else_branch = four () => (float[2] r) <float[2] v = {5, 6}> { r = Mul(x, v) }> }> }
        """,
    )
    assert constants(onnx.load(path)).keys() == {"w", "v"}
    masked = zeroed(path, plan(w={0: (0,)}, v={0: (1,)}))
    for flag, wanted in ((True, [3, 0]), (False, [0, 6])):
        (y,) = run(masked, {"x": np.ones(2, np.float32), "c": np.array(flag)})
        np.testing.assert_array_equal(y, wanted)


def test_the_norm_of_a_weight_is_that_of_the_original(tmp_path: Path) -> None:
    from zoo import run, zeroed

    path = saved(
        tmp_path,
        """g (float[2] x) => (float[2] y)
        { n = ReduceL2<axes = [1]>(v) d = Div(v, n) y = MatMul(d, x) }""",
        v=np.float32([[3, 4], [6, 8]]),
    )
    (y,) = run(zeroed(path, plan(v={0: (0,)})), {"x": np.ones(2, np.float32)})
    np.testing.assert_allclose(y, [1.4, 0], rtol=1e-6)


def entry(**inputs: Any) -> dict[str, Any]:
    return {"path": "m.onnx", "framework": "torch", "exporter": "new, opset 18", "feed": inputs}


@pytest.mark.parametrize("as_listed", [False, True])
def test_calibrated_runs_count_the_layers_that_are_re_fitted(
    tmp_path: Path, as_listed: bool
) -> None:
    from zoo import examine_calibrated, solved_by_exporter

    rng = np.random.default_rng(0)
    shapes = {"a": (4, 12), "b": (12, 12), "c": (12, 3)}
    weights = {k: rng.standard_normal(shape).astype(np.float32) for k, shape in shapes.items()}
    body = "h = MatMul(x, a) r = Relu(h) s = MatMul(r, b) t = Relu(s) y = MatMul(t, c)"
    saved(tmp_path, f"g (float[N, 4] x) => (float[N, 3] y) {{ {body} }}", **weights)

    def feed_from(_: Any, seed: int) -> dict[str, NDArray[Any]]:
        made = np.random.default_rng(seed).standard_normal((8, 4))
        return {"x": made.astype(np.float32)}

    row = examine_calibrated(tmp_path, entry(), feed_from, as_listed=as_listed)
    assert row["outcome"] == "pruned"
    assert row["exporter"] == "torch: new"
    assert 0 < row["solved"] <= row["cut"]
    assert 0 < row["solved_macs"] <= row["cut_macs"]
    lines = solved_by_exporter([row, {"outcome": "refused"}])
    assert lines[1].startswith("torch: new")
    assert f"{row['solved'] / row['cut']:.1%}" in lines[1]


def test_fine_tuned_runs_say_what_they_came_to(tmp_path: Path) -> None:
    from zoo import examine_calibrated

    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal((12, 12)).astype(np.float32) for n in "ab"}
    body = "h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)"
    saved(tmp_path, f"g (float[N, 12] x) => (float[N, 12] y) {{ {body} }}", **weights)

    def feed_from(_: Any, seed: int) -> dict[str, NDArray[Any]]:
        made = np.random.default_rng(seed).standard_normal((8, 12))
        return {"x": made.astype(np.float32)}

    row = examine_calibrated(tmp_path, entry(), feed_from, as_listed=False, finetuned=True)
    assert row["outcome"] == "pruned"
    assert 0 <= row["after"] <= row["before"]
    assert row["frozen"] == {}


def test_calibrated_runs_name_errors_by_kind(tmp_path: Path) -> None:
    from zoo import examine_calibrated

    (tmp_path / "m.onnx").write_bytes(b"no model")
    row = examine_calibrated(tmp_path, entry(), None, as_listed=False)
    assert row["outcome"] == "failed"
    assert row["kind"] in row["reason"]
