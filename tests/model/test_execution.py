"""Running in pieces gives what one session gives, for everything that can cross a border."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.oracle import ONE_THREAD, parse
from numpy.typing import NDArray

from onnxprune.errors import RuntimeFailure
from onnxprune.model import execution as execution_module
from onnxprune.model.execution import Execution, is_heavy, open_session
from onnxprune.model.load import load

HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'


def drawn(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


def run_both(
    monkeypatch: pytest.MonkeyPatch, proto: onnx.ModelProto, *feeds: dict[str, Any]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Run whole, and with one node in each piece."""
    model = load(proto).model
    whole = Execution(model, ONE_THREAD, optimise=False).run_all(feeds)
    monkeypatch.setattr(execution_module, "_WHOLE_NODES", 0)
    monkeypatch.setattr(execution_module, "_PIECE_NODES", 1)
    pieces = Execution(model, ONE_THREAD, optimise=False)
    again = pieces.run_all(feeds)
    assert [pieces.run(feed).keys() for feed in feeds] == [one.keys() for one in again]
    return list(zip(whole, again, strict=True))


def assert_same(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    for whole, pieces in pairs:
        assert list(whole) == list(pieces)
        for name, value in whole.items():
            np.testing.assert_array_equal(np.asarray(pieces[name]), np.asarray(value))


def test_values_pass_from_piece_to_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips over pieces, outputs on the way, an input that is an output, nodes nobody reads."""
    proto = parse(
        HEADER
        + """g (float[N, 3] x, float[N, 3] z) => (float[N, 3] y, float[N, 3] b, float[M] v)
        { a = Mul(x, w) b = Relu(a) unused = Neg(b) c = Add(b, w) d = Add(c, a) s = Shape(x)
          v = Cast<to = 1>(s) y = Add(d, z) }""",
        {"w": np.float32([1, -2, 3])},
    )
    feeds = [{k: drawn(n, 3) for k in "xz"} for n in (2, 5)]
    assert_same(run_both(monkeypatch, proto, *feeds))


def test_types_numpy_lacks_sequences_and_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = parse(
        HEADER
        + """g (float[4] x, string[2] t) => (float[4] y, string[2] u)
        { h = Cast<to = 16>(x) i = Identity(h) f = Cast<to = 1>(i)
          p, q = Split<axis = 0>(f) s = SequenceConstruct(p, q) r = Identity(s)
          y = ConcatFromSequence<axis = 0>(r) k = Identity(t) u = Identity(k) }"""
    )
    feed = {"x": np.float32([1, -2, 3, 4]), "t": np.array(["a", "b"], object)}
    pairs = run_both(monkeypatch, proto, feed)
    assert_same(pairs)
    np.testing.assert_array_equal(pairs[0][1]["y"], feed["x"])


def test_sizes_onnxruntime_cannot_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sizes that depend on the data, a wrong declaration in between, a scalar."""
    proto = parse(
        HEADER
        + """g (float[N] x, float[M] z) => (float[P] y, float[Q] v, float r) <float[7] a>
        { a = Neg(x) i = NonZero(a) j = Squeeze(i) k = NonZero(z) l = Squeeze(k)
          p = Gather(x, j) q = Gather(z, l) s = Relu(p) t = Neg(q)
          y = Neg(s) v = Relu(t) r = ReduceSum<keepdims = 0>(v) }"""
    )
    feeds = [{"x": np.float32([1, 0, 2, 3]), "z": np.float32([0, 5])}]
    feeds.append({"x": np.float32([0, 4]), "z": np.float32([7, 8, 9, 0])})
    assert_same(run_both(monkeypatch, proto, *feeds))


def test_what_subgraphs_read_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch computes with an outer tensor and weight, the other returns an outer tensor."""
    proto = parse(
        HEADER
        + """g (float[N] x, bool c) => (float[N] y)
        { a = Mul(x, w) b = Neg(a)
          h = If (c) <then_branch = one () => (float[N] o) { o = Mul(b, w) },
                      else_branch = two () => (float[N] p) { p = Identity(a) }>
          y = Add(h, x) }""",
        {"w": np.float32([3])},
    )
    feeds = [{"x": np.float32([1, 2]), "c": np.array(flag)} for flag in (True, False)]
    assert_same(run_both(monkeypatch, proto, *feeds))


def test_a_weight_that_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = parse(
        HEADER + "g (float[2] x) => (float[2] y, float[2] w) { a = Mul(x, w) y = Neg(a) }",
        {"w": np.float32([1, 2])},
    )
    assert_same(run_both(monkeypatch, proto, {"x": np.float32([5, 6])}))


@pytest.mark.parametrize("external", [True, False])
def test_heavy_models_leave_no_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, external: bool
) -> None:
    """Weights in a data file, in memory, and computed when read."""
    weights = {name: drawn(32, 32) for name in ("u", "v", "w")}
    proto = parse(
        HEADER + "g (float[N, 32] x) => (float[N, 32] y) "
        "{ a = MatMul(x, u) b = MatMul(a, v) y = MatMul(b, w) }",
        weights,
    )
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=external, size_threshold=0)
    model = load(tmp_path / "m.onnx").model
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("onnxprune.model.execution._INLINE_BYTES", 1000)
    monkeypatch.setattr(execution_module, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(execution_module, "_PIECE_BYTES", 8000)
    lazy = ir.LazyTensor(
        lambda: ir.tensor(weights["v"]), dtype=ir.DataType.FLOAT, shape=ir.Shape([32, 32])
    )
    model.graph.initializers["v"].const_value = lazy
    before = sorted(tmp_path.iterdir())
    assert is_heavy(model)
    x = np.ones((2, 32), np.float32)
    y = Execution(model, ONE_THREAD).run({"x": x})["y"]
    np.testing.assert_allclose(y, x @ weights["u"] @ weights["v"] @ weights["w"], rtol=1e-4)
    assert sorted(tmp_path.iterdir()) == before


def test_heavy_models_have_one_session_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {name: drawn(32, 32) for name in ("u", "v", "w")}
    proto = parse(
        HEADER + "g (float[N, 32] x) => (float[N, 32] y) "
        "{ a = MatMul(x, u) b = MatMul(a, v) y = MatMul(b, w) }",
        weights,
    )
    opened: list[weakref.ref[Any]] = []

    def watched(*args: Any, **options: Any) -> Any:
        assert [one() for one in opened] == [None] * len(opened)
        session = open_session(*args, **options)
        opened.append(weakref.ref(session._sess))
        return session

    monkeypatch.setattr("onnxprune.model.execution.open_session", watched)
    monkeypatch.setattr(execution_module, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(execution_module, "_PIECE_BYTES", 4096)
    Execution(load(proto).model, ONE_THREAD).run({"x": drawn(2, 32)})
    assert len(opened) == 3


def test_what_does_not_run_is_a_runtime_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = parse(
        HEADER + "g (float[N] x) => (float[N] y) { a = Neg(x) y = Add(a, w) }",
        {"w": np.float32([1, 2])},
    )
    monkeypatch.setattr(execution_module, "_WHOLE_NODES", 0)
    monkeypatch.setattr(execution_module, "_PIECE_NODES", 1)
    pieces = Execution(load(proto).model, ONE_THREAD)
    with pytest.raises(RuntimeFailure, match="cannot run the model"):
        pieces.run({"x": np.ones(3, np.float32)})
    with pytest.raises(RuntimeFailure, match="cannot run the model"):
        pieces.run({})
