"""A node with its shapes and constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.model.node_view import NodeView


def clip() -> ir.Node:
    x, high = ir.val("x"), ir.val("high")
    attributes = [
        ir.AttrInt64("axis", -1),
        ir.AttrInt64s("pads", [1, 2]),
        ir.AttrFloat32("alpha", 0.5),
        ir.AttrString("mode", "same"),
    ]
    node = ir.Node("", "Clip", [x, None, high], attributes, num_outputs=2)
    node.outputs[0].name = "y"
    return node


def test_inputs_and_outputs() -> None:
    shapes = {"x": (2, 3), "y": (2, 4)}
    values = {"high": np.array(6.0)}
    view = NodeView(clip(), shape_of=shapes.__getitem__, value_of=values.get)
    assert [view.has(slot) for slot in range(4)] == [True, False, True, False]
    assert [view.has_output(slot) for slot in range(3)] == [True, False, False]
    assert [view.name(slot) for slot in range(4)] == ["x", "", "high", ""]
    assert view.output_name() == "y"
    assert view.output_name(1) == ""
    assert view.shape() == (2, 3)
    assert view.output_shape() == (2, 4)
    assert view.rank() == 2
    assert view.constant(0) is None
    assert view.constant(1) is None
    assert view.constant(2) == 6.0
    with pytest.raises(KeyError):
        view.shape(2)


def test_attributes() -> None:
    view = NodeView(clip(), shape_of={"x": (2, 3)}.__getitem__)
    assert view.get_int("axis", 0) == -1
    assert view.get_int("group", 1) == 1
    assert view.get_ints("pads") == [1, 2]
    assert view.get_ints("strides") is None
    assert view.get_float("alpha", 1.0) == 0.5
    assert view.get_string("mode") == "same"
    assert view.get_string("direction", "forward") == "forward"
    assert view.attribute("axis") == -1
    assert view.attribute("strides", [1]) == [1]
    assert view.axis(0) == 1
    assert view.axis(-2, name="start") == 0
