"""Some nodes as a model of their own: what they read, and what onnxruntime is told about it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from helpers.oracle import ONE_THREAD, parse

from onnxprune.errors import RuntimeFailure
from onnxprune.model.execution import KnownValues, node_reads, open_piece, open_session, run
from onnxprune.model.load import load

HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'
CHAIN = (
    HEADER
    + """g (float[N, 3] x, float[N, 3] z) => (float[N, 3] y) <float[7, 7] b>
    { a = Mul(x, w) b = Relu(a) c = Concat<axis = 0>(b, z) d = Slice(c, start, two)
      y = Add(d, w) }"""
)
VALUES = {"w": np.float32([1, -2, 3]), "start": np.int64([0]), "two": np.int64([2])}


def model_of(text: str = CHAIN) -> ir.Model:
    return load(parse(text, VALUES)).model


def test_node_reads_what_its_subgraphs_capture() -> None:
    model = model_of(
        HEADER
        + """g (float[N] x, bool c) => (float[N] y)
        { a = Mul(x, w) b = Neg(a)
          y = If (c) <then_branch = one () => (float[N] o) { i = Neg(b) o = Mul(i, w) },
                      else_branch = two () => (float[N] p) { p = Identity(a) }> }"""
    )
    branching = next(node for node in model.graph if node.op_type == "If")
    assert {value.name for value in node_reads(branching)} == {"c", "b", "w", "a"}


def test_pieces_one_after_another_give_what_the_model_gives() -> None:
    """A wrong declaration in between does not matter; types and shapes are passed on."""
    model = model_of()
    feed: dict[str, Any] = {k: np.full((2, 3), i, np.float32) for i, k in enumerate("xz", 1)}
    wanted = run(open_session(model, ONE_THREAD), feed)["y"]
    nodes = list(model.graph)
    known = KnownValues({})
    first, reads = open_piece(model, nodes[:2], ["b"], known, ONE_THREAD)
    assert reads == ["x"]
    assert known.types == {"b": ir.TensorType(ir.DataType.FLOAT)}
    assert str(known.shapes["b"]) == "[N,3]"
    second, reads = open_piece(model, nodes[2:4], ["d"], known, ONE_THREAD)
    assert sorted(reads) == ["b", "z"]
    last, reads = open_piece(model, nodes[4:], ["y"], KnownValues(known.types), ONE_THREAD)
    assert reads == ["d"]
    feed |= run(first, {"x": feed["x"]})
    feed |= run(second, {name: feed[name] for name in "bz"})
    np.testing.assert_array_equal(run(last, {"d": feed["d"]})["y"], wanted)


def test_sizes_onnxruntime_made_up_are_not_shared_between_pieces() -> None:
    model = model_of(
        HEADER
        + """g (float[N] x, float[M] z) => (float[P] y, float[Q] v)
        { i = NonZero(x) k = NonZero(z) y = GatherND(x, i) v = GatherND(z, k) }"""
    )
    known = KnownValues({})
    for node, name in zip(model.graph, "ik", strict=False):
        open_piece(model, [node], [name], KnownValues({}, known.shapes), ONE_THREAD)
    first, second = known.shapes["i"], known.shapes["k"]
    assert first is not None
    assert second is not None
    assert first.dims[1] != second.dims[1]


def test_sequences_and_maps_have_types_or_none() -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>
        g (float[N, 2] x) => (float[N, 2] y)
        { s = SequenceConstruct(x, x)
          m = ai.onnx.ml.ZipMap<classlabels_int64s = [3, 4]>(x)
          y = Identity(x) }"""
    model = load(parse(text)).model
    known = KnownValues({})
    session, _ = open_piece(model, list(model.graph), ["s", "m", "y"], known, ONE_THREAD)
    tensor = ir.TensorType(ir.DataType.FLOAT)
    assert known.types == {"s": ir.SequenceType(tensor), "m": None, "y": tensor}
    found = run(session, {"x": np.float32([[1, 2]])})
    assert found["m"] == [{3: 1.0, 4: 2.0}]


@pytest.mark.parametrize("brief", [False, True])
def test_brief_sessions_do_without_preparation(
    monkeypatch: pytest.MonkeyPatch, brief: bool
) -> None:
    seen: dict[str, Any] = {}

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.update(options)
        return open_session(*arguments, **options)

    monkeypatch.setattr("onnxprune.model.execution.open_session", watched)
    model = model_of()
    known = KnownValues({})
    open_piece(model, list(model.graph), ["y"], known, ONE_THREAD, optimise=False, brief=brief)
    memory = "brief" if brief else "planned"
    wanted = {"optimise": False, "arena": False, "memory": memory}
    assert seen == wanted


def test_what_onnxruntime_refuses_is_a_runtime_failure() -> None:
    model = model_of(HEADER + "g (float[N] x) => (float[N] y) { a = Neg(x) y = Unheard(a) }")
    with pytest.raises(RuntimeFailure):
        open_piece(model, list(model.graph), ["y"], KnownValues({}), ONE_THREAD)


def test_a_light_piece_is_not_copied_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copying the nodes of a piece takes longer than to serialise them."""

    def copied(*_: Any) -> Any:
        raise AssertionError("the piece was copied")

    monkeypatch.setattr("onnxprune.model.execution.piece_of", copied)
    model = model_of()
    session, reads = open_piece(model, list(model.graph), ["y"], KnownValues({}), ONE_THREAD)
    assert sorted(reads) == ["x", "z"]
    feed: dict[str, Any] = {k: np.full((2, 3), i, np.float32) for i, k in enumerate("xz", 1)}
    wanted = run(open_session(model, ONE_THREAD), feed)["y"]
    np.testing.assert_array_equal(run(session, feed)["y"], wanted)
