"""How the tests trace a model, choose a legal removal at random, and judge the surgery.

The judge shares nothing with the surgeon: zeroing is done here once more, with numpy on the
ModelProto, from the plan's words alone ("kept indices per axis of each tensor").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.coupling.closure import close
from onnxprune.coupling.cut import Cut
from onnxprune.coupling.groups import Group, find_groups
from onnxprune.coupling.trace import Coupling, trace
from onnxprune.model.execution import open_session, run
from onnxprune.model.load import load
from onnxprune.model.observe import observe
from onnxprune.model.runtime import Runtime
from onnxprune.surgery.slicing import slice_removed, zero_removed

TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest magnitude of the output."""

BATCHES = (2, 5)
"""The batch the tracer looks at, and one it has never seen."""

ONE_THREAD = Runtime(threads=1)

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Traced:
    """A model with its labels and groups."""

    proto: onnx.ModelProto
    model: ir.Model
    coupling: Coupling
    groups: list[Group]

    def cut(self, dead: list[int]) -> Cut:
        return Cut(self.coupling, dead)

    def units(self, tensor: str, axis: int) -> NDArray[np.int32]:
        """Unit of each index along an axis that has a plain label of its own."""
        axis_labels = self.coupling.tensors[tensor].axis_labels
        label = next(label for label in axis_labels if label.axes == (axis,))
        return self.coupling.relations.find(label.atoms)

    def closed(self, seeds: list[int], *, same_positions: bool = True) -> list[int]:
        """Seeds and everything that has to go with them."""
        dead = np.zeros(self.coupling.relations.count, bool)
        cost = np.ones(self.coupling.relations.count)
        for group in self.groups:
            mine = [seed for seed in seeds if seed in group.all_units]
            by_unit = group.constraints.by_unit()
            killed = close(
                group.constraints, by_unit, dead, mine, cost, same_positions=same_positions
            )
            assert killed is not None, f"{group.name} cannot lose {mine}"
        return np.flatnonzero(dead).tolist()

    def sliced(self, dead: list[int]) -> onnx.ModelProto:
        model = self.model.clone()
        slice_removed(model, self.cut(dead))
        return ir.to_proto(model)

    def zeroed(self, dead: list[int]) -> onnx.ModelProto:
        model = self.model.clone()
        zero_removed(model, self.cut(dead))
        return ir.to_proto(model)


def parse(
    text: str, weights: Mapping[str, NDArray[np.generic] | onnx.TensorProto] | None = None
) -> onnx.ModelProto:
    """A model from its textual form; `weights` become initializers."""
    proto = onnx.parser.parse_model(text)
    for name, given in (weights or {}).items():
        tensor = onnx.numpy_helper.from_array(given) if isinstance(given, np.ndarray) else given
        proto.graph.initializer.add().CopyFrom(tensor)
        proto.graph.initializer[-1].name = name
    return proto


def traced(proto: onnx.ModelProto) -> Traced:
    model = load(proto).model
    coupling = trace(model, observe(model, ONE_THREAD, np.random.default_rng(0)))
    return Traced(proto, model, coupling, find_groups(coupling))


def random_removal(subject: Traced, budget: float, seed: int) -> list[int]:
    """Classes of a legal removal: seeds in random order, ragged rows wherever they are legal.

    No axis loses more than `budget` of its units, and none loses all; most groups lose less than
    that, so that odd and uneven counts occur.
    """
    rng = np.random.default_rng(seed)
    count = subject.coupling.relations.count
    dead, cost = np.zeros(count, bool), rng.random(count)
    for group in subject.groups:
        by_unit = group.constraints.by_unit()
        limit, share = budget, min(1.0, 1.5 * rng.random())
        for one in rng.permutation(group.all_units).tolist():
            if dead[one]:
                continue
            trial = dead.copy()
            killed = close(group.constraints, by_unit, trial, [one], cost, same_positions=False)
            if killed is not None and _affordable(group, trial, limit):
                dead = trial
                limit = budget * share
    return np.flatnonzero(dead).tolist()


