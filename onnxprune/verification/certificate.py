"""The certificate, and the other checks that every result has to pass.

The *masked* model is the original graph at full size with the removed slices of every cut tensor at
zero and the compensation already in; the *sliced* model is the same, physically smaller. Both run
on the same inputs in onnxruntime, at two batch sizes where the batch is free, and every output (or
the input of the Sigmoid that computes it) has to agree. Branches that none of these inputs runs are
compared in copies of both models that take them in any case. This proves the surgery for any model,
criterion and weights, without data or labels. The other checks: same interface, onnx.checker, a
run with onnxruntime's usual optimisations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.errors import RuntimeFailure, VerificationError, first_line
from onnxprune.model.bodies import places
from onnxprune.model.execution import Execution, open_session
from onnxprune.model.outputs import output_producer
from onnxprune.model.protobuf import skeleton, to_proto
from onnxprune.model.runtime import Runtime
from onnxprune.model.tensors import external_initializers, mark_sparse, sparse_values, store_sparse
from onnxprune.verification.comparison import largest_difference


@dataclass(frozen=True)
class Probed:
    """Outputs of a model on some feeds, run exactly as written; one mapping for each.

    Attributes:
        outputs: its outputs.
        compared: the same with the input of a Sigmoid in place of its output.
    """

    outputs: list[dict[str, Any]]
    compared: list[dict[str, Any]]


def probe(model: ir.Model, runtime: Runtime, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> Probed:
    """Run a model without optimisations.

    Args:
        model: unchanged.
        runtime: how to run it.
        feeds: inputs.

    Raises:
        RuntimeFailure: when onnxruntime refuses the model or a feed.
    """
    inputs = saturated_outputs(model)
    if not inputs:
        outputs = Execution(model, runtime, optimise=False).run_all(feeds)
        return Probed(outputs, outputs)
    watched = model.clone()
    known = {value.name for value in (*watched.graph.inputs, *watched.graph.outputs)}
    for node in watched.graph:
        wanted = set(inputs.values()) - known
        watched.graph.outputs.extend(v for v in node.outputs if v.name in wanted)
    runs = Execution(watched, runtime, optimise=False).run_all(feeds)
    names = [value.name or "" for value in model.graph.outputs]
    return Probed(
        [{name: run[name] for name in names} for run in runs],
        [{name: run.get(inputs.get(name, name), run[name]) for name in names} for run in runs],
    )


def entering(model: ir.Model, key: str) -> ir.Model:
    """A copy of a model that runs a body whatever the input is.

    Args:
        model: unchanged.
        key: of the body; every If that it is in takes the branch that leads there.
    """
    result = model.clone()
    inner = places(result.graph)
    while key in inner:
        place = inner[key]
        if place.node.op_type == "If":
            name = f"onnxprune/{key}"
            chosen = ir.tensor(np.array(place.attribute == "then_branch"), name=name)
            value = ir.Value(
                name=name,
                shape=ir.Shape(()),
                type=ir.TensorType(ir.DataType.BOOL),
                const_value=chosen,
            )
            result.graph.register_initializer(value)
            place.node.replace_input_with(0, value)
        key = place.around
    return result


def saturated_outputs(model: ir.Model) -> dict[str, str]:
    """Outputs computed by a Sigmoid -> name of its input."""
    inputs = {}
    for value in model.graph.outputs:
        node = output_producer(value)
        if node is not None and node.op_type == "Sigmoid" and node.inputs[0] is not None:
            inputs[value.name or ""] = node.inputs[0].name or ""
    return inputs


_TOLERANCE = 1e-4  # of float32 outputs, relative to their largest value
_COARSE_TOLERANCE = 2e-2  # of half precision and integers
_COARSE_TYPES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_QUANTISED_OPS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "MatMulInteger"}
)


@dataclass(frozen=True)
class Certificate:
    """Outcome of comparing the sliced with the masked model.

    Attributes:
        error: largest difference relative to the output's largest value, see `largest_difference`.
        tolerance: what it may be.
        runs: number of inputs compared.
        effect: the same measure between the original and the masked model: that the outputs
            react at all to what was removed.
    """

    error: float
    tolerance: float
    runs: int
    effect: float

    @property
    def holds(self) -> bool:
        """Whether the models agree."""
        return self.error <= self.tolerance


def certify(
    original: Sequence[Mapping[str, Any]], masked: Probed, sliced: Probed, tolerance: float
) -> Certificate:
    """Compare what the models computed on the same inputs, run exactly as written.

    Args:
        original: outputs of the original model, one mapping for each input.
        masked: what the original computes with the removed part zero.
        sliced: what the result computes.
        tolerance: what the error may be.
    """
    error = max(map(largest_difference, masked.compared, sliced.compared), default=0.0)
    effect = max(map(largest_difference, original, masked.outputs), default=0.0)
    return Certificate(error, tolerance, len(original), effect)


def tolerance_for(model: ir.Model) -> float:
    """Relative tolerance: 1e-4, or 2e-2 for half precision and quantised graphs."""
    types = {value.dtype for value in model.graph.initializers.values()}
    quantised = any(node.op_type in _QUANTISED_OPS for node in model.graph)
    return _COARSE_TOLERANCE if quantised or types & _COARSE_TYPES else _TOLERANCE


def keep_loadable(model: ir.Model, runtime: Runtime) -> bool:
    """Have weights stored with their zeros where onnxruntime does not take them without.

    Args:
        model: one that onnxruntime loads; its marks may change.
        runtime: how to load it.

    Returns:
        Whether all marks stayed.
    """
    chosen = list(sparse_values(model))
    if not chosen or external_initializers(model):
        return True
    try:
        open_session(store_sparse(model, to_proto(model)), runtime)
    except RuntimeFailure:
        for value in chosen:
            mark_sparse(value, wanted=False)
        return False
    return True


# what a Sigmoid gives is rounded to parts of 1, however small it is
_SMALLEST = 1e-3
_AS_BEFORE = 2.0  # times what optimisations change in the original


def check_result(
    original: ir.Model,
    result: ir.Model,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    outputs: Sequence[Mapping[str, Any]],
    runtime: Runtime,
    tolerance: float,
    *,
    same_interface: bool = True,
) -> None:
    """Check that a model is valid, runs, and has the interface it must have.

    Args:
        original: the model it was made of.
        result: the model.
        feeds: inputs to run it on.
        outputs: its outputs on them, run exactly as written.
        runtime: how to run it.
        tolerance: of the certificate; onnxruntime's optimisations may cost ten times that, or
            twice what they cost the original.
        same_interface: whether inputs and outputs have to be those of the original.

    Raises:
        VerificationError: when the interface differs, `onnx.checker` refuses it although it
            accepted the original, or onnxruntime with its usual optimisations cannot run it or
            computes something else with them.
    """
    if same_interface:
        check_interface(original, result)
    complaint = _checker_complaint(result)
    if complaint and not _checker_complaint(original):
        raise VerificationError(f"onnx.checker refuses the result: {complaint}")
    try:
        apart = _changed_by_optimising(result, feeds, outputs, runtime)
    except RuntimeFailure as error:
        raise VerificationError(f"the result does not run: {error}") from error
    # what integer kernels cost a graph that has just been quantised is for comparisons to show
    quantised = tolerance_for(result) > tolerance_for(original)
    if apart <= 10 * tolerance or quantised:
        return
    if apart > _AS_BEFORE * _own_change(original, feeds, runtime):
        raise VerificationError(
            f"onnxruntime's optimisations change the result by {apart:.1e} (relative)"
        )


def _changed_by_optimising(
    model: ir.Model,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    outputs: Sequence[Mapping[str, Any]],
    runtime: Runtime,
) -> float:
    """How far onnxruntime with its optimisations is from what the nodes as written give."""
    optimised = Execution(model, runtime).run_all(feeds)
    saturated = dict.fromkeys(saturated_outputs(model), _SMALLEST)
    pairs = zip(outputs, optimised, strict=True)
    return max(largest_difference(plain, fast, saturated) for plain, fast in pairs)


def _own_change(
    original: ir.Model, feeds: Sequence[Mapping[str, NDArray[Any]]], runtime: Runtime
) -> float:
    """The same of the original: rounding that decides there, as in many integer graphs."""
    try:
        outputs = Execution(original, runtime, optimise=False).run_all(feeds)
        return _changed_by_optimising(original, feeds, outputs, runtime)
    except RuntimeFailure:  # it takes other inputs
        return 0.0


def check_interface(original: ir.Model, result: ir.Model) -> None:
    """Require the same inputs and outputs: names, order, types, declared shapes.

    Raises:
        VerificationError: naming the first that differs.
    """
    kept = original.graph.initializers
    pairs = [
        (
            "input",
            [v for v in original.graph.inputs if v.name not in kept],
            [v for v in result.graph.inputs if v.name not in result.graph.initializers],
        ),
        ("output", list(original.graph.outputs), list(result.graph.outputs)),
    ]
    for kind, before, after in pairs:
        if [_described(value) for value in before] != [_described(value) for value in after]:
            raise VerificationError(f"the result's {kind}s differ from the original's")


def _described(value: ir.Value) -> tuple[str | None, str, str]:
    return value.name, str(value.type), str(value.shape)


def _checker_complaint(model: ir.Model) -> str:
    proto = skeleton(model, bodies=False)  # what only bodies know cannot be declared
    _declare_weights(proto.graph)
    try:
        onnx.checker.check_model(proto)
    except Exception as error:  # the checker raises several unrelated types
        return first_line(error)
    return ""


def _declare_weights(graph: onnx.GraphProto) -> None:
    """Turn weights that are not in the message into inputs, which need no data to be checked."""
    declared = {value.name for value in graph.input}
    inside = []
    for tensor in graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            inside.append(tensor)
        elif tensor.name not in declared:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(info)
    copies = onnx.GraphProto(initializer=inside)
    del graph.initializer[:]
    graph.initializer.extend(copies.initializer)
