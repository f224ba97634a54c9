"""Shape arithmetic after the cut: integers computed from shapes, evaluated anew.

What depends on data as well is unknown here, whatever it was in the observed runs.

Chains such as Shape -> Gather -> Mul -> Concat -> Reshape often adjust themselves. Only their
results decide whether anything has to be patched, so they are evaluated with the new shapes, node
by node, at both observed sizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from onnxprune.coupling.cut import Cut, CutError
from onnxprune.model.bodies import node_id
from onnxprune.model.observe import Observation


class IntegerValues:
    """Values of integer tensors in the cut model, at the first and the second size.

    Args:
        cut: what is removed.
        opsets: opset imports of the model.
    """

    def __init__(self, cut: Cut, opsets: dict[str, int]) -> None:
        self._cut = cut
        self._opsets = [onnx.helper.make_opsetid(d, v) for d, v in opsets.items()]
        self._changed: tuple[dict[str, NDArray[Any]], ...] = ({}, {})

    def get(self, name: str, *, second: bool = False) -> NDArray[Any] | None:
        """Value of a constant or integer tensor in the cut model, None when unknown."""
        if name in self._changed[second]:
            return self._changed[second][name]
        return self._before(name, second)

    def changed(self, name: str) -> bool:
        """Whether the value differs from that in the original model."""
        return name in self._changed[0] or name in self._changed[1]

    def follow(self, node: ir.Node) -> None:
        """Work out the integer outputs of a node from its new inputs."""
        if node.op_type in ("Shape", "Size") and node.domain == "":
            self._follow_shape(node)
        elif any(value is not None and self.changed(value.name or "") for value in node.inputs):
            self._evaluate(node)

    def _observation(self, second: bool) -> Observation:
        facts = self._cut.coupling.facts
        return facts.second if second else facts.first

    def _before(self, name: str, second: bool) -> NDArray[Any] | None:
        coupling = self._cut.coupling
        if name in coupling.facts.constants:
            return coupling.facts.constants[name].numpy()
        if name not in coupling.static:
            return None
        return self._observation(second).integers.get(name)

    def _set(self, name: str, second: bool, value: NDArray[Any]) -> None:
        before = self._before(name, second)
        if before is None or not np.array_equal(before, value):
            self._changed[second][name] = value

    def _follow_shape(self, node: ir.Node) -> None:
        name, source = node.outputs[0].name or "", node.inputs[0]
        if source is None or not self._cut.touches(source.name or ""):
            return
        for second in (False, True):
            shape = np.array(self._cut.shape(source.name or "", second=second), np.int64)
            if node.op_type == "Size":
                self._set(name, second, np.array(shape.prod(), np.int64))
                continue
            start, end = (node.attributes.get(key) for key in ("start", "end"))
            bounds = slice(start.as_int() if start else None, end.as_int() if end else None)
            self._set(name, second, shape[bounds])

    def _evaluate(self, node: ir.Node) -> None:
        known = self._observation(False).integers
        names = [value.name for value in node.outputs if value.name]
        if not all(name in known and name in self._cut.coupling.static for name in names):
            self._freeze_scale(node)
            return
        if any(known[name].ndim > 1 for name in names):
            return  # a mask or an index table: it follows its own shape at run time
        for second in (False, True):
            inputs = {
                value.name or "": self.get(value.name or "", second=second)
                for value in node.inputs
                if value is not None
            }
            if any(value is None for value in inputs.values()):
                return
            for name, value in self._run(node, inputs).items():
                self._set(name, second, value)

    def _run(self, node: ir.Node, inputs: dict[str, Any]) -> dict[str, NDArray[Any]]:
        """Evaluate one node with the onnx reference implementation."""
        outputs = [value.name or "" for value in node.outputs if value.name]
        graph = onnx.helper.make_graph(
            [ir.to_proto(node)],
            "one_node",
            [onnx.ValueInfoProto(name=name) for name in inputs],
            [onnx.ValueInfoProto(name=name) for name in outputs],
        )
        model = onnx.helper.make_model(graph, opset_imports=self._opsets)
        try:
            results = ReferenceEvaluator(model).run(outputs, inputs)
        except Exception as error:
            text = f"the shape arithmetic at {node.op_type} {node_id(node)} cannot be followed"
            raise CutError(node_id(node), text) from error
        return dict(zip(outputs, results, strict=True))

    def _freeze_scale(self, node: ir.Node) -> None:
        """An integer that becomes a float is a run-time scale: it keeps its old value."""
        if node.op_type != "Cast" or node.domain:
            return
        name = node.inputs[0].name or "" if node.inputs[0] is not None else ""
        first, second = self._before(name, False), self._before(name, True)
        if first is None or second is None or not np.array_equal(first, second):
            raise CutError(name, f"the run-time scale {name} depends on the batch and on the cut")
        target = ir.DataType(node.attributes["to"].as_int()).numpy()
        constant = ir.Node(
            "", "Constant", [], [ir.AttrTensor("value", ir.tensor(first.astype(target)))]
        )
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        graph.insert_before(node, constant)
        output = node.outputs[0]
        name = output.name or ""
        output.replace_all_uses_with(constant.outputs[0])
        graph.remove(node, safe=True)
        constant.outputs[0].name = name
