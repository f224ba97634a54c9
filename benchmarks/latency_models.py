"""Graphs of real size with seeded weights, for benchmarks of time.

ResNet-50, VGG-19, SqueezeNet and DenseNet-121 are those that ship with the onnx package
(`model_zoo.py`), with their weights as plain constants: the files list them among the inputs too,
which keeps onnxruntime from optimising anything they go into. MobileNetV2, BERT-base and a detector
are built here, by the published widths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from model_zoo import FOLDER, with_weights
from onnx import helper, numpy_helper

__all__ = ["MODELS"]


class Builder:
    """Collects nodes and seeded weights."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int, inputs: int) -> str:
        """Random weights, He-scaled."""
        values = self.rng.standard_normal(shape, np.float32) * np.float32((2 / inputs) ** 0.5)
        return self.constant(values)

    def constant(self, value: Any) -> str:
        """A constant."""
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """One node; returns its output, or the list of them."""
        name = f"t{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"n_{name}", **attributes))
        return names[0] if outputs == 1 else names

    def conv(
        self, x: str, inner: int, outer: int, kernel: int = 1, stride: int = 1, group: int = 1
    ) -> str:
        """A convolution with bias, padded to keep the size."""
        weight = self.weight(
            outer, inner // group, kernel, kernel, inputs=inner // group * kernel**2
        )
        bias = self.constant(self.rng.standard_normal(outer).astype(np.float32) * 0.1)
        shape = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4, "strides": [stride] * 2}
        return str(self.add("Conv", x, weight, bias, group=group, **shape))

    def linear(self, x: str, inner: int, outer: int) -> str:
        """A matrix product with bias."""
        product = self.add("MatMul", x, self.weight(inner, outer, inputs=inner))
        return str(self.add("Add", product, self.constant(np.full(outer, 0.01, np.float32))))

    def model(self, inputs: dict[str, tuple[int, list[Any]]], *outputs: str) -> onnx.ModelProto:
        """The finished model.

        Args:
            inputs: name -> (element type, shape).
            outputs: names of outputs.
        """
        graph = helper.make_graph(
            self.nodes,
            "benchmark",
            [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
            self.weights,
        )
        opsets = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        return onnx.shape_inference.infer_shapes(model)


def from_zoo(name: str) -> onnx.ModelProto:
    """A model of the onnx package whose weights are constants only."""
    model = with_weights(FOLDER / f"light_{name}.onnx")
    weights = {tensor.name for tensor in model.graph.initializer}
    left = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(left)
    return model


def mobilenet_v2() -> onnx.ModelProto:
    """MobileNetV2 at width 1 (Sandler et al. 2018, table 2), BatchNormalization folded."""
    b = Builder()
    low, high = b.constant(np.float32(0)), b.constant(np.float32(6))

    def clipped(x: str) -> str:
        return str(b.add("Clip", x, low, high))

    x, width = clipped(b.conv("x", 3, 32, 3, 2)), 32
    stages = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    for expansion, outer, repeats, first_stride in stages:
        for number in range(repeats):
            inner, stride = width * expansion, first_stride if number == 0 else 1
            y = clipped(b.conv(x, width, inner)) if expansion > 1 else x
            y = clipped(b.conv(y, inner, inner, 3, stride, group=inner))
            y = b.conv(y, inner, outer)
            x = b.add("Add", x, y) if stride == 1 and width == outer else y
            width = outer
    x = clipped(b.conv(x, width, 1280))
    x = b.add("Flatten", b.add("GlobalAveragePool", x))
    x = b.add("Gemm", x, b.weight(1280, 1000, inputs=1280), b.constant(np.zeros(1000, np.float32)))
    return b.model({"x": (onnx.TensorProto.FLOAT, [1, 3, 224, 224])}, x)


def bert_base(batch: int | str = 1) -> onnx.ModelProto:
    """The encoder of BERT-base (Devlin et al. 2019): 12 layers, 12 heads, 768 wide, length 128.

    Args:
        batch: number of texts, or a name where any number may be given.
    """
    b = Builder()
    length, width, heads, inner = 128, 768, 12, 3072

    def norm(x: str) -> str:
        ones, zeros = (
            b.constant(np.ones(width, np.float32)),
            b.constant(np.zeros(width, np.float32)),
        )
        return str(b.add("LayerNormalization", x, ones, zeros, axis=-1))

    def split(x: str, order: list[int]) -> str:
        shape = b.constant(np.array([0, length, heads, -1], np.int64))
        return str(b.add("Transpose", b.add("Reshape", x, shape), perm=order))

    table = b.constant(b.rng.standard_normal((30522, width)).astype(np.float32))
    places = b.constant(b.rng.standard_normal((1, length, width)).astype(np.float32))
    x = norm(b.add("Add", b.add("Gather", table, "ids"), places))
    for _ in range(12):
        q = split(b.linear(x, width, width), [0, 2, 1, 3])
        k = split(b.linear(x, width, width), [0, 2, 3, 1])
        v = split(b.linear(x, width, width), [0, 2, 1, 3])
        scores = b.add("Div", b.add("MatMul", q, k), b.constant(np.float32(8)))
        y = b.add("MatMul", b.add("Softmax", scores, axis=-1), v)
        y = b.add("Transpose", y, perm=[0, 2, 1, 3])
        y = b.add("Reshape", y, b.constant(np.array([0, length, width], np.int64)))
        x = norm(b.add("Add", x, b.linear(y, width, width)))
        y = b.linear(x, width, inner)
        erf = b.add("Erf", b.add("Div", y, b.constant(np.float32(2**0.5))))
        gate = b.add("Add", erf, b.constant(np.float32(1)))
        y = b.add("Mul", b.add("Mul", y, gate), b.constant(np.float32(0.5)))
        x = norm(b.add("Add", x, b.linear(y, inner, width)))
    first = b.add("Gather", x, b.constant(np.array(0, np.int64)), axis=1)
    pooled = b.add("Tanh", b.linear(first, width, width))
    return b.model({"ids": (onnx.TensorProto.INT64, [batch, length])}, b.linear(pooled, width, 2))


def detector() -> onnx.ModelProto:
    """A detector in the manner of YOLO at 320: SiLU, split bottlenecks, pyramid, three heads."""
    b = Builder()

    def conv(x: str, inner: int, outer: int, kernel: int = 1, stride: int = 1) -> str:
        y = b.conv(x, inner, outer, kernel, stride)
        return str(b.add("Mul", y, b.add("Sigmoid", y)))

    def block(x: str, inner: int, outer: int, repeats: int, added: bool) -> str:
        half = outer // 2
        parts = b.add("Split", conv(x, inner, outer), outputs=2, axis=1)
        for _ in range(repeats):
            y = conv(conv(parts[-1], half, half, 3), half, half, 3)
            parts.append(b.add("Add", parts[-1], y) if added else y)
        return conv(b.add("Concat", *parts, axis=1), half * len(parts), outer)

    def larger(x: str) -> str:
        scales = b.constant(np.array([1, 1, 2, 2], np.float32))
        return str(b.add("Resize", x, "", scales, mode="nearest"))

    x = conv(conv("x", 3, 32, 3, 2), 32, 64, 3, 2)
    x = conv(block(x, 64, 64, 1, True), 64, 128, 3, 2)
    eighth = block(x, 128, 128, 2, True)
    sixteenth = block(conv(eighth, 128, 256, 3, 2), 256, 256, 2, True)
    x = block(conv(sixteenth, 256, 512, 3, 2), 512, 512, 1, True)
    pools = [conv(x, 512, 256)]
    for _ in range(3):
        pools.append(b.add("MaxPool", pools[-1], kernel_shape=[5, 5], pads=[2] * 4))
    last = conv(b.add("Concat", *pools, axis=1), 1024, 512)
    middle = block(b.add("Concat", larger(last), sixteenth, axis=1), 768, 256, 1, False)
    first = block(b.add("Concat", larger(middle), eighth, axis=1), 384, 128, 1, False)
    x = b.add("Concat", conv(first, 128, 128, 3, 2), middle, axis=1)
    middle = block(x, 384, 256, 1, False)
    x = b.add("Concat", conv(middle, 256, 256, 3, 2), last, axis=1)
    last = block(x, 768, 512, 1, False)
    outputs = []
    for x, width, cells in ((first, 128, 1600), (middle, 256, 400), (last, 512, 100)):
        boxes = b.conv(conv(conv(x, width, 64, 3), 64, 64, 3), 64, 64)
        classes = b.conv(conv(conv(x, width, 128, 3), 128, 128, 3), 128, 80)
        both = b.add("Concat", boxes, classes, axis=1)
        shape = b.constant(np.array([1, 144, cells], np.int64))
        outputs.append(b.add("Reshape", both, shape))
    return b.model(
        {"x": (onnx.TensorProto.FLOAT, [1, 3, 320, 320])}, b.add("Concat", *outputs, axis=2)
    )


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet50": lambda: from_zoo("resnet50"),
    "vgg19": lambda: from_zoo("vgg19"),
    "squeezenet": lambda: from_zoo("squeezenet"),
    "densenet121": lambda: from_zoo("densenet121"),
    "mobilenet_v2": mobilenet_v2,
    "bert_base": bert_base,
    "detector": detector,
}
