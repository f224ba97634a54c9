"""Random transformers for the property tests, decomposed the ways exporters decompose them.

A `Map` is a tensor [batch, tokens, width] here. The width of the residual stream is free where no
normalisation runs over it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from helpers.networks import Map, Net

TOKENS = 5
WIDTH = 12


def linear(net: Net, x: str, inputs: int, width: int, *, note: bool = True) -> str:
    weight = net.weight(inputs, width, fan_in=inputs)
    if note:
        net.prunable.append((weight, 1))
    product = net.op("MatMul", x, weight)
    return net.op("Add", net.weight(width), product) if net.pick((True, False)) else product


def scalar(net: Net, value: float) -> str:
    return net.constant(np.array(value, np.float32))


def reshape(net: Net, x: str, like: str, *sizes: int) -> str:
    """Reshape to [batch, *sizes]: a literal, a copied batch, or a batch computed from `like`."""
    way = net.pick(("literal", "copied", "computed"))
    if way == "computed":
        batch = net.op("Gather", net.op("Shape", like), net.ints(0), axis=0)
        return net.op("Reshape", x, net.op("Concat", batch, net.ints(*sizes), axis=0))
    return net.op("Reshape", x, net.ints(-1 if way == "literal" else 0, *sizes))


def mlp(net: Net, x: Map) -> Map:
    wide = net.pick((16, 24))
    hidden = linear(net, x.name, WIDTH, wide)
    if net.pick((True, False)):
        gate = net.op("Sigmoid", linear(net, x.name, WIDTH, wide))
        hidden = net.op("Mul", hidden, gate)
    else:
        hidden = gelu(net, hidden)
    return Map(net.op("Add", x.name, linear(net, hidden, wide, WIDTH, note=False)), x.shape)


def gelu(net: Net, x: str) -> str:
    inner = net.op("Erf", net.op("Div", x, scalar(net, 2**0.5)))
    return net.op("Mul", net.op("Mul", x, net.op("Add", inner, scalar(net, 1))), scalar(net, 0.5))


def normalised(net: Net, x: Map) -> Map:
    scale, shift = net.weight(WIDTH, about=1), net.weight(WIDTH)
    return Map(net.op("LayerNormalization", x.name, scale, shift, axis=-1), x.shape)


def rotated(net: Net, x: str, size: int) -> str:
    """Rotary embedding of [batch, heads, tokens, size]."""
    half = size // 2
    first = net.op("Slice", x, net.ints(0), net.ints(half), net.ints(3))
    second = net.op("Slice", x, net.ints(half), net.ints(2**63 - 1), net.ints(-1))
    swapped = net.op("Concat", net.op("Neg", second), first, axis=-1)
    angles = np.arange(TOKENS)[:, None] * np.tile(np.logspace(0, -2, half), 2)[None]
    cos, sin = (net.constant(f(angles).astype(np.float32)[None, None]) for f in (np.cos, np.sin))
    return net.op("Add", net.op("Mul", x, cos), net.op("Mul", swapped, sin))


def repeated(net: Net, x: str, heads: int, copies: int, size: int) -> str:
    """Grouped-query attention: each key-value head serves several query heads."""
    lifted = net.op("Unsqueeze", x, net.ints(2))
    spread = net.op("Expand", lifted, net.ints(1, heads, copies, TOKENS, size))
    return net.op("Reshape", spread, net.ints(0, heads * copies, TOKENS, size))


def heads_apart(net: Net, x: str, like: str, heads: int, size: int) -> str:
    apart = reshape(net, x, like, TOKENS, heads, size)
    return net.op("Transpose", apart, perm=[0, 2, 1, 3])


def self_attention(net: Net, x: Map) -> Map:
    """Projections apart or fused, with any of: rotary embedding, shared key-value heads, a bias
    on the scores, statistics per head, features that are never zero, batch and heads merged.
    """
    heads, size = net.pick(((4, 6), (2, 8), (4, 4)))
    served = net.pick((heads, 2))
    width, shared = heads * size, served * size
    if net.pick((True, False)):
        fused = linear(net, x.name, WIDTH, width + 2 * shared)
        parts = net.ops("Split", 3, fused, net.ints(width, shared, shared), axis=-1)
    else:
        parts = [linear(net, x.name, WIDTH, size) for size in (width, shared, shared)]
    counts = (heads, served, served)
    query, key, value = (
        heads_apart(net, part, x.name, count, size)
        for part, count in zip(parts, counts, strict=True)
    )
    if net.pick((False, False, True)):  # a bias that knows the heads, as in T5 and Keras
        query = net.op("Add", query, net.weight(heads, 1, size))
    kind = net.pick(("plain", "rotary", "head norm", "one sigmoid", "two sigmoids"))
    if kind == "rotary":
        query, key = rotated(net, query, size), rotated(net, key, size)
    elif kind == "head norm":
        query, key = (
            net.op("LayerNormalization", one, net.weight(size, about=1), axis=-1)
            for one in (query, key)
        )
    elif kind != "plain":  # where it is removed, one side of the product has to be zero
        query = net.op("Sigmoid", query)
        key = net.op("Sigmoid", key) if kind == "two sigmoids" else key
    if served < heads:
        key, value = (repeated(net, one, served, heads // served, size) for one in (key, value))
    key = net.op("Transpose", key, perm=[0, 1, 3, 2])
    merged = net.pick((False, False, True))
    if merged:
        query = net.op("Reshape", query, net.ints(-1, TOKENS, size))
        key = net.op("Reshape", key, net.ints(-1, size, TOKENS))
        value = net.op("Reshape", value, net.ints(-1, TOKENS, size))
    scores = net.op("Mul", net.op("MatMul", query, key), scalar(net, size**-0.5))
    if not merged and net.pick((True, False)):
        scores = net.op("Add", scores, net.weight(heads, TOKENS, TOKENS))
    if kind != "two sigmoids":  # a softmax would not notice what all scores have in common
        scores = net.op("Softmax", scores, axis=-1)
    mixed = net.op("MatMul", scores, value)
    if merged:
        mixed = net.op("Reshape", mixed, net.ints(-1, heads, TOKENS, size))
    together = net.op("Transpose", mixed, perm=[0, 2, 1, 3])
    flat = reshape(net, together, x.name, TOKENS, width)
    return Map(net.op("Add", linear(net, flat, width, WIDTH, note=False), x.name), x.shape)


def einsum_attention(net: Net, x: Map) -> Map:
    """Attention with three-dimensional weights, as Keras and Flax write it."""
    heads, size = 4, 4
    query, key, value = (
        net.op("Einsum", x.name, net.weight(WIDTH, heads, size, fan_in=WIDTH), equation=equation)
        for equation in ("bte,ehd->bthd",) * 3
    )
    key = net.op("Add", key, net.weight(heads, size))
    scores = net.op("Einsum", query, key, equation="bqhd,bkhd->bhqk")
    weights = net.op("Softmax", scores, axis=-1)
    mixed = net.op("Einsum", weights, value, equation="bhqk,bkhd->bqhd")
    back = net.weight(heads, size, WIDTH, fan_in=heads * size)
    result = net.op("Einsum", mixed, back, equation="bqhd,hde->bqe")
    return Map(net.op("Add", x.name, result), x.shape)


TOKEN_BLOCKS: dict[str, Callable[[Net, Map], Map]] = {
    block.__name__: block for block in (mlp, normalised, self_attention, einsum_attention)
}


def embed(net: Net, source: Map) -> Map:
    return Map(linear(net, source.name, source.shape[-1], WIDTH, note=False), (TOKENS, WIDTH))


def token_classifier(net: Net, x: Map) -> Map:
    pooled = net.op("ReduceMean", x.name, axes=[1], keepdims=0)
    return Map(net.op("Gemm", pooled, net.weight(WIDTH, 4), net.weight(4)), (4,))
