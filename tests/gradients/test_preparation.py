"""Models of any precision and age, differentiated in single precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from helpers.oracle import ONE_THREAD, parse, traced

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.samples import read_samples
from onnxprune.coupling.group_view import MaskGradients
from onnxprune.gradients.losses import Objective
from onnxprune.gradients.masks import mask_gradients
from onnxprune.gradients.preparation import to_single_precision, upgraded
from onnxprune.gradients.sensitivity import measure_sensitivity
from onnxprune.model.execution import open_session, run
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import load

SCALE = 2000.0
LABELS = np.random.default_rng(2).standard_normal((6, 2)) * SCALE

CONTEXT = RunContext(runtime=ONE_THREAD)


def network(kind: str) -> str:
    return f"""<ir_version: 8, opset_import: ["": 17]>
        g ({kind}[N, 3] input) => ({kind}[N, 2] y)
        {{ a = Gemm(input, w1) h = Relu(a) f = Cast<to = 1>(h) t = CastLike(f, input)
           y = Gemm(t, w2) }}"""


def weights(dtype: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape).astype(np.float16).astype(dtype)
        for name, shape in (("w1", (3, 5)), ("w2", (5, 2)))
    }


def gradients(text: str, dtype: Any) -> MaskGradients:
    subject = traced(parse(text, weights(dtype)))
    feed = {"input": np.random.default_rng(1).standard_normal((6, 3)).astype(dtype)}
    read = read_samples(feed, input_specs(subject.model))
    objective = Objective("mse", LABELS)
    found = mask_gradients(subject.model, subject.groups, read, objective, CONTEXT)
    return found.gradients["w1[1]"]


@pytest.mark.parametrize(("kind", "dtype"), [("float16", np.float16), ("double", np.float64)])
def test_gradients_are_those_of_single_precision(kind: str, dtype: Any) -> None:
    found = gradients(network(kind), dtype)
    wanted = gradients(network("float"), np.float32)
    assert np.sqrt(wanted.mean_square).max() > SCALE / 2
    np.testing.assert_allclose(found.mean_square, wanted.mean_square, rtol=0.02)


def test_every_type_changes_inside_and_out() -> None:
    model = load(parse(network("float16"), weights(np.float16))).model
    assert to_single_precision(model)
    feed = {"input": np.ones((2, 3), np.float32)}
    (found,) = run(open_session(model, ONE_THREAD), feed).values()
    assert found.dtype == np.float32
    assert not to_single_precision(model)


def test_a_clone_in_single_precision_leaves_the_model_its_types() -> None:
    model = load(parse(network("float16"), weights(np.float16))).model
    for node in model.graph:
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    to_single_precision(model.clone())
    assert {node.outputs[0].dtype for node in model.graph} == {ir.DataType.FLOAT16}
    assert model.graph.inputs[0].dtype == ir.DataType.FLOAT16


def test_an_old_operator_set_is_raised() -> None:
    text = """<ir_version: 4, opset_import: ["": 9]>
        g (float[N, 3] input) => (float[N, 2] y)
        { a = Gemm(input, w1, z1) h = Clip<min = 0.0, max = 6.0>(a)
          s = Slice<axes = [1], starts = [0], ends = [5]>(h) y = Gemm(s, w2, z2) }"""
    more = {"z1": np.zeros(5, np.float32), "z2": np.zeros(2, np.float32)}
    model = load(parse(text, {**weights(np.float32), **more})).model
    newer = upgraded(model.clone())
    assert newer.opset_imports[""] >= 11
    feed = {"input": np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)}
    before, after = (
        run(open_session(ir.to_proto(one), ONE_THREAD), feed)["y"] for one in (model, newer)
    )
    np.testing.assert_array_equal(after, before)
    groups = traced(parse(text, {**weights(np.float32), **more})).groups
    read = read_samples(feed, input_specs(model))
    found = mask_gradients(model, groups, read, Objective("mse", LABELS), CONTEXT).gradients
    h = np.clip(feed["input"] @ weights(np.float32)["w1"], 0, 6)
    slope = (h @ weights(np.float32)["w2"] - LABELS) @ weights(np.float32)["w2"].T
    name = groups[0].name
    np.testing.assert_allclose(found[name].mean_square, ((h * slope) ** 2).mean(axis=0), rtol=1e-4)


@pytest.mark.parametrize("opset", [11, 13, 15])
def test_what_is_taken_from_computed_places_has_gradients_in_old_operator_sets(opset: int) -> None:
    """The boxes that a detector selects."""
    text = f"""<ir_version: 7, opset_import: ["": {opset}]>
        g (float[N, 3] input) => (float[K, 2] y)
        {{ a = MatMul(input, w1) h = Relu(a) z = MatMul(h, w2) y = GatherND(z, places) }}"""
    more = {"places": np.array([[0], [2], [5]])}
    model = load(parse(text, {**weights(np.float32), **more})).model
    feed = {"input": np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)}
    known = measure_sensitivity(model, {"h": (1,)}, [feed], CONTEXT)
    assert not known.blocked
    (rows,) = known.rows["h"]
    assert (rows.reshape(-1)[[1, 3, 4]] == 0).all()
    assert (rows.reshape(-1)[[0, 2, 5]] > 0).all()


@pytest.mark.parametrize("opset", [11, 13, 15, 17])
def test_a_table_that_is_tuned_is_added_up_to_in_old_operator_sets(opset: int) -> None:
    text = f"""<ir_version: 7, opset_import: ["": {opset}]>
        g (int64[N, 3] input) => (float[N, 3, 5] y) {{ y = Gather(w1, input) }}"""
    proto = parse(text, weights(np.float32))
    assert upgraded(load(proto).model).opset_imports[""] == opset
    newer = upgraded(load(proto).model, ["w1"])
    assert newer.opset_imports[""] == max(opset, 16)
    feed = {"input": np.array([[0, 2, 2], [1, 2, 0]])}
    before, after = (
        run(open_session(one, ONE_THREAD), feed)["y"] for one in (proto, ir.to_proto(newer))
    )
    np.testing.assert_array_equal(after, before)


def test_more_than_a_row_may_come_of_a_sample() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[1, 6, 3] input) => (float[K, 2] y)
        { h = MatMul(input, w1) z = MatMul(h, w2) y = GatherND(z, places) }"""
    more = {"places": np.array([[0, 0], [0, 2], [0, 5]])}
    model = load(parse(text, {**weights(np.float32), **more})).model
    rng = np.random.default_rng(1)
    feeds = [{"input": rng.standard_normal((1, 6, 3)).astype(np.float32)} for _ in range(3)]
    known = measure_sensitivity(model, {"h": (2,)}, feeds, CONTEXT)
    assert not known.blocked
    assert [((rows > 0).reshape(-1)).tolist() for rows in known.rows["h"]] == 3 * [
        [True, False, True, False, False, True]
    ]
