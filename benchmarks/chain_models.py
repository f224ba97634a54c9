"""Chains of about so many nodes with seeded weights, narrow so that the graph is measured.

A chain of residual blocks (Conv, BatchNormalization, Relu), a chain of pre-norm transformer blocks
with the shape arithmetic exporters write, and a densely connected chain in which every convolution
reads everything before it (a node for 33 of the count, since the labels of such a graph grow with
the square of its length).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

WIDTH = 8


class Builder:
    """Collects nodes and seeded weights."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int) -> str:
        """A random float weight."""
        return self.constant(self.rng.standard_normal(shape).astype(np.float32) * 0.3)

    def constant(self, value: Any) -> str:
        """A constant."""
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """One node; returns its output."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n_{name}", **attributes))
        return name

    def model(self, shape: list[int | str], output: str, rank: int) -> onnx.ModelProto:
        """The finished model with input x."""
        float32 = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            "chain",
            [helper.make_tensor_value_info("x", float32, shape)],
            [helper.make_tensor_value_info(output, float32, [None] * rank)],
            self.weights,
        )
        opsets = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def cnn(count: int) -> onnx.ModelProto:
    """Residual blocks, stages of sixteen with a projection between them."""
    b = Builder()
    x = b.add("Conv", "x", b.weight(WIDTH, 3, 3, 3), kernel_shape=[3, 3], pads=[1] * 4)

    def normed(x: str) -> str:
        scale, shift, mean = (b.weight(WIDTH) for _ in range(3))
        return b.add(
            "BatchNormalization", x, scale, shift, mean, b.constant(np.ones(WIDTH, np.float32))
        )

    block = 0
    while len(b.nodes) < count:
        block += 1
        if block % 16 == 0:
            x = b.add("Conv", x, b.weight(WIDTH, WIDTH, 1, 1))
        y = x
        for _ in range(2):
            y = b.add("Conv", y, b.weight(WIDTH, WIDTH, 3, 3), kernel_shape=[3, 3], pads=[1] * 4)
            y = b.add("Relu", normed(y))
        x = normed(b.add("Add", x, y))
    x = b.add("Flatten", b.add("GlobalAveragePool", x))
    return b.model(["n", 3, 8, 8], b.add("Gemm", x, b.weight(WIDTH, 4)), 2)


def transformer(count: int) -> onnx.ModelProto:
    """Pre-norm blocks of two heads, reshapes computed from shapes."""
    b = Builder()
    width, heads = 16, 2
    x = b.add("MatMul", "x", b.weight(4, width))

    def linear(x: str, rows: int, columns: int) -> str:
        return b.add("Add", b.add("MatMul", x, b.weight(rows, columns)), b.weight(columns))

    def norm(x: str) -> str:
        return b.add("LayerNormalization", x, b.weight(width), b.weight(width), axis=-1)

    def reshape(x: str, *tail: int) -> str:
        shape = b.add("Shape", x)
        parts = []
        for axis in range(2):
            part = b.add("Gather", shape, b.constant(np.array(axis, np.int64)))
            parts.append(b.add("Unsqueeze", part, b.constant(np.array([0], np.int64))))
        tails = [b.constant(np.array([n], np.int64)) for n in tail]
        return b.add("Reshape", x, b.add("Concat", *parts, *tails, axis=0))

    def split(x: str, order: list[int]) -> str:
        return b.add("Transpose", reshape(x, heads, width // heads), perm=order)

    while len(b.nodes) < count:
        y = norm(x)
        q = split(linear(y, width, width), [0, 2, 1, 3])
        k = split(linear(y, width, width), [0, 2, 3, 1])
        v = split(linear(y, width, width), [0, 2, 1, 3])
        scores = b.add("Mul", b.add("MatMul", q, k), b.constant(np.float32(0.35)))
        y = b.add("MatMul", b.add("Softmax", scores, axis=-1), v)
        y = reshape(b.add("Transpose", y, perm=[0, 2, 1, 3]), width)
        x = b.add("Add", x, linear(y, width, width))
        y = linear(norm(x), width, 2 * width)
        y = b.add("Mul", y, b.add("Sigmoid", y))
        x = b.add("Add", x, linear(y, 2 * width, width))
    return b.model(["n", "s", 4], b.add("MatMul", x, b.weight(width, 4)), 3)


def dense(count: int) -> onnx.ModelProto:
    """Every convolution reads the concatenation of everything before it."""
    b = Builder()
    seen = [b.add("Conv", "x", b.weight(4, 3, 1, 1))]
    while len(seen) < count // 33:
        x = b.add("Concat", *seen, axis=1) if len(seen) > 1 else seen[0]
        x = b.add("Relu", b.add("Mul", x, b.weight(1, 4 * len(seen), 1, 1)))
        seen.append(b.add("Conv", x, b.weight(4, 4 * len(seen), 1, 1)))
    x = b.add("Flatten", b.add("GlobalAveragePool", b.add("Concat", *seen, axis=1)))
    return b.model(["n", 3, 4, 4], b.add("Gemm", x, b.weight(4 * len(seen), 4)), 2)


KINDS: dict[str, Callable[[int], onnx.ModelProto]] = {
    "cnn": cnn,
    "transformer": transformer,
    "dense": dense,
}
