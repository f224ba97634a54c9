"""A small voice network, alone and inside the branches of an If on the sampling rate.

Its channels are multiples of fewer, with some noise: a good pruning keeps its answers, and one that
does not re-fit the layers loses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLASSES = 6
LENGTH = 64
RATES = (16000, 8000)
_FLOAT, _INT64 = TensorProto.FLOAT, TensorProto.INT64

Feeds = Sequence[Mapping[str, NDArray[Any]]]


def sounds(count: int, seed: int = 0) -> NDArray[np.float32]:
    """One of six notes with an overtone and some noise, [count, 1, LENGTH]."""
    rng = np.random.default_rng(seed)
    time = np.arange(LENGTH) / LENGTH
    pitch = 2.0 * (1 + _notes(count, seed)) + rng.uniform(-0.3, 0.3, count)
    turns = pitch[:, np.newaxis] * time + rng.random((count, 1))
    waves = np.sin(2 * np.pi * turns) + 0.3 * np.sin(4 * np.pi * turns)
    waves = rng.uniform(0.7, 1.3, (count, 1)) * waves
    noise = 0.05 * rng.standard_normal((count, LENGTH))
    return (waves + noise)[:, np.newaxis].astype(np.float32)


def _notes(count: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 1]).integers(0, CLASSES, count)


def feeds(count: int, rates: tuple[int, ...] = RATES, seed: int = 0) -> list[dict[str, Any]]:
    """Feeds of eight sounds each, the rates in turn."""
    return [
        {"x": sounds(8, seed * 1000 + number), "sr": np.array(rates[number % len(rates)])}
        for number in range(count)
    ]


def of_rate(given: Feeds, rate: int) -> Feeds:
    """The feeds with one rate."""
    return [feed for feed in given if feed["sr"] == rate]


def alone(seed: int = 0) -> onnx.ModelProto:
    """The network by itself: x [N, 1, LENGTH] -> y [N, CLASSES]."""
    return _model(_layers("a_", "x", "y"), [*_tensors("a_", seed), _AXIS], [_SIGNAL])


def branched(seed: int = 0, *, outer: bool = False, trunk: bool = False) -> onnx.ModelProto:
    """A network for each of two sampling rates, in the branches of an If.

    Args:
        seed: of the weights; the first branch has those of `alone`.
        outer: weights are initializers of the main graph instead of the branches.
        trunk: the first two convolutions stand before the If, for both.
    """
    tensors = {"a_": _tensors("a_", seed), "b_": _tensors("b_", seed + 1, seed if trunk else None)}
    nodes = [helper.make_node("Equal", ["sr", "rate"], ["is_first"], name="rate_test")]
    shared = [_AXIS, numpy_helper.from_array(np.array(RATES[0]), "rate")]
    if trunk:
        nodes += _layers("a_", "x", "unused")[:4]
        names = {name for node in nodes for name in node.input}
        shared += [tensor for tensor in tensors["a_"] if tensor.name in names]
        tensors["a_"] = [tensor for tensor in tensors["a_"] if tensor.name not in names]
        used = {f"b_{name}" for name in ("w1", "b1", "w2", "b2")}
        tensors["b_"] = [tensor for tensor in tensors["b_"] if tensor.name not in used]
    branches = {}
    for which, prefix in (("then", "a_"), ("else", "b_")):
        layers = _layers(prefix, "x", f"{prefix}y")
        if trunk:
            layers = layers[4:]
            layers[0].input[0] = "a_r2"
        output = helper.make_tensor_value_info(f"{prefix}y", _FLOAT, ["N", CLASSES])
        inside = [] if outer else tensors[prefix]
        branches[f"{which}_branch"] = helper.make_graph(layers, which, [], [output], inside)
    nodes.append(helper.make_node("If", ["is_first"], ["y"], name="by_rate", **branches))
    if outer:
        shared += [*tensors["a_"], *tensors["b_"]]
    return _model(nodes, shared, [_SIGNAL, helper.make_tensor_value_info("sr", _INT64, [])])


def agreement(first: onnx.ModelProto, second: onnx.ModelProto, given: Feeds) -> float:
    """Share of the same answers, in percent."""
    pairs = zip(_answers(first, given), _answers(second, given), strict=True)
    return 100 * float(np.mean([np.mean(a == b) for a, b in pairs]))


def _answers(model: onnx.ModelProto, given: Feeds) -> list[NDArray[Any]]:
    return [scores.argmax(axis=1) for scores in _results(model, given)]


def _results(model: onnx.ModelProto, given: Feeds) -> list[NDArray[Any]]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    return [session.run(None, {k: v for k, v in f.items() if k in names})[0] for f in given]


def _layers(prefix: str, source: str, result: str) -> list[onnx.NodeProto]:
    """Nodes of the network; names carry the prefix."""

    def named(*parts: str) -> list[str]:
        return [f"{prefix}{part}" for part in parts]

    def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], name=f"{output}_node", **attributes)

    h1, r1, h2, r2, h3, r3, t, g, s, f, q = named(
        "h1", "r1", "h2", "r2", "h3", "r3", "t", "g", "s", "f", "q"
    )
    gru = helper.make_node(
        "GRU", [t, *named("gw", "gr", "gb")], ["", g], name=f"{g}_node", hidden_size=16
    )
    return [
        node("Conv", [source, *named("w1", "b1")], h1, strides=[4], pads=[2, 2]),
        node("Relu", [h1], r1),
        node("Conv", [r1, *named("w2", "b2")], h2, strides=[2], pads=[2, 2]),
        node("Relu", [h2], r2),
        node("Conv", [r2, *named("w3", "b3")], h3, pads=[1, 1]),
        node("Relu", [h3], r3),
        node("Transpose", [r3], t, perm=[2, 0, 1]),
        gru,
        node("Squeeze", [g, "axis0"], s),
        node("Gemm", [s, *named("o1", "c1")], f, transB=1),
        node("Relu", [f], q),
        node("Gemm", [q, *named("o2", "c2")], result, transB=1),
    ]


def _tensors(prefix: str, seed: int, trunk: int | None = None) -> list[onnx.TensorProto]:
    """Weights; those of the last layer are fitted to tell the notes apart.

    Args:
        prefix: of their names.
        seed: of the weights.
        trunk: seed of those of the first two convolutions; default the same.
    """
    arrays = _weights(seed)
    below = _weights(seed if trunk is None else trunk)
    arrays |= {name: below[name] for name in ("w1", "b1", "w2", "b2")}
    tensors = [numpy_helper.from_array(array, f"{prefix}{name}") for name, array in arrays.items()]
    plain = _model(_layers(prefix, "x", "y")[:-1], [*tensors, _AXIS], [_SIGNAL], f"{prefix}q")
    features = _results(plain, [{"x": sounds(1024, 99)}])[0].astype(np.float64)
    rows = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    wanted = np.eye(CLASSES)[_notes(1024, 99)]
    gram = rows.T @ rows + 1e-3 * len(rows) * np.eye(rows.shape[1])
    fitted = np.linalg.solve(gram, rows.T @ wanted).T.astype(np.float32)
    arrays |= {"o2": np.ascontiguousarray(fitted[:, :-1]), "c2": fitted[:, -1]}
    return [numpy_helper.from_array(array, f"{prefix}{name}") for name, array in arrays.items()]


def _weights(seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)

    def similar(*shape: int, few: int, gates: int = 1) -> NDArray[np.float32]:
        """Rows that are multiples of fewer rows, with some noise; the same in each gate."""
        count, fan = shape[0] // gates, int(np.prod(shape[1:]))
        multiples = rng.uniform(0.5, 1.5, count) if gates == 1 else np.ones(count)
        parts = [
            multiples[:, np.newaxis] * rng.standard_normal((few, fan))[np.arange(count) % few]
            for _ in range(gates)
        ]
        rows = np.concatenate(parts) + 0.03 * rng.standard_normal((shape[0], fan))
        array: NDArray[np.float32] = (rows * np.sqrt(2 / fan)).reshape(shape).astype(np.float32)
        return array

    def small(count: int) -> NDArray[np.float32]:
        return (0.01 * rng.standard_normal(count)).astype(np.float32)

    return {
        "w1": similar(16, 1, 8, few=6),
        "b1": small(16),
        "w2": similar(24, 16, 5, few=8),
        "b2": small(24),
        "w3": similar(24, 24, 3, few=8),
        "b3": small(24),
        "gw": similar(48, 24, few=6, gates=3)[np.newaxis],
        "gr": similar(48, 16, few=6, gates=3)[np.newaxis],
        "gb": np.zeros((1, 96), np.float32),
        "o1": similar(24, 16, few=8),
        "c1": small(24),
    }


_AXIS = numpy_helper.from_array(np.array([0]), "axis0")
_SIGNAL = helper.make_tensor_value_info("x", _FLOAT, ["N", 1, LENGTH])


def _model(
    nodes: Sequence[onnx.NodeProto],
    tensors: Sequence[onnx.TensorProto],
    inputs: Sequence[onnx.ValueInfoProto],
    result: str = "y",
) -> onnx.ModelProto:
    outputs = [helper.make_tensor_value_info(result, _FLOAT, ["N", None])]
    graph = helper.make_graph(nodes, "voice", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model
