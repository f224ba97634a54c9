"""Shapes and integers as onnxruntime sees them, at two sizes, whatever the file declares."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.oracle import ONE_THREAD, parse
from numpy.typing import NDArray

from onnxprune.errors import InputError, RuntimeFailure
from onnxprune.model.load import load
from onnxprune.model.observe import Facts, constants_of, observe

Arrays = dict[str, NDArray[Any]]


def observed(proto: onnx.ModelProto, sample: Arrays | None = None) -> Facts:
    return observe(load(proto).model, ONE_THREAD, np.random.default_rng(0), sample)


def conv(inputs: str, kernel: int = 3, output: str = "a, b, c, d") -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[{inputs}] x) => (float[{output}] y) {{ h = Conv(x, w) y = Relu(h) }}"""
    return parse(text, {"w": np.ones((4, 3, kernel, kernel), np.float32)})


def test_every_free_axis_is_seen_at_two_sizes() -> None:
    facts = observed(conv("N, 3, H, W"))
    assert facts.first.shapes == {
        "x": (2, 3, 7, 7),
        "w": (4, 3, 3, 3),
        "h": (2, 4, 5, 5),
        "y": (2, 4, 5, 5),
    }
    assert facts.second.shapes["x"] == (3, 3, 14, 14)
    assert facts.second.shapes["h"] == (3, 4, 12, 12)


def test_a_fixed_batch_leaves_the_other_axes_free() -> None:
    facts = observed(conv("1, 3, H, W"))
    assert facts.first.shapes["x"] == (1, 3, 7, 7)
    assert facts.second.shapes["x"] == (1, 3, 14, 14)


def test_a_fixed_model_is_seen_once() -> None:
    facts = observed(conv("1, 3, 9, 8"))
    assert facts.second is facts.first
    assert facts.first.shapes["h"] == (1, 4, 7, 6)


def test_larger_maps_are_tried_until_one_runs() -> None:
    assert observed(conv("N, 3, H, W", kernel=20)).first.shapes["x"] == (2, 3, 32, 32)


def test_a_size_that_only_looks_free_is_found_and_kept() -> None:
    """The flattened map has to have 64 entries; only the batch can really change."""
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 1, H, W] x) => (float[N, 4] y)
        { f = Flatten(x) y = Gemm(f, w) }"""
    facts = observed(parse(text, {"w": np.ones((64, 4), np.float32)}))
    assert facts.first.shapes["x"] == (2, 1, 8, 8)
    assert facts.second.shapes["x"] == (3, 1, 8, 8)


def test_symbols_that_are_the_same_get_the_same_size() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[B, T] x, float[1, T, B] z) => (float[1, B, T] y)
        { zt = Transpose<perm = [0, 2, 1]>(z) y = Add(x, zt) }"""
    facts = observed(parse(text))
    for run, (batch, time) in ((facts.first, (2, 7)), (facts.second, (3, 14))):
        assert (run.shapes["x"], run.shapes["z"]) == ((batch, time), (1, time, batch))


@pytest.mark.parametrize("declared", [[1, 99, 1, 1], [2, 4], ["other", 3, "h", "w"]], ids=str)
def test_what_the_file_declares_is_not_believed(declared: list[int | str]) -> None:
    proto = conv("N, 3, 9, 9")
    wrong = onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, declared)
    proto.graph.value_info.append(wrong)
    assert observed(proto).first.shapes["h"] == (2, 4, 7, 7)


