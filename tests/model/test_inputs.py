"""What a model says of its inputs."""

from __future__ import annotations

import numpy as np
import onnx
from helpers.oracle import outputs
from onnx import TensorProto, helper

import onnxprune
from onnxprune.model.inputs import FIRST_BATCH, InputSpec, batch_axes, input_specs, size_choices
from onnxprune.model.load import load


def network(*shape: int | str | None) -> onnx.ModelProto:
    """A convolution that sums channels, its input declared as given."""
    rng = np.random.default_rng(0)
    tensors = {"a": (8, 3, 1, 1), "b": (4, 8, 1, 1)}
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal(one).astype(np.float32), name)
        for name, one in tensors.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "b"], ["y"]),
    ]
    declared = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph(nodes, "net", declared[:1], declared[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_sizes_symbols_and_what_is_open() -> None:
    (spec,) = input_specs(load(network("N", 3, None, 7)).model)
    assert spec.shape == ("N", 3, None, 7)


def test_minus_one_and_question_marks_are_open() -> None:
    """Paddle declares a free batch as -1 and free sizes as "?", all of them."""
    proto = network(-1, 3, "?", "?")
    (spec,) = input_specs(load(proto).model)
    assert spec.shape == (None, 3, None, None)
    images = np.random.default_rng(1).standard_normal((6, 3, 5, 9)).astype(np.float32)
    result = onnxprune.prune(
        proto, calibration={"x": images}, target={"channels": 0.5}, threads=1, measure_latency=False
    )
    assert outputs(result.model, {"x": images})["y"].shape == (6, 4, 5, 9)


FLOAT = np.dtype(np.float32)


def test_the_only_open_axis_of_a_state_is_its_batch() -> None:
    specs = [InputSpec("x", FLOAT, (None, None)), InputSpec("h", FLOAT, (2, None, 4))]
    assert batch_axes(specs) == {("x", 0), ("h", 1)}
    assert next(size_choices(specs)) == {("x", 0): FIRST_BATCH, ("x", 1): 7, ("h", 1): FIRST_BATCH}


def test_it_may_be_something_else_after_all() -> None:
    specs = [InputSpec("x", FLOAT, (None, 3)), InputSpec("table", FLOAT, (5, None))]
    proposed = [sizes["table", 1] for sizes in size_choices(specs)]
    assert proposed[:3] == [FIRST_BATCH, 7, 8]


def test_behind_a_fixed_batch_an_open_axis_is_something_else() -> None:
    assert batch_axes([InputSpec("x", FLOAT, (1, None)), InputSpec("h", FLOAT, (2, 1, 4))]) == set()
