"""Random networks for the property tests: a builder, and blocks that turn one map into another.

A `Map` is a tensor [batch, channels, *spatial]. A block takes the net and a map, and returns a map.
Blocks leave the channels removable: whatever a block is followed by, each convolution made here
can lose some of its output channels. Every weight that can is noted in `Net.prunable`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Choice = TypeVar("Choice")

WIDTHS = (4, 6, 8, 12)


@dataclass(frozen=True)
class Map:
    """A tensor of the network and its shape without the batch."""

    name: str
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def spatial(self) -> tuple[int, ...]:
        return self.shape[1:]


class Net:
    """Collects nodes and seeded weights.

    Args:
        choose: picks one of several structural options.
        seed: of the weights.
        opset: version of the default operator set.
    """

    def __init__(self, choose: Callable[[Sequence[Any]], Any], seed: int, opset: int = 17) -> None:
        self._choose = choose
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.prunable: list[tuple[str, int]] = []
        self._count = 0
        self._weights_as_nodes = self.pick((False, False, True))

    def pick(self, options: Sequence[Choice]) -> Choice:
        chosen: Choice = self._choose(options)
        return chosen

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        return self.ops(kind, 1, *inputs, domain=domain, **attributes)[0]

    def ops(
        self, kind: str, count: int, *inputs: str, domain: str = "", **attributes: Any
    ) -> list[str]:
        names = [self._name(kind) for _ in range(count)]
        self.nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names

    def constant(self, array: NDArray[Any], *, as_node: bool = False) -> str:
        name = self._name("constant" if as_node else "weight")
        tensor = numpy_helper.from_array(array, name)
        if as_node:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.initializers.append(tensor)
        return name

    def weight(self, *shape: int, fan_in: int = 1, about: float = 0.0) -> str:
        """Normally distributed values, scaled so that activations keep their size."""
        values = self.rng.standard_normal(shape) / np.sqrt(fan_in) + about
        return self.constant(values.astype(np.float32), as_node=self._weights_as_nodes)

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64), as_node=self.pick((False, True)))

    def model(self, source: Map, result: Map) -> onnx.ModelProto:
        values = [
            helper.make_tensor_value_info(one.name, onnx.TensorProto.FLOAT, ["N", *one.shape])
            for one in (source, result)
        ]
        graph = helper.make_graph(self.nodes, "net", values[:1], values[1:], self.initializers)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind.lower()}_{self._count}"


Block = Callable[[Net, Map], Map]


def conv(net: Net, x: Map, width: int | None = None, kernel: int | None = None) -> Map:
    width = width or net.pick(WIDTHS)
    kernel = kernel or net.pick((1, 3))
    rank = len(x.spatial)
    weight = net.weight(width, x.channels, *[kernel] * rank, fan_in=x.channels * kernel**rank)
    net.prunable.append((weight, 0))
    bias = [net.weight(width)] if net.pick((True, False)) else []
    pads = [kernel // 2] * 2 * rank
    return Map(net.op("Conv", x.name, weight, *bias, pads=pads), (width, *x.spatial))


def strided_conv(net: Net, x: Map) -> Map:
    rank, width = len(x.spatial), net.pick(WIDTHS)
    weight = net.weight(width, x.channels, *[2] * rank, fan_in=x.channels * 2**rank)
    net.prunable.append((weight, 0))
    name = net.op("Conv", x.name, weight, strides=[2] * rank, auto_pad="SAME_UPPER")
    return Map(name, (width, *(-(-n // 2) for n in x.spatial)))


def batch_norm(net: Net, x: Map) -> Map:
    scale, shift, mean = (net.weight(x.channels, about=about) for about in (1, 0, 0))
    variance = net.constant(net.rng.uniform(0.5, 2, x.channels).astype(np.float32))
    return Map(net.op("BatchNormalization", x.name, scale, shift, mean, variance), x.shape)


def activation(net: Net, x: Map) -> Map:
    kind = net.pick(("Relu", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "Softplus", "Selu"))
    return Map(net.op(kind, x.name), x.shape)


def prelu(net: Net, x: Map) -> Map:
    slope = net.weight(x.channels, *[1] * len(x.spatial))
    return Map(net.op("PRelu", x.name, slope), x.shape)


def affine(net: Net, x: Map) -> Map:
    """Scale and shift as constants of their own, the scale as a divisor or a factor."""
    shape = x.channels, *[1] * len(x.spatial)
    scale = net.constant(net.rng.uniform(1, 2, shape).astype(np.float32))
    scaled = net.op(net.pick(("Mul", "Div")), x.name, scale)
    return Map(net.op(net.pick(("Add", "Sub")), scaled, net.weight(*shape)), x.shape)


def pool(net: Net, x: Map) -> Map:
    rank = len(x.spatial)
    kind = net.pick(("MaxPool", "AveragePool"))
    name = net.op(kind, x.name, kernel_shape=[3] * rank, pads=[1] * 2 * rank, strides=[1] * rank)
    return Map(name, x.shape)


def residual(net: Net, x: Map) -> Map:
    inner = conv(net, activation(net, conv(net, x)), x.channels)
    return Map(net.op("Add", inner.name, x.name), x.shape)


def projected_residual(net: Net, x: Map) -> Map:
    left = conv(net, x)
    return Map(net.op("Add", left.name, conv(net, x, left.channels, 1).name), left.shape)


def padded_residual(net: Net, x: Map) -> Map:
    """ResNet's option A: the shortcut is widened with zeros."""
    extra = net.pick(((0, 4), (2, 2)))
    inner = conv(net, x, x.channels + sum(extra))
    spatial = [0] * len(x.spatial)
    pads = net.ints(0, extra[0], *spatial, 0, extra[1], *spatial)
    return Map(net.op("Add", inner.name, net.op("Pad", x.name, pads)), inner.shape)


