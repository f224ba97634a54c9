"""Gradients by five-point differences, against what the emitted graph gives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from helpers.oracle import ONE_THREAD, parse
from onnxprune.gradients.backward import Edge, add_backward
from onnxprune.gradients.emitter import Emitter
from onnxprune.gradients.preparation import expand
from onnxprune.model.bodies import node_id
from onnxprune.model.execution import open_session, run
from onnxprune.model.load import load
from onnxprune.model.observe import observe

Arrays = Mapping[str, NDArray[Any]]
Outputs = Callable[[Arrays], NDArray[Any]]

_STENCIL = ((-2, 1), (-1, -8), (1, 8), (2, -1))


def emitted_gradient(
    proto: onnx.ModelProto, feed: Arrays, seed: NDArray[Any], tensor: str
) -> NDArray[Any]:
    """Gradient of sum(seed * last output) with respect to what reads a tensor, by onnxruntime."""
    return emitted_gradients(proto, feed, seed, tensor)[tensor]


def emitted_gradients(
    proto: onnx.ModelProto,
    feed: Arrays,
    seed: NDArray[Any],
    tensor: str = "",
    weights: Arrays | None = None,
) -> dict[str, NDArray[Any]]:
    """Gradients of sum(seed * last output), by onnxruntime.

    Args:
        proto: the network.
        feed: of its inputs.
        seed: gradient of the loss with respect to its last output.
        tensor: activation whose gradient at all nodes that read it is asked for; "" for none.
        weights: values of the initializers whose gradient is asked for. They are fed, and may
            differ from those that the gradient was written for.
    """
    weights = weights or {}
    model = load(proto).model
    edges = [
        Edge(node_id(node), tensor)
        for node in model.graph
        if any(value is not None and value.name == tensor for value in node.inputs)
    ]
    facts = observe(model, ONE_THREAD, np.random.default_rng(0), feed)
    expansion = expand(model, facts.first)
    if expansion.owners:
        facts = observe(model, ONE_THREAD, np.random.default_rng(0), feed)
    emit = Emitter(model, (facts.first, facts.second))
    kind = ir.TensorType(ir.DataType.from_numpy(seed.dtype))
    given = ir.Value(name="seed", type=kind, shape=ir.Shape([None] * seed.ndim))
    last = model.graph.outputs[-1].name or ""
    walked = add_backward(model, emit, {last: given}, edges, expansion, weights)
    assert not walked.blocked, walked.blocked
    assert not walked.stuck, walked.stuck
    model.graph.inputs.append(given)
    gradients = dict(walked.tensors)
    for gradient in walked.gradients.values():
        gradients[tensor] = emit.total(gradients.get(tensor), gradient)
    missing = ({tensor} if edges else set()).union(weights).difference(gradients)
    assert not missing, f"no gradient reaches {missing}"
    for name in weights:
        value = model.graph.initializers.pop(name)
        value.const_value = None
        model.graph.inputs.append(value)
    outputs = {name: emit.op("Identity", gradient) for name, gradient in gradients.items()}
    for output in outputs.values():
        output.type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(output)
    names = {name: output.name or "" for name, output in outputs.items()}
    session = open_session(model, ONE_THREAD)
    found = run(session, {**feed, **weights, "seed": seed}, list(names.values()))
    return {name: found[output] for name, output in names.items()}


def numeric_gradient(
    outputs: Outputs, feed: Arrays, seed: NDArray[Any], tensor: str, step: float
) -> NDArray[np.float64]:
    """Gradient of sum(seed * last output) with respect to a graph input, by differences."""

    def loss(array: NDArray[Any]) -> float:
        return float((outputs({**feed, tensor: array}).astype(np.float64) * seed).sum())

    point = feed[tensor]
    gradient = np.zeros(point.size)
    for place in range(point.size):
        for shift, factor in _STENCIL:
            moved = point.copy().reshape(-1)
            moved[place] += shift * step
            gradient[place] += factor * loss(moved.reshape(point.shape)) / (12 * step)
    return gradient.reshape(point.shape)


def _of_reference(proto: onnx.ModelProto) -> Outputs:
    """Last output by the reference evaluator, in double precision."""
    evaluator = ReferenceEvaluator(_doubled(proto))
    return lambda feed: evaluator.run([proto.graph.output[-1].name], dict(feed))[0]


def _of_runtime(proto: onnx.ModelProto) -> Outputs:
    """Last output by onnxruntime."""
    session, name = open_session(proto, ONE_THREAD), proto.graph.output[-1].name

    def outputs(feed: Arrays) -> NDArray[Any]:
        return run(session, {key: one.astype(np.float32) for key, one in feed.items()})[name]

    return outputs


def _doubled(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same network in double precision; scales of Resize have to stay single."""
    twin = onnx.ModelProto()
    twin.CopyFrom(proto)
    for value in (*twin.graph.input, *twin.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for tensor in twin.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name != "scales":
            array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return twin


def _apart(
    shape: tuple[int, ...], low: float, high: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Entries that keep their distance from each other and from zero, so that no kink is near."""
    spaced = np.linspace(low, high, 2 * int(np.prod(shape)) + 1)[1::2]
    return rng.permutation(spaced).reshape(shape).astype(np.float32) + np.float32(1e-3)


def _with_inputs(proto: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """The same network with some of its initializers as inputs."""
    twin = onnx.ModelProto()
    twin.CopyFrom(proto)
    del twin.graph.initializer[:]
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            made = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            twin.graph.input.append(made)
        else:
            twin.graph.initializer.append(tensor)
    return twin


def check_gradient(
    body: str,
    shape: tuple[int, ...],
    weights: Mapping[str, NDArray[Any]] | None = None,
    *,
    tuned: str = "",
    opset: int = 18,
    domain: str = "",
    positive: bool = False,
    by_runtime: bool = False,
) -> None:
    """Compare both gradients of a body that makes y of x.

    Args:
        body: nodes in ONNX text.
        shape: of x.
        weights: constants.
        tuned: names of those whose gradient is compared too, separated by spaces.
        opset: operator set.
        domain: another one that is imported.
        positive: draw x from [0.5, 1.8].
        by_runtime: take differences of what onnxruntime gives, for ops that the reference
            evaluator lacks or computes in single precision.
    """
    axes = ", ".join(["N", *map(str, shape[1:])])
    imports = f'"": {opset}' + (f', "{domain}": 1' if domain else "")
    text = f"""<ir_version: 8, opset_import: [{imports}]>
        g (float[{axes}] x) => (float[] y) {{ {body} }}"""
    proto = parse(text, weights)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    rng = np.random.default_rng(7)
    given = {"x": _apart(shape, 0.5 if positive else -1.8, 1.8, rng)}
    # not those that the gradient was written for: their values must not be part of it
    fed = {name: np.asarray(0.9 * (weights or {})[name], np.float32) for name in tuned.split()}
    loose, point = _with_inputs(proto, fed), given | fed
    seed = rng.standard_normal(_of_runtime(loose)(point).shape).astype(np.float32)
    outputs, step = (_of_runtime(loose), 2e-2) if by_runtime else (_of_reference(loose), 1e-3)
    if not by_runtime:
        point = {name: array.astype(np.float64) for name, array in point.items()}
    found = emitted_gradients(proto, given, seed, "x", fed)
    for tensor in ("x", *fed):
        wanted = numeric_gradient(outputs, point, seed, tensor, step)
        most = float(np.abs(wanted).max())
        assert most > 1e-3, "a gradient of zero shows nothing"
        slack = {"rtol": 1e-3, "atol": 2e-4 * most}
        np.testing.assert_allclose(found[tensor], wanted, **slack, err_msg=tensor)