SHAPE_CHAIN = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 6, T] x) => (float[N, 2, 3, T] y)
    { s = Shape(x)
      small = Cast<to = 6>(s)
      n = Gather<axis = 0>(small, first)
      t = Gather<axis = 0>(small, last)
      joined = Concat<axis = 0>(n, middle, t)
      target = Cast<to = 7>(joined)
      many = Greater(x, zero)
      y = Reshape(x, target) }"""


def test_shape_arithmetic_is_noted_in_its_own_type() -> None:
    """Chains in int32, as TensorFlow and JAX write them, at both sizes."""
    constants: Arrays = {"first": np.array([0]), "last": np.array([2])}
    constants |= {"middle": np.array([2, 3], np.int32), "zero": np.zeros((), np.float32)}
    facts = observed(parse(SHAPE_CHAIN, constants))
    for run, (n, t) in ((facts.first, (2, 7)), (facts.second, (3, 14))):
        assert run.integers["s"].tolist() == [n, 6, t]
        assert run.integers["joined"].dtype == np.int32
        assert run.integers["target"].tolist() == [n, 2, 3, t]
        assert run.integers["many"].shape == (n, 6, t)
        assert run.shapes["y"] == (n, 2, 3, t)
    value = facts.value("target")
    assert value is not None
    assert value.tolist() == [2, 2, 3, 7]
    assert facts.value("first") is not None
    assert facts.value("y") is None


def test_long_integer_tensors_leave_only_their_shape() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[2, 50, 50] x) => (float[2, 50, 50] y)
        { k = Cast<to = 7>(x) y = Cast<to = 1>(k) }"""
    facts = observed(parse(text))
    assert facts.first.shapes["k"] == (2, 50, 50)
    assert "k" not in facts.first.integers


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_integer_inputs_are_indices_that_exist(rows: int) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (int64[N, T] ids) => (float[N, T, 4] y) { y = Gather<axis = 0>(table, ids) }"""
    facts = observed(parse(text, {"table": np.ones((rows, 4), np.float32)}))
    assert facts.first.shapes["y"] == (2, 7, 4)
    assert facts.first.feed["ids"].max() < rows


def test_a_sample_sets_the_first_size() -> None:
    sample = {"x": np.ones((5, 3, 11, 10), np.float32)}
    facts = observed(conv("N, 3, H, W"), sample)
    assert facts.first.shapes["h"] == (5, 4, 9, 8)
    assert facts.second.shapes["x"] == (6, 3, 22, 20)
    assert facts.first.feed["x"] is sample["x"]


def test_a_sample_that_does_not_run_is_not_replaced() -> None:
    with pytest.raises(RuntimeFailure):
        observed(conv("N, 3, H, W"), {"x": np.ones((5, 3, 2, 2), np.float32)})


def test_without_a_feed_that_runs_calibration_is_asked_for() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3] x, float[M, 4] z) => (float[N, 3] y) { y = MatMul(x, z) }"""
    with pytest.raises(InputError, match="does not run on random inputs, give --calibration"):
        observed(parse(text))
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (seq(float[N]) x) => (float[N] y) { y = SequenceAt(x, zero) }"""
    with pytest.raises(InputError, match="input 'x' is no numeric tensor of known rank"):
        observed(parse(text, {"zero": np.array(0)}))


def test_outputs_in_the_middle_and_unused_outputs_are_no_trouble() -> None:
    text = """<ir_version: 8, opset_import: ["": 18]>
        g (float[N, 6] x) => (float[N, 3] left, float[N, 3] y)
        { left, right = Split<axis = 1, num_outputs = 2>(x)
          dropped, mask = Dropout(left)
          y = Relu(dropped) }"""
    shapes = observed(parse(text)).first.shapes
    assert {name: shapes[name] for name in ("left", "right", "mask", "y")} == dict.fromkeys(
        ("left", "right", "mask", "y"), (2, 3)
    )


def test_the_model_is_left_as_it_is() -> None:
    loaded = load(conv("N, 3, H, W")).model
    before = ir.to_proto(loaded).SerializeToString(deterministic=True)
    observe(loaded, ONE_THREAD, np.random.default_rng(0))
    assert ir.to_proto(loaded).SerializeToString(deterministic=True) == before


def test_constants_are_initializers_and_constant_nodes_of_any_kind() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N] x) => (float[N] y)
        { a = Constant<value_float = 2.5>()
          b = Constant<value_ints = [3, 4]>()
          c = Constant<value = float[2] {5, 6}>()
          p = Mul(x, a)
          y = Add(p, w) }"""
    found = constants_of(load(parse(text, {"w": np.ones(1, np.float32)})).model.graph)
    values = {name: tensor.numpy().tolist() for name, tensor in found.items()}
    assert values == {"w": [1.0], "a": 2.5, "b": [3, 4], "c": [5.0, 6.0]}


def test_sequences_inside_a_graph_are_no_trouble() -> None:
    """Type inference of onnx-ir takes them for tensors."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 3] x) => (float[N, 3] y)
        { e = SequenceEmpty() s = SequenceInsert(e, x) y = SequenceAt(s, i) }"""
    facts = observed(parse(text, {"i": np.zeros((), np.int64)}))
    assert facts.first.shapes["y"] == (2, 3)
    assert "s" not in facts.first.shapes


def test_names_like_those_of_the_probe_are_no_trouble() -> None:
    proto = parse("""<ir_version: 8, opset_import: ["": 17]> g (float[N, 3] x) => (float[N, 3] y)
        { h = Relu(x) other = Neg(h) y = Abs(other) }""")
    proto.graph.node[1].output[0] = proto.graph.node[2].input[0] = "onnxprune/shape/h"
    shapes = observed(proto).first.shapes
    assert shapes["h"] == shapes["onnxprune/shape/h"] == (2, 3)


def test_inputs_too_large_to_make_up_are_refused() -> None:
    proto = parse("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 1099511627776] x) => (float[N] y) { y = ReduceMean<axes = [1]>(x) }""")
    with pytest.raises(InputError, match=r"'x' of shape .* is too large to be generated"):
        observed(proto)


def test_element_types_of_floats_integers_and_constants() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float16[2, 8] x) => (float16[2, 3] y)
        { h = MatMul(x, w) v, i = TopK(h, k) c = Cast<to = 1>(v) m = Greater(c, zero)
          y = Cast<to = 10>(c) }"""
    weights = {"w": np.ones((8, 5), np.float16), "k": np.array([3]), "zero": np.float32(0)}
    proto = parse(text, {name: np.asarray(value) for name, value in weights.items()})
    seen = observe(load(proto).model, ONE_THREAD, np.random.default_rng(0)).first
    found = {name: seen.types[name].name for name in ("x", "w", "k", "h", "i", "c", "m", "y")}
    assert found == {
        "x": "FLOAT16",
        "w": "FLOAT16",
        "k": "INT64",
        "h": "FLOAT16",
        "i": "INT64",
        "c": "FLOAT",
        "m": "BOOL",
        "y": "FLOAT16",
    }