def concat(net: Net, parts: Sequence[Map]) -> Map:
    name = net.op("Concat", *(part.name for part in parts), axis=1)
    return Map(name, (sum(part.channels for part in parts), *parts[0].spatial))


def dense_block(net: Net, x: Map) -> Map:
    for _ in range(2):
        x = concat(net, [x, conv(net, x, 4)])
    return x


def repeated_concat(net: Net, x: Map) -> Map:
    """The same tensor several times, and a Concat inside a Concat."""
    inner = concat(net, [x, pool(net, x)])
    return conv(net, concat(net, [x, inner, x]))


def gated_split(net: Net, x: Map) -> Map:
    wide = conv(net, x, 2 * net.pick((4, 6)))
    half = wide.channels // 2
    left, right = split(net, wide, (half, half))
    return Map(net.op("Mul", left.name, net.op("Sigmoid", right.name)), left.shape)


def split_apart(net: Net, x: Map) -> Map:
    wide = conv(net, x, 12)
    sizes = net.pick(((6, 6), (4, 8), (4, 4, 4), (2, 4, 6)))
    parts = split(net, wide, sizes)
    return concat(net, [conv(net, parts[0]), *parts[1:]])


def sliced(net: Net, x: Map) -> Map:
    wide = conv(net, x, 12)
    start, end, step = net.pick(
        ((2, 10, 1), (-8, 2**63 - 1, 1), (0, 12, 2), (1, 12, 2), (-1, -(2**63) + 1, -1), (8, 1, -1))
    )
    bounds = [net.ints(n) for n in (start, end, 1, step)]
    extent = len(range(12)[slice(start, None if end < -12 else end, step)])
    return Map(net.op("Slice", wide.name, *bounds), (extent, *x.spatial))


def gathered(net: Net, x: Map) -> Map:
    wide = conv(net, x, 8)
    index = net.pick(((7, 6, 5, 4, 3, 2, 1, 0), (0, 0, 3, 5, -1), (1, 4, 2, 6)))
    name = net.op("Gather", wide.name, net.ints(*index), axis=1)
    return Map(name, (len(index), *x.spatial))


