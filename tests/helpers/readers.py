"""Readers of a feature map, and what may lie between its producer and them: drawn at random."""

from __future__ import annotations

from typing import Any

import numpy as np

from helpers.networks import Map, Net

WIDTH = 6
"""Channels of the map; grouped readers have two groups of three."""


def bias(net: Net, width: int) -> list[str]:
    """No bias, an initializer, a Constant node, or one that another node reads as well."""
    kind = net.pick(("none", "initializer", "node", "shared"))
    if kind == "none":
        return []
    values = net.rng.standard_normal(width).astype(np.float32)
    name = net.constant(values, as_node=kind == "node")
    if kind == "shared":
        net.shared = name
    return [name]


def pads(net: Net, rank: int, largest: int) -> dict[str, Any]:
    kind = net.pick(("none", "even", "uneven", "SAME_UPPER", "SAME_LOWER", "VALID"))
    if kind in ("none", "even"):
        return {"pads": [1 if kind == "even" else 0] * 2 * rank}
    if kind == "uneven":
        return {"pads": [net.pick(range(largest + 1)) for _ in range(2 * rank)]}
    return {"auto_pad": kind}


def conv(net: Net, x: Map) -> str:
    rank, group = len(x.spatial), net.pick((1, 1, 2)) if x.channels == WIDTH else 1
    kernel = [net.pick((1, 2, 3)) for _ in range(rank)]
    weight = net.weight(4, x.channels // group, *kernel, fan_in=x.channels)
    padding = pads(net, rank, 2)
    stretch = {"dilations": [net.pick((1, 2))] * rank} if "pads" in padding else {}
    strides = [net.pick((1, 1, 2)) for _ in range(rank)]
    inputs = (x.name, weight, *bias(net, 4))
    return net.op("Conv", *inputs, group=group, strides=strides, **padding, **stretch)


def conv_transpose(net: Net, x: Map) -> str:
    rank, group = len(x.spatial), net.pick((1, 1, 2)) if x.channels == WIDTH else 1
    kernel = [net.pick((2, 3)) for _ in range(rank)]
    weight = net.weight(x.channels, 4 // group, *kernel, fan_in=x.channels)
    stride = net.pick((1, 2))
    options: dict[str, Any] = {"strides": [stride] * rank, "group": group}
    if stride == 2 and net.pick((True, False)):
        options["output_padding"] = [1] * rank
    options |= {"pads": [net.pick((0, 1)) for _ in range(2 * rank)]}
    return net.op("ConvTranspose", x.name, weight, *bias(net, 4), **options)


def flattened(net: Net, x: Map) -> tuple[str, int]:
    size = int(np.prod(x.shape))
    if net.pick((True, False)):
        return net.op("Flatten", x.name), size
    rank = len(x.spatial)
    last = net.op("Transpose", x.name, perm=[0, *range(2, rank + 2), 1])
    return net.op("Reshape", last, net.ints(0, -1)), size


def gemm(net: Net, x: Map) -> str:
    flat, size = flattened(net, x)
    options: dict[str, Any] = {"alpha": net.pick((1.0, 0.5)), "beta": net.pick((1.0, 2.0, 0.0))}
    if net.pick((True, False)):
        flat, options["transA"] = net.op("Transpose", flat, perm=[1, 0]), 1
    options["transB"] = net.pick((0, 1))
    weight = net.weight(*((4, size) if options["transB"] else (size, 4)), fan_in=size)
    kind = net.pick(("vector", "row", "scalar", *["none"] * (net.opset >= 11)))
    shape = {"vector": (4,), "row": (1, 4), "scalar": (1,), "none": ()}[kind]
    vector = kind == "vector" and net.opset >= 11
    addend = bias(net, 4) if vector else [net.weight(*shape)] if shape else []
    return net.op("Gemm", flat, weight, *addend, **options)


def plus_bias(net: Net, linear: str, *shape: int) -> str:
    kind = net.pick(("none", "left", "right"))
    if kind == "none":
        return linear
    vector = net.weight(*shape)
    return net.op("Add", *((vector, linear) if kind == "left" else (linear, vector)))


def matmul(net: Net, x: Map) -> str:
    flat, size = flattened(net, x)
    return plus_bias(net, net.op("MatMul", flat, net.weight(size, 4, fan_in=size)), 4)


def tokens(net: Net, x: Map) -> str:
    """[N, positions, C], whatever the size of the map."""
    return net.op("Reshape", x.name, net.ints(0, x.channels, -1))


def matmul_on_tokens(net: Net, x: Map) -> str:
    turned = net.op("Transpose", tokens(net, x), perm=[0, 2, 1])
    weight = net.weight(x.channels, 4, fan_in=x.channels)
    return plus_bias(net, net.op("MatMul", turned, weight), *net.pick(((4,), (1, 1, 4), (1,))))


def matmul_from_the_left(net: Net, x: Map) -> str:
    weight = net.weight(4, x.channels, fan_in=x.channels)
    return plus_bias(net, net.op("MatMul", weight, tokens(net, x)), 4, 1)


def einsum(net: Net, x: Map) -> str:
    forms = ("ncp,oc->nop", "oc,ncp->npo", "ncp,oc", "ncp,coh->npoh", "ncp,co->on")
    equation = net.pick(forms)
    terms = equation.partition("->")[0].split(",")
    term = next(one for one in terms if one != "ncp")
    sizes = {"o": 4, "c": x.channels, "h": 3}
    weight = net.weight(*[sizes[letter] for letter in term], fan_in=x.channels)
    operands = {"ncp": tokens(net, x), term: weight}
    return net.op("Einsum", *(operands[one] for one in terms), equation=equation)


def plain(net: Net, x: Map) -> Map:
    return x


def normalised(net: Net, x: Map) -> Map:
    scale, shift, about = (net.weight(x.channels) for _ in range(3))
    variance = net.constant(net.rng.uniform(0.5, 2, x.channels).astype(np.float32))
    return Map(net.op("BatchNormalization", x.name, scale, shift, about, variance), x.shape)


def pooled(net: Net, x: Map) -> Map:
    rank = len(x.spatial)
    options: dict[str, Any] = {"pads": [1] * 2 * rank, "strides": [1] * rank}
    name = net.op(net.pick(("MaxPool", "AveragePool")), x.name, kernel_shape=[3] * rank, **options)
    return Map(name, x.shape)


def resized(net: Net, x: Map) -> Map:
    rank = len(x.spatial)
    if net.opset < 11:
        return plain(net, x)
    scales = net.constant(np.array([1, 1, *[2] * rank], np.float32))
    region = net.constant(np.zeros(0, np.float32))
    mode = net.pick(("nearest", "linear"))
    name = net.op("Resize", x.name, region, scales, mode=mode)
    return Map(name, (x.channels, *(2 * n for n in x.spatial)))


def concatenated(net: Net, x: Map) -> Map:
    rank = len(x.spatial)
    other = net.op("Conv", "input", net.weight(2, 3, *[1] * rank, fan_in=3))
    parts = [x.name, other] if net.pick((True, False)) else [other, x.name]
    return Map(net.op("Concat", *parts, axis=1), (x.channels + 2, *x.spatial))


def residual(net: Net, x: Map) -> Map:
    """Constant channels only stay constant where both branches are; the other one scales."""
    factor = net.constant(np.array(0.5, np.float32))
    return Map(net.op("Add", x.name, net.op("Mul", x.name, factor)), x.shape)


def depthwise(net: Net, x: Map) -> Map:
    """Zero-padded: a constant channel becomes a different constant at the border."""
    rank = len(x.spatial)
    weight = net.weight(x.channels, 1, *[3] * rank, fan_in=3**rank)
    name = net.op("Conv", x.name, weight, group=x.channels, pads=[1] * 2 * rank)
    return Map(name, x.shape)


def padded_pool(net: Net, x: Map) -> Map:
    rank = len(x.spatial)
    name = net.op(
        "AveragePool",
        x.name,
        kernel_shape=[2] * rank,
        pads=[1] * 2 * rank,
        strides=[1] * rank,
        count_include_pad=1,
    )
    return Map(name, (x.channels, *(n + 1 for n in x.spatial)))


ON_MAPS = (conv, conv_transpose)
ON_VECTORS = (gemm, matmul, matmul_on_tokens, matmul_from_the_left, einsum)
AT_ANY_SIZE = (conv, conv_transpose, matmul_on_tokens, matmul_from_the_left)
BETWEEN = (plain, normalised, pooled, resized, concatenated, residual)
UNEVEN = (depthwise, padded_pool)
"""What makes of one constant a map that differs from place to place."""
