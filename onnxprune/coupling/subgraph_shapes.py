"""Shapes and integers inside the bodies of If, Loop and Scan.

onnxruntime does not show the tensors inside a subgraph. So each is run once more as a model of its
own, on generated values of the shapes that enter it at each of the observed sizes. A subgraph whose
tensor names are not unique, whose states change their shape from one iteration to the next, or that
does not run, is not followed: nothing that enters it is cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.errors import OnnxPruneError
from onnxprune.model.bodies import body_of, places, read_from_outside, subgraphs
from onnxprune.model.inputs import part_version
from onnxprune.model.observe import Facts, Observation, constants_of, observe
from onnxprune.model.protobuf import skeleton
from onnxprune.model.runtime import Runtime


class Bodies:
    """What is known of a model with the bodies of its nodes.

    Args:
        model: the model.
        facts: of its main graph.
        given: key of a body -> what it was given in one or two runs, for one that does not run on
            generated values of the shapes that the main graph was observed at.

    Attributes:
        facts: those given, and shapes, integers and constants of the bodies that are open.
        closed: why a body is not looked into, by node.
    """

    def __init__(
        self, model: ir.Model, facts: Facts, given: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> None:
        self.facts = facts
        self.closed: dict[ir.Node, str] = {}
        nodes = [node for node in model.graph if subgraphs(node)]
        if not nodes:
            return
        runs = (facts.first, facts.second)
        self._shapes = [dict(run.shapes) for run in runs]
        self._integers = [dict(run.integers) for run in runs]
        self._kinds = [dict(run.types) for run in runs]
        self._constants = dict(facts.constants)
        parts = zip(runs, self._shapes, self._integers, self._kinds, strict=True)
        first, second = (replace(run, shapes=s, integers=i, types=k) for run, s, i, k in parts)
        second = first if facts.second is facts.first else second
        self.facts = replace(facts, first=first, second=second, constants=self._constants)
        self._model = model
        self._given = {
            id(place.graph): given[key]
            for key, place in places(model.graph).items()
            if key in given
        }
        self._types = _types(model)
        for node in nodes:
            self._open(node)

    def _open(self, node: ir.Node) -> None:
        try:
            found = [self._look_into(node, graph) for graph in subgraphs(node)]
        except _ClosedError as error:
            self.closed[node] = f"{node.op_type} runs a subgraph {error}"
            return
        for graph, runs in zip(subgraphs(node), found, strict=True):
            parts = zip(self._shapes, self._integers, self._kinds, runs, strict=True)
            for shapes, integers, kinds, seen in parts:
                shapes |= seen.shapes
                integers |= seen.integers
                kinds |= seen.types
            self._constants |= constants_of(graph)
            for inner in graph:
                if subgraphs(inner):
                    self._open(inner)

    def _look_into(self, node: ir.Node, graph: ir.Graph) -> list[Observation]:
        if node.domain or node.op_type not in ("If", "Loop", "Scan"):
            raise _ClosedError("of an op without a rule")
        if node.op_type == "Scan" and self._model.opset_imports.get("", 1) < 9:
            raise _ClosedError("in the form of opset 8")
        try:
            runs = [self._run(graph, self._feed(node, graph, self.facts.first))]
            again = self.facts.second is not self.facts.first
            feed = self._feed(node, graph, self.facts.second) if again else {}
            runs.append(self._run(graph, feed) if again else runs[0])
        except _ClosedError:
            if id(graph) not in self._given:
                raise
            runs = []
            for given in self._given[id(graph)]:
                names = [name for name in read_from_outside(graph) if name not in given]
                around = {name: self._made_up(name, self.facts.first) for name in names}
                runs.append(self._run(graph, {**around, **given}))
            runs = [runs[0], runs[-1]]
        for body in [body_of(node)] if node.op_type != "If" else []:
            for _, formal, result, _ in body.states:
                pair = graph.inputs[formal].name or "", graph.outputs[result].name or ""
                if any(run.shapes[pair[0]] != self._shape(run, pair[1]) for run in runs):
                    raise _ClosedError("whose state changes its shape")
        return runs

    def _shape(self, run: Observation, name: str) -> tuple[int, ...] | None:
        return run.shapes.get(name, self.facts.first.shapes.get(name))

    def _feed(
        self, node: ir.Node, graph: ir.Graph, outside: Observation
    ) -> dict[str, NDArray[Any]]:
        """Generated values of the right shapes for what a body reads."""
        read = {name: self._made_up(name, outside) for name in read_from_outside(graph)}
        return read | self._formals(node, graph, outside)

    def _run(self, graph: ir.Graph, feed: Mapping[str, NDArray[Any]]) -> Observation:
        """Run a body by itself."""
        proto = ir.to_proto(graph)
        assert isinstance(proto, onnx.GraphProto)
        del proto.input[:], proto.value_info[:]
        for name, array in feed.items():
            kind = ir.DataType.from_numpy(array.dtype)
            proto.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
        for output in proto.output:
            if output.type.HasField("tensor_type"):
                output.type.tensor_type.ClearField("shape")
        opsets = [onnx.helper.make_opsetid(d, v) for d, v in self._model.opset_imports.items()]
        whole = onnx.helper.make_model(
            proto, opset_imports=opsets, ir_version=part_version(self._model)
        )
        try:
            model = ir.from_proto(whole)
            assert isinstance(model, ir.Model)
            seen = observe(model, Runtime(threads=1), np.random.default_rng(0), feed).first
        except OnnxPruneError:
            raise _ClosedError("that does not run by itself") from None
        own = {value.name for value in _values(graph)}
        return replace(
            seen,
            shapes={name: shape for name, shape in seen.shapes.items() if name in own},
            integers={name: value for name, value in seen.integers.items() if name in own},
            types={name: kind for name, kind in seen.types.items() if name in own},
        )

    def _formals(
        self, node: ir.Node, graph: ir.Graph, outside: Observation
    ) -> dict[str, NDArray[Any]]:
        if node.op_type == "If":
            return {}
        body = body_of(node)
        feed: dict[int, NDArray[Any]] = {}
        if body.alone:
            condition = node.inputs[1]
            shape = outside.shapes.get(condition.name or "", ()) if condition is not None else ()
            feed = {0: np.array(0, np.int64), 1: np.ones(shape, bool)}
        for slot, formal, *axis in (*((s, f) for s, f, _, _ in body.states), *body.slices):
            value = node.inputs[slot]
            if value is None:
                raise _ClosedError("with a state that is left out")
            array = self._made_up(value.name or "", outside)
            if axis and (not array.ndim or not array.shape[axis[0]]):
                raise _ClosedError("over nothing")
            feed[formal] = array.take(0, axis=axis[0]) if axis else array
        return {graph.inputs[formal].name or "": array for formal, array in feed.items()}

    def _made_up(self, name: str, outside: Observation) -> NDArray[Any]:
        """What is known of a tensor: its value if that was observed, else its shape and type."""
        if name in self.facts.constants:
            return self.facts.constants[name].numpy()
        if name in outside.integers:
            return outside.integers[name]
        kind = self._types.get(name)
        if kind is None or name not in outside.shapes or kind == ir.DataType.STRING:
            raise _ClosedError(f"that reads {name}, of which too little is known")
        numbers = np.random.default_rng(0).random(outside.shapes[name])
        return (numbers * kind.is_floating_point()).astype(kind.numpy())


class _ClosedError(Exception):
    """Why a body cannot be looked into."""


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Values that a graph makes, the bodies in it left out."""
    yield from {id(v): v for v in (*graph.inputs, *graph.initializers.values())}.values()
    yield from (value for node in graph for value in node.outputs if value.name)


def _types(model: ir.Model) -> dict[str, ir.DataType]:
    """Element types by name, bodies included; those that cannot be inferred are missing."""
    try:
        inferred = ir.from_proto(onnx.shape_inference.infer_shapes(skeleton(model)))
        assert isinstance(inferred, ir.Model)
        graph = inferred.graph
    except Exception:  # declared types have to do
        graph = model.graph
    found: dict[str, ir.DataType] = {}
    waiting: Sequence[ir.Graph] = [graph]
    while waiting:
        found |= {
            value.name: value.dtype
            for body in waiting
            for value in _values(body)
            if value.name and value.dtype is not None
        }
        waiting = [inner for body in waiting for node in body for inner in subgraphs(node)]
    return found