def grouped_conv(net: Net, x: Map) -> Map:
    group, inner = net.pick((2, 4)), net.pick((2, 3, 4))
    x = conv(net, x, group * inner)
    width, rank = group * net.pick((2, 4)), len(x.spatial)
    weight = net.weight(width, inner, *[3] * rank, fan_in=inner * 3**rank)
    bias = [net.weight(width)] if net.pick((True, False)) else []
    name = net.op("Conv", x.name, weight, *bias, group=group, pads=[1] * 2 * rank)
    return Map(name, (width, *x.spatial))


def depthwise(net: Net, x: Map) -> Map:
    multiplier, rank = net.pick((1, 2)), len(x.spatial)
    width = multiplier * x.channels
    weight = net.weight(width, 1, *[3] * rank, fan_in=3**rank)
    bias = [net.weight(width)] if net.pick((True, False)) else []
    name = net.op("Conv", x.name, weight, *bias, group=x.channels, pads=[1] * 2 * rank)
    return Map(name, (width, *x.spatial))


def transposed_conv(net: Net, x: Map) -> Map:
    group, rank = net.pick((1, 2, 4)), len(x.spatial)
    x = conv(net, x, 8)
    inner = net.pick((2, 4))
    weight = net.weight(8, inner, *[3] * rank, fan_in=8 // group * 3**rank)
    bias = [net.weight(inner * group)] if net.pick((True, False)) else []
    name = net.op("ConvTranspose", x.name, weight, *bias, group=group, pads=[1] * 2 * rank)
    return Map(name, (inner * group, *x.spatial))


def mean(net: Net, x: str, axes: Sequence[int]) -> str:
    """ReduceMean without kept axes; opset 18 made the axes an input."""
    if net.opset < 18:
        return net.op("ReduceMean", x, axes=list(axes), keepdims=0)
    return net.op("ReduceMean", x, net.ints(*axes), keepdims=0)


def split(net: Net, x: Map, sizes: Sequence[int]) -> list[Map]:
    """Split with its sizes given, or implied where they are equal; opset 18 counts the parts."""
    implied = len(set(sizes)) == 1 and net.pick((True, False))
    given = [] if implied else [net.ints(*sizes)]
    count = {"num_outputs": len(sizes)} if implied and net.opset >= 18 else {}
    names = net.ops("Split", len(sizes), x.name, *given, axis=1, **count)
    return [Map(name, (n, *x.spatial)) for name, n in zip(names, sizes, strict=True)]


def squeeze_excite(net: Net, x: Map) -> Map:
    if net.pick((True, False)):
        pooled = Map(net.op("GlobalAveragePool", x.name), (x.channels, *[1] * len(x.spatial)))
        hidden = Map(net.op("Relu", conv(net, pooled, 6, 1).name), (6, *pooled.spatial))
        gate = conv(net, hidden, x.channels, 1).name
    else:
        axes = tuple(range(2, 2 + len(x.spatial)))
        pooled_name = mean(net, x.name, axes)
        linear = net.op("MatMul", pooled_name, net.weight(x.channels, 6, fan_in=x.channels))
        hidden_name = net.op("Relu", net.op("Add", linear, net.weight(6)))
        expanded = net.op("MatMul", hidden_name, net.weight(6, x.channels, fan_in=6))
        gate = net.op("Unsqueeze", expanded, net.ints(*axes))
    return Map(net.op("Mul", x.name, net.op("Sigmoid", gate)), x.shape)


def shared_weights(net: Net, x: Map) -> Map:
    """One convolution used twice, as in a siamese or recurrent network."""
    weight = net.weight(x.channels, x.channels, *[1] * len(x.spatial), fan_in=x.channels)
    once = net.op("Tanh", net.op("Conv", x.name, weight))
    return Map(net.op("Conv", once, weight), x.shape)


def channel_shuffle(net: Net, x: Map) -> Map:
    """Between grouped convolutions, as in ShuffleNet."""
    group = net.pick((2, 4))
    x = conv(net, x, 16)
    spatial = list(x.spatial)
    apart = net.op("Reshape", x.name, net.ints(0, group, 16 // group, *spatial))
    rest = range(3, 3 + len(spatial))
    turned = net.op("Transpose", apart, perm=[0, 2, 1, *rest])
    return Map(net.op("Reshape", turned, net.ints(0, 16, *spatial)), x.shape)


def there_and_back(net: Net, x: Map) -> Map:
    """Movement that a gate of shape [batch, channels] takes on its way."""
    lifted = net.op("Unsqueeze", x.name, net.ints(1))
    return Map(net.op("Squeeze", lifted, net.ints(1)), x.shape)


def upsampled(net: Net, x: Map) -> Map:
    scales = net.constant(np.array([1, 1, *[2] * len(x.spatial)], np.float32))
    name = net.op("Resize", x.name, "", scales, mode="nearest")
    return Map(name, (x.channels, *(2 * n for n in x.spatial)))


def sub_pixels(net: Net, x: Map) -> Map:
    """DepthToSpace, and for even maps SpaceToDepth behind it (2-d only)."""
    wide = conv(net, x, 16)
    mode = net.pick(("DCR", "CRD"))
    x = Map(
        net.op("DepthToSpace", wide.name, blocksize=2, mode=mode), (4, *(2 * n for n in x.spatial))
    )
    x = conv(net, x, 4)
    name = net.op("SpaceToDepth", x.name, blocksize=2)
    return Map(name, (16, *(n // 2 for n in x.spatial)))


_BLOCKS: tuple[Block, ...] = (
    conv, strided_conv, batch_norm, activation, prelu, affine, pool, residual, projected_residual,
    padded_residual, dense_block, repeated_concat, gated_split, split_apart, sliced, gathered,
    grouped_conv, depthwise, transposed_conv, squeeze_excite, shared_weights, channel_shuffle,
    there_and_back, upsampled, sub_pixels
)  # fmt: skip

BLOCKS = {block.__name__: block for block in _BLOCKS}
"""Blocks for maps of any rank, but `sub_pixels`, which needs two spatial axes."""


def flat_classifier(net: Net, x: Map) -> Map:
    """Flatten as PyTorch does, channels first."""
    size = int(np.prod(x.shape))
    flat = net.op("Flatten", x.name)
    weight = net.weight(5, size, fan_in=size)
    return Map(net.op("Gemm", flat, weight, net.weight(5), transB=1), (5,))


def channels_last_classifier(net: Net, x: Map) -> Map:
    """Flatten as TensorFlow does, channels last; the size is literal, copied or computed."""
    rank, size = len(x.spatial), int(np.prod(x.shape))
    last = net.op("Transpose", x.name, perm=[0, *range(2, rank + 2), 1])
    way = net.pick(("literal", "copied", "computed"))
    if way == "computed":
        batch = net.op("Slice", net.op("Shape", x.name), net.ints(0), net.ints(1))
        target = net.op("Concat", batch, net.ints(size), axis=0)
    else:
        target = net.ints(-1, size) if way == "literal" else net.ints(0, -1)
    flat = net.op("Reshape", last, target)
    hidden = net.op("Relu", net.op("MatMul", flat, net.weight(size, 8, fan_in=size)))
    return Map(net.op("MatMul", hidden, net.weight(8, 5, fan_in=8)), (5,))


def pooled_classifier(net: Net, x: Map) -> Map:
    axes = list(range(2, 2 + len(x.spatial)))
    pooled = mean(net, x.name, axes)
    weight = net.weight(x.channels, 5, fan_in=x.channels)
    return Map(net.op("Gemm", pooled, weight, net.weight(5)), (5,))


def dense_prediction(net: Net, x: Map) -> Map:
    """A map at the output, as in segmentation."""
    weight = net.weight(3, x.channels, *[1] * len(x.spatial), fan_in=x.channels)
    return Map(net.op("Conv", x.name, weight, net.weight(3)), (3, *x.spatial))


HEADS: tuple[Block, ...] = (
    flat_classifier,
    channels_last_classifier,
    pooled_classifier,
    dense_prediction,
)
