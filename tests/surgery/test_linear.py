"""The layer behind what compensation has added to its output."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.calibration.context import RunContext
from onnxprune.coupling.analysis import analyse
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.surgery.linear import linear_node

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
g (float[2, 4] x) => (float[2, 4] y)
<float[4, 4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}, float[4] b = {1,2,3,4}>
{
  made = MatMul(x, w)
  y = Add(made, b)
}
"""


def test_terms_of_ours_are_looked_through_and_others_are_not() -> None:
    model = ir.from_proto(onnx.parser.parse_model(TEXT))
    full = EditableModel(model, analyse(model, RunContext()).coupling)
    for _ in range(2):
        full.add_constant("made", np.ones((2, 4)), np.dtype(np.float32))
    assert full.nodes["made"].op_type == "Add"
    found = linear_node(full.nodes, "made")
    assert found is not None
    assert found.op_type == "MatMul"
    other = linear_node(full.nodes, "y")
    assert other is not None
    assert other.op_type == "Add"
    assert linear_node(full.nodes, "nowhere") is None