def _affordable(group: Group, dead: NDArray[np.bool_], budget: float) -> bool:
    for units, whole in zip(group.axes, group.closed, strict=True):
        gone = int(dead[group.units[list(units)]].sum())
        if gone > int(budget * len(units)) or (whole and gone == len(units)):
            return False
    return True


def feed(proto: onnx.ModelProto, batch: int, seed: int = 0) -> dict[str, NDArray[np.generic]]:
    """Normally distributed inputs; every dynamic axis is the batch."""
    rng = np.random.default_rng(seed)
    given = {tensor.name for tensor in proto.graph.initializer}
    arrays = {}
    for value in proto.graph.input:
        tensor = value.type.tensor_type
        if value.name not in given:
            shape = [dim.dim_value or batch for dim in tensor.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            numbers = rng.standard_normal(shape)
            arrays[value.name] = numbers > 0 if dtype.kind == "b" else numbers.astype(dtype)
    return arrays


def outputs(proto: onnx.ModelProto, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
    return run(open_session(proto, ONE_THREAD, optimise=False), inputs)


def difference(left: Arrays, right: Arrays) -> float:
    """Largest difference of any output, relative to its largest magnitude."""
    assert left.keys() == right.keys()
    worst = 0.0
    for name, one in left.items():
        other = right[name]
        assert one.shape == other.shape
        a, b = one.astype(np.float64), other.astype(np.float64)
        assert np.isfinite(a).all(), f"{name} is not finite"
        assert np.isfinite(b).all(), f"{name} is not finite"
        scale = max(float(np.abs(a).max(initial=0)), 1e-30)
        worst = max(worst, float(np.abs(a - b).max(initial=0)) / scale)
    return worst


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Bodies of Loop, If and Scan, innermost first, then the graph itself."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from graphs_of(inner)
    yield graph


def zeroed_by_contract(
    proto: onnx.ModelProto,
    plan: Mapping[str, Mapping[int, NDArray[np.int64]]],
    held: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    """The plan's promise, taken literally: everything that is not kept is set to zero.

    `held` says what zero is in quantised constants where it is not the number 0.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    tensors: dict[str, onnx.TensorProto] = {}
    for graph in graphs_of(result.graph):
        tensors |= {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                tensors[node.output[0]] = node.attribute[0].t
    for name, kept in plan.items():
        array = onnx.numpy_helper.to_array(tensors[name]).copy()
        zero = np.broadcast_to(np.asarray((held or {}).get(name, 0), array.dtype), array.shape)
        for axis, indices in kept.items():
            gone = np.setdiff1d(np.arange(array.shape[axis]), indices)
            where = (slice(None),) * axis + (gone,)
            array[where] = zero[where]
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(array, tensors[name].name))
    return result


def plan_of(cut: Cut) -> dict[str, dict[int, NDArray[np.int64]]]:
    """Kept indices per axis of every constant that is cut, constants that divide left out."""
    names = set(cut.coupling.facts.constants) - cut.coupling.divisors
    return {name: cut.kept(name) for name in sorted(names) if cut.touches(name)}


def check_surgery(
    subject: Traced,
    dead: list[int],
    held: Mapping[str, Any] | None = None,
    tolerance: float = TOLERANCE,
) -> float:
    """Check everything that is promised of a removal; returns how far the output moved."""
    sliced, zeroed = subject.sliced(dead), subject.zeroed(dead)
    contract = zeroed_by_contract(subject.proto, plan_of(subject.cut(dead)), held)
    onnx.checker.check_model(sliced, full_check=True)
    assert list(sliced.graph.input) == list(subject.proto.graph.input)
    assert list(sliced.graph.output) == list(subject.proto.graph.output)
    moved = 0.0
    for batch in BATCHES:
        inputs = feed(subject.proto, batch)
        wanted = outputs(zeroed, inputs)
        assert difference(wanted, outputs(contract, inputs)) == 0.0
        assert difference(wanted, outputs(sliced, inputs)) < tolerance
        moved = max(moved, difference(outputs(subject.proto, inputs), wanted))
    return moved
